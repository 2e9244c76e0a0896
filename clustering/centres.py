"""How many clusters, and the centres from which both engines start."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from clustering.assign import Labels
from clustering.space import Matrix
from core.errors import ConfigError

SAMPLE_ROWS = 20_000
MAX_ITERATIONS = 300
EPSILON = 1e-9
"""Lloyd's algorithm ends once no centre moves farther; one track that changes sides moves them more."""


def count_distinct(vectors: Mapping[str, npt.NDArray[Any]]) -> int:
    """Return how many tracks differ in any value of any group."""
    return len({tuple(row.tobytes() for row in rows) for rows in zip(*vectors.values(), strict=True)})


def choose_n_clusters(n_tracks: int, n_distinct: int, n_clusters: int | None = None) -> int:
    """Return the number of clusters: as asked for, else round(√(n/2)) within 2…50.

    Raises
    ------
    ConfigError
        If more clusters are asked for than there are distinct tracks.
    """
    if n_clusters is None:
        return min(max(round(math.sqrt(n_tracks / 2)), 2), 50, n_distinct)
    if n_clusters > n_distinct:
        raise ConfigError(
            f"clustering.n_clusters: {n_clusters} is more than the {n_distinct} distinct tracks; ask for fewer"
        )
    return n_clusters


def start_centres(X: Matrix, n_clusters: int, *, n_init: int, random_state: int) -> Matrix:
    """Return the best of `n_init` k-means++ starts, each run to its end on a sample.

    Parameters
    ----------
    X : ndarray, shape (n, d)
        Rows in order of their `track_id`; a sample of at most 20,000 of them is used.

    Returns
    -------
    ndarray, shape (n_clusters, d)
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    if n_clusters == 1 or X.shape[1] == 0:
        return np.array([X.mean(axis=0)])
    if len(X) > SAMPLE_ROWS:
        X = X[np.sort(np.random.default_rng(random_state).choice(len(X), SAMPLE_ROWS, replace=False))]
    with warnings.catch_warnings():
        # Distinct tracks may be one point of the space; the clusters left empty are dropped later.
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = KMeans(n_clusters, n_init=n_init, tol=0, random_state=random_state).fit(X)
    centres: Matrix = fitted.cluster_centers_
    return centres


def means(X: Matrix, labels: Labels, centres: Matrix) -> Matrix:
    """Return the (k, d) means of the members; a centre without members keeps its place."""
    sizes = np.bincount(labels, minlength=len(centres))
    sums = np.zeros_like(centres)
    np.add.at(sums, labels, X)
    return np.where(sizes[:, None] > 0, sums / np.maximum(sizes, 1)[:, None], centres)
