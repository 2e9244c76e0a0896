"""Assigning rows of a space: nearest centre, score, nearest other rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from clustering import assign as module
from clustering.assign import assign, neighbours, score
from core.records import Cluster


def cluster(cluster_id: str, centre: list[float], radius: float) -> Cluster:
    return Cluster(cluster_id=cluster_id, size=1, radius=radius, centre=centre)


def test_a_row_belongs_to_the_nearest_centre() -> None:
    found = assign([cluster("c01", [0, 0], 2), cluster("c02", [10, 0], 4)], np.array([[3.0, 4.0], [10, 4], [10, 0]]))
    assert found.labels.tolist() == [0, 1, 1]
    assert found.distances.tolist() == [5, 4, 0]
    assert found.scores.tolist() == [1 / (1 + 5 / 2), 1 / 2, 1]


def test_of_equally_near_centres_the_first_is_taken() -> None:
    assert module.nearest(np.array([[0.0]]), np.array([[1.0], [-1.0]])).tolist() == [0]


def test_a_cluster_that_is_one_point_scores_on_the_scale_of_the_space() -> None:
    assert score(np.array([0.0, 1.0, 3.0]), 0.0).tolist() == [1, 1 / 2, 1 / 4]
    assert score(np.array([1.0]), 1e-17).tolist() == [1 / 2]


def test_a_space_without_dimensions_has_one_cluster() -> None:
    found = assign([cluster("c01", [], 0)], np.zeros((3, 0)))
    assert (found.labels.tolist(), found.scores.tolist()) == ([0, 0, 0], [1, 1, 1])


def test_neighbours_are_the_nearest_others_in_order() -> None:
    indices, distances = neighbours(np.array([[0.0], [1], [3], [7]]), 2)
    assert indices.tolist() == [[1, 2], [0, 2], [1, 0], [2, 1]]
    assert distances.tolist() == [[1, 3], [1, 2], [2, 3], [4, 6]]


@pytest.mark.parametrize(("n", "k"), [(1, 0), (2, 1), (5, 4), (30, 10)])
def test_there_are_ten_neighbours_or_as_many_as_there_are_others(n: int, k: int) -> None:
    indices, distances = neighbours(np.random.default_rng(0).normal(size=(n, 3)))
    assert indices.shape == distances.shape == (n, k)


@pytest.mark.parametrize("block_values", [1, 100, 10**6])
@settings(max_examples=60)
@given(
    X=st.one_of(
        arrays(float, st.tuples(st.integers(1, 25), st.integers(0, 3)), elements=st.floats(-1e3, 1e3)),
        arrays(float, st.tuples(st.integers(1, 25), st.just(2)), elements=st.sampled_from([0.0, 1.0, 2.0])),
    )
)
def test_neighbours_are_those_of_a_full_search_and_equals_are_in_order(block_values: int, X: np.ndarray) -> None:
    """Also among many equal rows, and however the rows are cut into blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK_VALUES", block_values)
        indices, distances = neighbours(X, 4)
    for row in range(len(X)):
        exact = np.sqrt(np.square(X - X[row]).sum(axis=1))
        expected = sorted((i for i in range(len(X)) if i != row), key=lambda i: (exact[i], i))[:4]
        np.testing.assert_array_equal(distances[row], exact[expected])
        np.testing.assert_array_equal(indices[row], expected)
