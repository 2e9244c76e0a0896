"""Measures of spaces and clusters: answers that follow from the definitions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from sklearn.metrics import silhouette_score

from clustering import measures
from clustering.measures import agreement, ari, chance, classes, encode, gini, hubs, knn_accuracy, nmi, purity, shape

BOOK = "xxxxxo" + "xoooov" + "xxvvv"
"""The three clusters of Manning, Raghavan & Schütze (2008), figure 16.4."""
BOOK_LABELS = np.repeat([0, 1, 2], [6, 6, 5])


def points(codes: np.ndarray, *, seed: int = 0, far: float = 100.0) -> np.ndarray:
    """Return a row for each code, around a place of its own that is `far` from the others."""
    rng = np.random.default_rng(seed)
    return far * np.eye(codes.max() + 1)[codes] + rng.normal(size=(len(codes), codes.max() + 1))


def slow_accuracy(X: np.ndarray, codes: np.ndarray, k: int, apart: list[np.ndarray]) -> tuple[int, float]:
    """Do what `knn_accuracy` does, a pair at a time."""
    right = []
    for i in range(len(X)):
        allowed = [j for j in range(len(X)) if j != i and not any(one[i] == one[j] >= 0 for one in apart)]
        if codes[i] < 0 or not any(codes[j] == codes[i] for j in allowed):
            continue
        near = sorted((j for j in allowed if codes[j] >= 0), key=lambda j: np.linalg.norm(X[i] - X[j]))[:k]
        votes = [codes[j] for j in near]
        right.append(max(votes, key=votes.count) == codes[i])
    return len(right), float(np.mean(right))


@pytest.mark.parametrize("measure", [purity, nmi, ari])
def test_the_same_partition_under_other_numbers_is_1(measure: Callable[..., float]) -> None:
    codes = np.arange(60) % 5
    assert measure((codes + 2) % 5, codes) == pytest.approx(1.0)


def test_a_class_far_from_the_others_is_always_found() -> None:
    codes = np.arange(60) % 5
    found = knn_accuracy(points(codes), codes)
    assert found is not None
    assert (found.n, found.majority, found.nn1, found.nn1_error, found.nn5) == (60, 0.2, 1.0, 0.0, 1.0)


def test_what_knows_nothing_of_the_classes_is_at_the_level_of_chance() -> None:
    """Of four equal classes; 4 standard errors of a mean over 2,000 independent rows."""
    rng = np.random.default_rng(0)
    codes, labels = rng.integers(4, size=2000), rng.integers(10, size=2000)
    found = knn_accuracy(rng.normal(size=(2000, 3)), codes)
    assert found is not None
    assert found.nn1_error == pytest.approx(np.sqrt(found.nn1 * (1 - found.nn1) / 2000))
    assert abs(found.nn1 - 0.25) < 4 * found.nn1_error
    assert abs(found.nn5 - 0.25) < 4 * found.nn5_error
    assert abs(ari(labels, codes)) < 0.005
    for measure in (purity, nmi):
        assert measure(labels, codes) == pytest.approx(chance(measure, labels, codes), abs=0.02)


def test_the_textbooks_example_has_the_textbooks_values() -> None:
    codes = encode(BOOK)
    assert purity(BOOK_LABELS, codes) == pytest.approx(12 / 17)
    assert nmi(BOOK_LABELS, codes) == pytest.approx(0.36, abs=0.005)


def test_the_chance_of_purity_is_that_of_the_sizes() -> None:
    """Clusters of one track each are pure, whatever the classes; a single cluster has the majority share."""
    codes = np.repeat([0, 1], [30, 10])
    assert chance(purity, np.arange(40), codes) == 1.0
    assert chance(purity, np.zeros(40, dtype=int), codes) == 0.75


def test_neighbours_vote_and_the_nearest_decides_a_tie() -> None:
    """On a line: the row at 0 hears a, b, b, a, and, as the fifth, c; the nearest, an a, decides."""
    voters = encode("abbac")
    assert measures.vote(voters[None]) == [0]
    assert measures.vote(encode("abbbac")[None, :5]) == [1]
    assert measures.vote(np.array([[-1, -1, -1, 2]])) == [2]


@pytest.mark.parametrize("seed", range(3))
def test_the_accuracy_is_that_of_the_definition(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With unlabelled rows, artists and albums, in blocks of a few rows."""
    monkeypatch.setattr(measures, "BLOCK_VALUES", 500)
    rng = np.random.default_rng(seed)
    codes, artists, albums = rng.integers(-1, 4, 90), rng.integers(-1, 12, 90), rng.integers(-1, 20, 90)
    X = rng.normal(size=(90, 4)) + 0.7 * np.eye(5)[codes][:, :4]
    for apart in ([], [artists], [artists, albums]):
        found = knn_accuracy(X, codes, apart=apart)
        assert found is not None
        assert (found.n, found.nn1) == slow_accuracy(X, codes, 1, apart)
        assert (found.n, found.nn5) == slow_accuracy(X, codes, 5, apart)


def test_a_space_that_knows_the_artist_is_found_out_by_the_artist_filter() -> None:
    """Eight artists of two genres, each in a place of its own: their own tracks tell the genre, others do not."""
    artists = np.arange(160) % 8
    genres = artists % 2
    X = points(artists)
    naive, filtered = knn_accuracy(X, genres), knn_accuracy(X, genres, apart=[artists])
    assert naive is not None
    assert filtered is not None
    assert naive.nn1 == 1.0
    assert filtered.nn1 < 0.75


def test_a_track_that_has_nobody_of_its_class_left_is_not_counted() -> None:
    """The genre 1 has one artist only: no neighbour that is allowed could be of that genre."""
    genres, artists = np.repeat([0, 1], 10), np.repeat([0, 1, 2], [5, 5, 10])
    found = knn_accuracy(points(genres), genres, apart=[artists])
    assert found is not None
    assert (found.n, found.majority, found.nn1) == (10, 1.0, 1.0)
    assert knn_accuracy(points(genres), genres, apart=[genres]) is None


def test_of_many_rows_a_seeded_sample_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "ASKED_ROWS", 50)
    rng = np.random.default_rng(0)
    X, codes = rng.normal(size=(400, 2)), rng.integers(2, size=400)
    first, again = (knn_accuracy(X, codes, random_state=3) for _ in range(2))
    assert first is not None
    assert first.n == 50
    assert first == again != knn_accuracy(X, codes, random_state=4)


def test_small_classes_and_tracks_without_a_value_are_left_out_and_counted() -> None:
    found = classes(["jazz"] * 5 + ["folk"] * 4 + ["waltz"] + [None, ""] + [1999] * 6)
    assert (found.n_classes, found.small_classes, found.small_tracks, found.unlabelled) == (2, 2, 5, 2)
    assert found.codes.tolist() == [0] * 5 + [-1] * 7 + [3] * 6


def test_agreement_needs_two_classes_and_looks_at_no_other_track() -> None:
    labels = np.array([0] * 6 + [1] * 6 + [2] * 6)
    codes = np.array([0] * 6 + [1] * 6 + [-1] * 6)
    found = agreement(labels, codes)
    assert [found[name] for name in ("purity", "nmi", "ari")] == pytest.approx([1, 1, 1])
    assert found["purity_chance"] < 0.8
    assert agreement(labels, np.where(codes == 1, -1, codes)) == agreement(labels, np.full(18, -1)) == {}


@pytest.mark.parametrize(
    ("sizes", "expected"), [([5, 5, 5], 0), ([7], 0), ([1, 3], 0.25), ([0, 0, 0, 8], 0.75), ([1, 2, 3, 4], 0.25)]
)
def test_the_gini_coefficient_is_half_the_relative_mean_difference(sizes: list[int], expected: float) -> None:
    x = np.array(sizes)
    assert gini(x) == pytest.approx(expected)
    assert gini(x[::-1]) == pytest.approx(np.abs(x[:, None] - x).mean() / (2 * x.mean()))


def test_a_hub_is_in_every_list_and_what_nobody_lists_is_counted() -> None:
    """Ten rows: all list row 0, which lists row 1."""
    assert hubs(np.array([[1], *[[0]] * 9])) == (9, 0.8)
    assert hubs(np.array([[1], [2], [0]])) == (1, 0.0)
    assert hubs(np.empty((1, 0), dtype=int)) == (0, 1.0)


def test_separated_clusters_have_a_silhouette_near_1_and_a_davies_bouldin_index_near_0() -> None:
    labels = np.arange(60) % 3
    X = points(labels)
    found = shape(X, labels)
    assert found["silhouette"] == pytest.approx(silhouette_score(X, labels))
    assert found["silhouette"] > 0.95
    assert found["davies_bouldin"] < 0.05
    assert found["gini"] == pytest.approx(0)
    mixed = shape(X, np.arange(60) // 20)
    assert mixed["silhouette"] < 0 < 1 < mixed["davies_bouldin"]


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2], [0]])
def test_one_cluster_and_clusters_of_one_track_have_sizes_only(labels: list[int]) -> None:
    assert shape(np.arange(len(labels))[:, None].astype(float), np.array(labels)).keys() == {"gini"}
