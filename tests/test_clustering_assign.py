"""Assigning rows of a space: nearest centre, score."""

from __future__ import annotations

import numpy as np

from clustering import assign as module
from clustering.assign import assign, score
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
