"""How many clusters, and where both engines start."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustering import centres
from clustering.centres import added_centres, choose_n_clusters, continued_centres, means, start_centres
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


def blobs(*points: float, n: int = 30) -> np.ndarray:
    """Return n rows around each of some points of a line."""
    return np.concatenate([point + np.linspace(-1, 1, n) for point in points])[:, None]


def test_a_warm_start_begins_at_the_means_of_the_former_members() -> None:
    """Wherever the former centres were; rows that were in no cluster have no part in it."""
    X = np.array([[0.0], [2], [10], [14], [99]])
    found = continued_centres(X, np.array([1, 1, 0, 0, -1]), 2, n_init=1, random_state=0)
    assert found.tolist() == [[12], [1]]


def test_with_fewer_clusters_those_with_the_fewest_members_go() -> None:
    X = np.arange(10.0)[:, None]
    former = np.array([0, 1, 1, 1, 2, 2, 3, 3, 3, -1])
    for n_clusters, expected in ((3, [[2], [4.5], [7]]), (2, [[2], [7]]), (1, [[2]])):
        assert continued_centres(X, former, n_clusters, n_init=1, random_state=0).tolist() == expected


def test_a_former_cluster_without_members_is_no_start() -> None:
    X = np.array([[0.0], [2], [10]])
    found = continued_centres(X, np.array([0, 0, 2]), 3, n_init=1, random_state=0)
    assert found[:2].tolist() == [[1], [10]]
    assert len(found) == 3


def test_of_former_clusters_that_have_become_one_point_one_is_a_start() -> None:
    """Of four that are wanted there are three then: no further row differs from all."""
    X = np.array([[0.0], [0], [5], [5], [9]])
    assert continued_centres(X, np.array([0, 1, 2, 2, -1]), 2, n_init=1, random_state=0).tolist() == [[0], [5]]
    assert continued_centres(X, np.array([0, 1, 2, 2, -1]), 4, n_init=1, random_state=0).tolist() == [[0], [5], [9]]


@settings(deadline=None)
@given(
    former=st.lists(st.integers(-1, 3), min_size=1, max_size=20).filter(lambda one: max(one) >= 0), k=st.integers(1, 4)
)
def test_permuting_tracks_does_not_change_where_a_warm_start_begins(former: list[int], k: int) -> None:
    """As long as no centre is added, which are drawn from the rows in their order."""
    labels = np.array(former)
    X = np.random.default_rng(0).normal(size=(len(former), 2)) + 10 * labels[:, None]
    order = np.random.default_rng(1).permutation(len(former))
    k = min(k, len(np.unique(labels[labels >= 0])))
    starts = [
        continued_centres(X[rows], labels[rows], k, n_init=1, random_state=0) for rows in (np.arange(len(X)), order)
    ]
    np.testing.assert_allclose(*starts, atol=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_with_more_clusters_the_new_centres_are_where_the_former_ones_are_not(seed: int) -> None:
    X = blobs(0, 10, 20, 30)
    former = np.repeat([0, 1, -1, -1], 30)
    found = continued_centres(X, former, 4, n_init=3, random_state=seed)
    np.testing.assert_allclose(found[:2], [[0], [10]], atol=1e-12)
    assert sorted(found[2:].round(-1).ravel().tolist()) == [20, 30]


def test_added_centres_are_rows_and_the_same_seed_adds_the_same() -> None:
    X = np.random.default_rng(0).normal(size=(50, 3))
    first, again, other = (added_centres(X, X[:2], 6, n_init=2, random_state=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert {tuple(row) for row in first} <= {tuple(row) for row in X}
    assert len({tuple(row) for row in first}) == 6


def test_a_row_is_drawn_with_a_probability_in_proportion_to_its_squared_distance() -> None:
    """One trial of two rows, 1 and 2 away: the farther one in four of five."""
    X = np.array([[0.0], [1], [-2]])
    trials = 2 + int(np.log(2))
    drawn = [added_centres(X, X[:1], 2, n_init=1, random_state=seed)[1, 0] for seed in range(400)]
    assert drawn.count(1) / 400 == pytest.approx(0.2**trials, abs=0.03)


def test_no_centre_is_added_where_every_row_has_one() -> None:
    assert added_centres(np.ones((5, 2)), np.ones((1, 2)), 3, n_init=2, random_state=0).tolist() == [[1, 1]]
