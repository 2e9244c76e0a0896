"""How many clusters, and the centres from which both engines start."""

from __future__ import annotations

import math
import warnings

import numpy as np

from clustering.assign import Labels, nearest
from clustering.space import Matrix, blocks
from core.errors import ConfigError

SAMPLE_ROWS = 20_000
MAX_ITERATIONS = 300
EPSILON = 1e-9
"""Lloyd's algorithm ends once no centre moves farther; one track that changes sides moves them more."""


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
    with warnings.catch_warnings():
        # Distinct tracks may be one point of the space; the clusters left empty are dropped later.
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = KMeans(n_clusters, n_init=n_init, tol=0, random_state=random_state).fit(_sample(X, random_state))
    centres: Matrix = fitted.cluster_centers_
    return centres


def continued_centres(X: Matrix, former: Labels, n_clusters: int, *, n_init: int, random_state: int) -> Matrix:
    """Return start centres that go on from former clusters: the means of their members.

    A mean to which no row is nearest, as where two clusters have become one point, is no start. Of too many
    clusters those with the fewest members go; to too few, others are added by `added_centres`.

    Parameters
    ----------
    X : ndarray, shape (n, d)
        Rows in order of their `track_id`.
    former : ndarray of int, shape (n,)
        The former cluster of each row, −1 for a row that was in none; some row was in one.

    Returns
    -------
    ndarray, shape (n_clusters, d)
        In the order of the former clusters; fewer only where no further row differs from all centres.
    """
    sizes = np.bincount(former[former >= 0])
    centres = means(X, former, np.zeros((len(sizes), X.shape[1])))
    alive = np.flatnonzero(sizes)
    useful = alive[np.unique(nearest(X, centres[alive]))]
    kept = useful[np.argsort(-sizes[useful], kind="stable")[:n_clusters]]
    return added_centres(X, centres[np.sort(kept)], n_clusters, n_init=n_init, random_state=random_state)


def added_centres(X: Matrix, centres: Matrix, n_clusters: int, *, n_init: int, random_state: int) -> Matrix:
    """Return the given centres and further ones, by k-means++ that goes on from those given.

    Each is the best of some rows that are drawn with a probability in proportion to the squared distance to
    the nearest centre (Arthur & Vassilvitskii 2007, greedy, with as many trials as scikit-learn makes). Of
    `n_init` such choices the one that leaves the smallest sum of squared distances is taken.
    """
    from scipy.spatial.distance import cdist

    rng, X = np.random.default_rng(random_state), _sample(X, random_state)
    squares = cdist(centres, X, "sqeuclidean").min(axis=0)
    best, least = centres, np.inf
    for _ in range(n_init if n_clusters > len(centres) else 0):
        found, closest = centres, squares
        while len(found) < n_clusters and closest.any():
            drawn = np.searchsorted(closest.cumsum(), rng.uniform(size=2 + int(math.log(n_clusters))) * closest.sum())
            rows = X[np.minimum(drawn, len(X) - 1)]
            left = np.minimum(closest, cdist(rows, X, "sqeuclidean"))
            choice = left.sum(axis=1).argmin()
            found, closest = np.vstack([found, rows[choice]]), left[choice]
        if closest.sum() < least:
            best, least = found, closest.sum()
    return best


def means(X: Matrix, labels: Labels, centres: Matrix) -> Matrix:
    """Return the (k, d) means of the members; a centre without members keeps its place, a label of −1 is no member."""
    sizes = np.bincount(labels[labels >= 0], minlength=len(centres))
    sums = np.zeros_like(centres)
    for rows in blocks(len(X)):
        known = labels[rows] >= 0
        np.add.at(sums, labels[rows][known], X[rows][known])
    return np.where(sizes[:, None] > 0, sums / np.maximum(sizes, 1)[:, None], centres)


def _sample(X: Matrix, random_state: int) -> Matrix:
    if len(X) <= SAMPLE_ROWS:
        return X
    return X[np.sort(np.random.default_rng(random_state).choice(len(X), SAMPLE_ROWS, replace=False))]
