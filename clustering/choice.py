"""Choosing the number of clusters: a range of them is tried on the same coordinates and judged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clustering import measures
from clustering.assign import nearest
from clustering.centres import start_centres
from clustering.space import Matrix
from core.jobs import Progress, Watch, ignore
from core.records import Trial

SAMPLE_ROWS = 10_000
"""On which every number is tried; `measures.SAMPLE_ROWS` of them are looked at for the silhouette."""
LEAST, MOST = 5, 50
MEAN_SIZE = 10
"""Tracks that a cluster must have on average."""
STABLE = 0.05
"""A number counts where its stability is at most so far below the best one."""
BETTER = 0.02
"""By so much another number's silhouette must be above that of the former number, so that this is given up."""
PLACES = 4
"""To so many places the measures are kept: what both engines agree on, and what makes a tie."""


def candidates(n_tracks: int, n_distinct: int) -> range:
    """Return the numbers of clusters to try: 5 … min(50, n/10); none for fewer than 50 tracks or 5 distinct ones."""
    return range(LEAST, min(MOST, n_tracks // MEAN_SIZE, n_distinct) + 1)


def tried(
    X: Matrix, numbers: Sequence[int], *, n_init: int, random_state: int, progress: Watch = ignore
) -> list[Trial]:
    """Try numbers of clusters, each from starts of its own.

    The silhouette (Rousseeuw 1987) is that of the rows that `measures.shape` looks at; it is 0 where only one cluster
    is among them. The stability is the adjusted Rand index between the partitions of the same rows by the fits of
    two random halves (Lange, Roth, Braun & Buhmann 2004): what is there in the data is found in both.

    Parameters
    ----------
    X : ndarray, shape (n, d)
        Rows in order of their `track_id`; a sample of at most 10,000 of them is used.
    numbers : sequence of int
        Each at most n / 2.
    n_init, random_state : int
        As `centres.start_centres` takes them; the sample and its halves are the same for all numbers.
    progress : callable
    """
    from sklearn.metrics import pairwise_distances, silhouette_score

    order = np.random.default_rng(random_state).permutation(len(X))
    chosen = order[:SAMPLE_ROWS]
    rows, halves, judged = X[np.sort(chosen)], (X[chosen[::2]], X[chosen[1::2]]), X[order[: measures.SAMPLE_ROWS]]
    distances = pairwise_distances(judged)
    trials: list[Trial] = []
    for n_clusters in numbers:
        progress(Progress("choose", len(trials), len(numbers)))
        whole, *parts = (
            start_centres(part, n_clusters, n_init=n_init, random_state=random_state) for part in (rows, *halves)
        )
        labels = nearest(judged, whole)
        silhouette = silhouette_score(distances, labels, metric="precomputed") if np.ptp(labels) else 0.0
        stability = measures.ari(*(nearest(rows, centres) for centres in parts))
        trials.append(
            Trial(
                n_clusters=n_clusters,
                silhouette=round(float(silhouette), PLACES),
                stability=round(stability, PLACES),
            )
        )
    progress(Progress("choose", len(trials), len(numbers)))
    return trials


def stable(trials: Sequence[Trial]) -> list[Trial]:
    """Return those whose stability is within 0.05 of the best one."""
    least = round(max(trial.stability for trial in trials) - STABLE, PLACES)
    return [trial for trial in trials if trial.stability >= least]


def choose(trials: Sequence[Trial], former: int | None = None) -> int:
    """Return the number of clusters with the highest silhouette among the stable ones, the largest of equals.

    The `former` number stays, where it was tried, unless the other's silhouette is higher by 0.02 or more: clusters
    that others have subscribed to are not given up for a trifle.
    """
    best = max(stable(trials), key=lambda trial: (trial.silhouette, trial.n_clusters))
    known = {trial.n_clusters: trial.silhouette for trial in trials}
    if former in known and round(best.silhouette - known[former], PLACES) < BETTER:
        return former
    return best.n_clusters
