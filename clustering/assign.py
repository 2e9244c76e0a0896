"""Assigning rows of a fitted space: the nearest centre, and scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from clustering.space import Matrix, blocks
from core.names import UNCLUSTERED
from core.records import Cluster

Labels = npt.NDArray[np.intp]

POINT = 1e-9
"""A radius below this is rounding noise: the cluster is one point."""
FAR = 1.5
"""Times the 99th percentile of the members' distances: farther from the centre a track is in no cluster."""


class Assigned(NamedTuple):
    """Where rows of a space belong."""

    labels: Labels
    """(n,) index of the cluster."""
    distances: Matrix
    """(n,) Euclidean distance to its centre."""
    scores: Matrix
    """(n,) in (0, 1]."""


def nearest(X: Matrix, centres: Matrix) -> Labels:
    """Return for each of the (n, d) rows the index of the nearest centre, the first of equals."""
    norms = np.square(centres).sum(axis=1)
    return np.concatenate([(norms - 2 * X[rows] @ centres.T).argmin(axis=1) for rows in blocks(len(X))])


def distances_to(X: Matrix, centres: Matrix) -> Matrix:
    """Return the (n,) Euclidean distances of rows to one centre, or each to its own."""
    distances: Matrix = np.sqrt(np.square(X - centres).sum(axis=-1))
    return distances


def distances_within(X: Matrix, centres: Matrix, labels: Labels) -> Matrix:
    """Return the (n,) Euclidean distances of rows to the centres of their clusters."""
    return np.concatenate([distances_to(X[rows], centres[labels[rows]]) for rows in blocks(len(X))])


def scale(radii: Matrix | float) -> Matrix:
    """Return radii to measure distances by.

    What is a single point has no scale of its own; the space's takes its place: 1, the standard deviation of the
    first group.
    """
    scales: Matrix = np.where(np.less(radii, POINT), 1.0, radii)
    return scales


def score(distances: Matrix, radii: Matrix | float) -> Matrix:
    """Return ``1 / (1 + d/r)``: 1 on the spot, 1/2 at the radius r, by the `scale` of a single point if it is one."""
    scores: Matrix = 1 / (1 + distances / scale(radii))
    return scores


def assign(clusters: Sequence[Cluster], X: Matrix) -> Assigned:
    """Assign rows of the fitted space to the clusters of a run.

    Parameters
    ----------
    clusters : sequence of Cluster
        ``Run.clusters``.
    X : ndarray, shape (n, d)
        From `space.transform` with ``Run.space``.
    """
    centres = np.array([cluster.centre for cluster in clusters]).reshape(len(clusters), -1)
    labels = nearest(X, centres)
    distances = distances_within(X, centres, labels)
    return Assigned(labels, distances, score(distances, np.array([cluster.radius for cluster in clusters])[labels]))


def home(cluster: Cluster, distance: float) -> str:
    """Return where a track at this distance from its nearest centre is published: the cluster, or `UNCLUSTERED`."""
    if cluster.p99 is None or distance <= FAR * scale(cluster.p99):
        return cluster.cluster_id
    return UNCLUSTERED
