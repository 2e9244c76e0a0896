"""The neighbours that are recommended: ranked by both neighbourhoods, from many artists, by a formula that is seen."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from clustering import ranking
from clustering.measures import hubs
from clustering.neighbours import neighbours
from clustering.ranking import Points, measure_neighbourhoods, points, rank, recommend
from clustering.recordings import RECORDING


def at(X: np.ndarray, artists: list[int] | None = None) -> Points:
    """Return points of which each is a recording of its own; without `artists` none has one."""
    recordings = np.zeros(len(X), dtype=RECORDING)
    recordings["duration"] = 10 * np.arange(len(X))
    recordings["artist"] = artists or 0
    return points(X, recordings)


def every(there: Points) -> np.ndarray:
    """Return each row as a taste of its own."""
    return np.arange(len(there.X))[:, None]


def test_a_neighbourhood_is_the_mean_distance_to_the_ten_nearest() -> None:
    there = at(np.arange(12.0)[:, None])
    measure_neighbourhoods(there)
    assert there.neighbourhoods[[0, 5]].tolist() == [5.5, 3.0]  # 1 … 10; 1 … 5 on both sides


@pytest.mark.parametrize(("n", "r"), [(1, 0.0), (2, 4.0)])
def test_of_fewer_others_it_is_the_mean_of_all_and_of_none_0(n: int, r: float) -> None:
    there = at(np.array([[0.0], [4.0]])[:n])
    measure_neighbourhoods(there)
    assert there.neighbourhoods.tolist() == [r] * n


def test_the_order_is_by_the_distance_over_the_mean_of_both_neighbourhoods() -> None:
    """From 0 the nearest is at 1, but it has much nearer ones itself: 1 / √(4 · 0.01) > 3 / √(4 · 9)."""
    there = at(np.array([[0.0], [1.0], [3.0]]))
    there.neighbourhoods[:] = [4.0, 0.01, 9.0]
    ranked = rank(there, np.array([0]), 2)
    assert ranked.indices.tolist() == [[2, 1]]
    assert ranked.distances.tolist() == [[3.0, 1.0]]
    assert ranked.gaps.tolist() == [[pytest.approx(3 / 6), pytest.approx(1 / 0.2)]]


def test_a_neighbourhood_of_nothing_counts_as_1() -> None:
    there = at(np.array([[0.0], [0.5], [2.0], [0.0]]))
    there.neighbourhoods[:] = [0.0, 0.0, 4.0, 0.0]
    ranked = rank(there, np.array([0]), 3)
    assert ranked.indices.tolist() == [[3, 1, 2]]
    assert ranked.gaps.tolist() == [[0.0, 0.5, 2 / 2]]


def test_what_is_measured_stays_as_it_is() -> None:
    there = at(np.random.default_rng(0).normal(size=(30, 3)))
    there.neighbourhoods[7] = 0.125
    recommend(there, every(there))
    assert there.neighbourhoods[7] == 0.125
    assert not np.isnan(there.neighbourhoods).any()


def test_hubs_are_in_fewer_lists_and_fewer_tracks_are_in_none() -> None:
    """Where there are many dimensions, and the densities differ."""
    rng = np.random.default_rng(0)
    there = at(rng.normal(size=(800, 60)) * rng.uniform(0.9, 1.1, size=(800, 1)))
    most, never = hubs(recommend(there, every(there)).indices)
    most_by_distance, never_by_distance = hubs(neighbours(there.X, 10)[0])
    assert most < most_by_distance / 2
    assert never < never_by_distance / 2


def test_no_artist_has_a_third_track_in_a_list_and_the_lists_are_full() -> None:
    """Even where the 50 nearest are all of one artist: then the 500 nearest are looked at."""
    rng = np.random.default_rng(0)
    near, far = rng.normal(size=(80, 4)), 5 + rng.normal(size=(80, 4))
    artists = [1] * 80 + list(range(2, 82))
    there = at(np.concatenate([near, far]), artists)
    found = recommend(there, every(there)).indices
    assert (found >= 0).all()
    counts = [np.bincount(np.array(artists)[row]).max() for row in found]
    assert max(counts) == 2


def test_a_list_is_short_where_there_are_too_few_artists() -> None:
    there = at(np.random.default_rng(0).normal(size=(90, 4)), [1, 2, 3] * 30)
    found = recommend(there, every(there))
    assert {int((row >= 0).sum()) for row in found.indices} == {6}
    assert np.isinf(found.gaps[:, 6:]).all()


def test_the_best_for_several_are_the_best_for_any_of_them() -> None:
    there = at(np.random.default_rng(0).normal(size=(60, 4)))
    both = recommend(there, np.array([[3, 4]]), n=12)
    smallest: dict[int, float] = {}
    for one in ([[3]], [[4]]):
        alone = recommend(there, np.array(one), n=58)
        for index, gap in zip(alone.indices[0].tolist(), alone.gaps[0].tolist(), strict=True):
            if index not in (3, 4):
                smallest[index] = min(gap, smallest.get(index, np.inf))
    best = sorted(smallest, key=lambda index: smallest[index])[:12]
    assert both.indices[0].tolist() == best
    assert both.gaps[0].tolist() == [smallest[index] for index in best]


def test_more_that_are_asked_for_begin_with_the_fewer() -> None:
    there = at(np.random.default_rng(0).normal(size=(40, 4)))
    ten = recommend(there, np.array([[7]])).indices[0]
    assert recommend(there, np.array([[7]]), n=3).indices[0].tolist() == ten[:3].tolist()


@pytest.mark.parametrize("n", [1, 2, 5])
def test_few_tracks_have_each_other(n: int) -> None:
    there = at(np.arange(float(n))[:, None])
    found = recommend(there, every(there)).indices
    assert [sorted(row[row >= 0].tolist()) for row in found] == [[j for j in range(n) if j != i] for i in range(n)]


def test_memory_does_not_grow_with_the_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the lists themselves: 3,000 rows are looked at in parts, of 500."""
    monkeypatch.setattr(ranking, "VALUES", 500 * 50)
    there = at(np.random.default_rng(0).normal(size=(3_000, 4)))
    measure_neighbourhoods(there)
    few, many = (memory(lambda n=n: recommend(there, every(there)[:n])) for n in (500, 3_000))
    assert many < few + 2e6


def memory(run: Callable[[], object]) -> int:
    """Return the most bytes that are taken at a time."""
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
