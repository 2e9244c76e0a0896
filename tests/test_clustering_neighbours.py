"""The nearest rows: those of a full search, whatever the blocks and however many are equal."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from clustering import neighbours as module
from clustering.neighbours import neighbours, products


def full_search(X: np.ndarray, k: int, rows: np.ndarray) -> tuple[list[list[int]], list[list[float]]]:
    indices, distances = [], []
    for row in rows:
        exact = np.sqrt(np.square(X - X[row]).sum(axis=1))
        near = sorted((i for i in range(len(X)) if i != row), key=lambda i: (exact[i], i))[:k]
        indices.append(near)
        distances.append(exact[near].tolist())
    return indices, distances


def test_the_nearest_others_come_in_order() -> None:
    indices, distances = neighbours(np.array([[0.0], [1], [3], [7]]), 2)
    assert indices.tolist() == [[1, 2], [0, 2], [1, 0], [2, 1]]
    assert distances.tolist() == [[1, 3], [1, 2], [2, 3], [4, 6]]


@pytest.mark.parametrize(("n", "k"), [(0, 0), (1, 0), (2, 1), (5, 4), (30, 10)])
def test_there_are_as_many_as_asked_for_or_as_there_are_others(n: int, k: int) -> None:
    indices, distances = neighbours(np.random.default_rng(0).normal(size=(n, 3)), 10)
    assert indices.shape == distances.shape == (n, k)


@pytest.mark.parametrize(("rows", "block_values", "pairs"), [(1, 1, 1), (3, 20, 7), (512, 10**6, 10**6)])
@settings(max_examples=60)
@given(
    X=st.one_of(
        arrays(float, st.tuples(st.integers(1, 25), st.integers(0, 3)), elements=st.floats(-1e3, 1e3)),
        arrays(float, st.tuples(st.integers(1, 25), st.just(2)), elements=st.sampled_from([0.0, 1.0, 2.0])),
        arrays(float, st.tuples(st.integers(1, 25), st.just(1)), elements=st.floats(1e6, 1e6 + 1e-3)),
        arrays(float, st.tuples(st.integers(1, 25), st.just(1)), elements=st.floats(-1e-30, 1e-30)),
    ),
    k=st.integers(1, 6),
)
def test_they_are_those_of_a_full_search_and_equals_are_in_order(
    rows: int, block_values: int, pairs: int, X: np.ndarray, k: int
) -> None:
    """Also among equal rows, far from the origin, at nearly nothing, and however the rows are cut into blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ROWS", rows)
        patch.setattr(module, "BLOCK_VALUES", block_values)
        patch.setattr(module, "PAIRS", pairs)
        indices, distances = neighbours(X, k)
    assert (indices.tolist(), distances.tolist()) == full_search(X, k, np.arange(len(X)))


def test_of_thousands_of_rows_the_nearest_are_found_whichever_are_asked() -> None:
    """With copies in it, in an order that brings a nearer one in each block."""
    X = np.random.default_rng(0).normal(size=(5_000, 20))
    X = X[np.argsort(-np.square(X).sum(axis=1))]
    X[4_000:4_100] = X[17]
    rows = np.array([4_999, 17, 0, 4_050, 2_345])
    indices, distances = neighbours(X, 10, rows, products(X))
    assert (indices.tolist(), distances.tolist()) == full_search(X, 10, rows)


def test_copies_by_the_thousand_take_no_more_memory_than_a_few_blocks() -> None:
    """All rows are equal, so that each is as near as any: (n, n) float64 would be 800 MB."""
    import tracemalloc

    X = np.ones((10_000, 8))
    tracemalloc.start()
    try:
        indices, distances = neighbours(X, 10, np.arange(9_000, 9_100))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert indices.tolist() == [list(range(10))] * 100
    assert not distances.any()
    assert most < 200e6
