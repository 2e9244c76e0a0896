"""How many clusters, and where both engines start."""

from __future__ import annotations

import numpy as np
import pytest

from clustering import centres
from clustering.centres import choose_n_clusters, count_distinct, means, start_centres
from core.errors import ConfigError


@pytest.mark.parametrize(
    ("n_tracks", "n_clusters"),
    [(1, 1), (2, 2), (3, 2), (12, 2), (13, 3), (200, 10), (5000, 50), (10**6, 50)],
)
def test_the_rule_is_the_root_of_half_the_tracks_within_2_and_50(n_tracks: int, n_clusters: int) -> None:
    assert choose_n_clusters(n_tracks, n_tracks) == n_clusters


def test_there_are_never_more_clusters_than_distinct_tracks() -> None:
    assert choose_n_clusters(200, 7) == 7
    assert choose_n_clusters(200, 1) == 1
    assert choose_n_clusters(200, 7, 7) == 7


def test_asking_for_more_clusters_than_distinct_tracks_is_refused_with_both_numbers() -> None:
    with pytest.raises(ConfigError, match=r"clustering\.n_clusters: 8 .* 7 distinct"):
        choose_n_clusters(200, 7, 8)


def test_tracks_are_distinct_if_any_value_of_any_group_differs() -> None:
    nan = np.nan
    vectors = {"timbre": np.array([[1.0], [1], [1], [2]]), "rhythm": np.array([[1.0, 2], [1, 2], [nan, nan], [1, 2]])}
    assert count_distinct(vectors) == 3


def test_separated_groups_each_get_a_start() -> None:
    rng = np.random.default_rng(0)
    points = np.array([[0.0, 0], [100, 0], [0, 100], [100, 100], [50, 50]])
    X = np.vstack([point + rng.normal(size=(20, 2)) for point in points])
    found = start_centres(X, 5, n_init=10, random_state=0)
    expected = [X[i : i + 20].mean(axis=0) for i in range(0, 100, 20)]
    np.testing.assert_allclose(sorted(found.tolist()), sorted(map(list, expected)))


def test_the_starts_of_a_large_library_come_from_a_seeded_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 200 rows in two groups 10 are looked at: the centres are means of at most 10 rows, the same each time."""
    monkeypatch.setattr(centres, "SAMPLE_ROWS", 10)
    X = np.concatenate([np.zeros(100), np.full(100, 50.0)])[:, None] + np.arange(200)[:, None] / 1000
    first, again, other = (start_centres(X, 2, n_init=1, random_state=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    np.testing.assert_allclose(np.sort(first, axis=0), [[0], [50]], atol=0.3)


@pytest.mark.parametrize("shape", [(1, 3), (4, 0), (4, 3)])
def test_one_cluster_starts_at_the_mean(shape: tuple[int, int]) -> None:
    X = np.arange(np.prod(shape), dtype=float).reshape(shape)
    np.testing.assert_array_equal(start_centres(X, 1, n_init=1, random_state=0), X.mean(axis=0)[None])


def test_equal_rows_make_no_noise() -> None:
    assert start_centres(np.ones((6, 2)), 2, n_init=2, random_state=0).tolist() == [[1, 1], [1, 1]]


def test_a_centre_without_members_keeps_its_place() -> None:
    found = means(np.array([[1.0, 2], [3, 4], [9, 9]]), np.array([0, 0, 2]), np.array([[0.0, 0], [5, 5], [0, 0]]))
    assert found.tolist() == [[2, 3], [5, 5], [9, 9]]
