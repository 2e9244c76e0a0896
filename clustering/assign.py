"""Assigning rows of a fitted space: the nearest centre, scores, and the nearest other rows."""

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
BLOCK_VALUES = 4_000_000
"""Distances held at a time while neighbours are sought: 32 MB."""


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


def score(distances: Matrix, radii: Matrix | float) -> Matrix:
    """Return ``1 / (1 + d/r)``: 1 on the spot, 1/2 at the radius r.

    A cluster that is a single point has no scale of its own; the space's takes its place: r = 1, the
    standard deviation of the first group.
    """
    scores: Matrix = 1 / (1 + distances / np.where(np.less(radii, POINT), 1.0, radii))
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
    """Return where a track at this distance from its nearest centre is published: the cluster, or `UNCLUSTERED`.

    As in `score`, 1 takes the place of the percentile of a cluster that is a single point.
    """
    if cluster.p99 is None or distance <= FAR * (cluster.p99 if cluster.p99 >= POINT else 1.0):
        return cluster.cluster_id
    return UNCLUSTERED


def neighbours(X: Matrix, n_neighbours: int = 10, rows: Labels | None = None) -> tuple[Labels, Matrix]:
    """Return the nearest other rows of each row, nearest first, and their distances.

    Parameters
    ----------
    X : ndarray, shape (n, d)
    n_neighbours : int
        At most n − 1 are returned.
    rows : ndarray of int, shape (m,), optional
        Those whose neighbours are wanted; default: all n.

    Returns
    -------
    indices : ndarray, shape (m, min(n_neighbours, n − 1))
        Equal distances in order of the index.
    distances : ndarray, same shape
        Exact: products of matrices only choose the candidates.
    """
    n, k = len(X), min(n_neighbours, len(X) - 1)
    rows = np.arange(n) if rows is None else rows
    indices, distances = np.empty((len(rows), k), dtype=np.intp), np.empty((len(rows), k))
    if k == 0:
        return indices, distances
    norms = np.square(X).sum(axis=1)
    slack = 1e-12 * max(norms.max(), 1.0)
    step = max(BLOCK_VALUES // n, 1)
    for first in range(0, len(rows), step):
        chosen = rows[first : first + step]
        squares = norms - 2 * X[chosen] @ X.T
        squares[np.arange(len(chosen)), chosen] = np.inf
        limits = np.partition(squares, k - 1, axis=1)[:, k - 1] + slack
        for i, (values, limit) in enumerate(zip(squares, limits, strict=True), start=first):
            candidates = np.flatnonzero(values <= limit)
            exact = distances_to(X[candidates], X[rows[i]])
            order = np.argsort(exact, kind="stable")[:k]
            indices[i], distances[i] = candidates[order], exact[order]
    return indices, distances
