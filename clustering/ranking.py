"""The neighbours that are recommended: of the nearest, those to which a track is near in turn, no recording twice."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from clustering.assign import Labels, scale
from clustering.neighbours import Products, neighbours, products
from clustering.recordings import PER_ARTIST, Recordings, choose
from clustering.space import Matrix
from core.jobs import Progress, Watch, ignore

N_NEIGHBOURS = 10
DEPTHS = (5, 50)
"""Times as many nearest tracks are looked at as are wanted; the second where the first leave too few."""
VALUES = 1 << 18
"""Places of lists that are looked at at a time: bounds the memory."""


class Points(NamedTuple):
    """Tracks in a space, with what their ranking needs to know of them; each array has a row for each."""

    X: Matrix
    P: Products
    """From `neighbours.products`."""
    neighbourhoods: Matrix
    """(n,) mean distance to the 10 nearest others; 0 where there are none, NaN until it is measured."""
    recordings: Recordings


class Ranked(NamedTuple):
    """The others near to some rows, the best first."""

    indices: Labels
    """(m, k)"""
    distances: Matrix
    """(m, k) Euclidean."""
    gaps: Matrix
    """(m, k) by which they are ordered."""

    @property
    def scores(self) -> Matrix:
        """(m, k) in (0, 1]: ``1 / (1 + gap)``; 1/2 is as far as the 10 nearest of both are on average."""
        scores: Matrix = 1 / (1 + self.gaps)
        return scores

    def take(self, places: Labels) -> Ranked:
        """Return those at some places of each list."""
        return Ranked._make(np.take_along_axis(values, places, axis=1) for values in self)


def points(X: Matrix, recordings: Recordings) -> Points:
    """Return tracks whose neighbourhoods are not measured."""
    return Points(X, products(X), np.full(len(X), np.nan), recordings)


def measure_neighbourhoods(points: Points, progress: Watch = ignore) -> None:
    """Measure the neighbourhoods that are not."""
    unknown = np.flatnonzero(np.isnan(points.neighbourhoods))
    for first in range(0, len(unknown), VALUES // N_NEIGHBOURS):
        rows = unknown[first : first + VALUES // N_NEIGHBOURS]
        points.neighbourhoods[rows] = neighbourhoods(points, rows)
        progress(Progress("neighbours", first + len(rows), len(unknown)))


def neighbourhoods(points: Points, rows: Labels) -> Matrix:
    """Return the mean distance of some rows to their 10 nearest others, 0 where there are none."""
    _, distances = neighbours(points.X, N_NEIGHBOURS, rows, points.P)
    means: Matrix = distances.sum(axis=1) / max(distances.shape[1], 1)
    return means


def rank(points: Points, rows: Labels, k: int) -> Ranked:
    """Return the `k` nearest others of some rows in order of d/√(r_x r_y), r being the measured neighbourhoods.

    A distance is thus compared with those to be expected where the two are. Without it some tracks, the hubs, are near
    to a great many others, most of which are nearer to something else (local scaling: Zelnik-Manor & Perona 2004;
    against hubs: Schnitzer et al. 2012).
    """
    indices, distances = neighbours(points.X, k, rows, points.P)
    own, others = scale(points.neighbourhoods[rows, None]), scale(points.neighbourhoods[indices])
    gaps = distances / np.sqrt(own * others)
    return Ranked(indices, distances, gaps).take(np.argsort(gaps, axis=1, kind="stable"))


def recommend(
    points: Points,
    liked: Labels,
    n: int = N_NEIGHBOURS,
    *,
    copies: bool = False,
    per_artist: int = PER_ARTIST,
) -> Ranked:
    """Return the `n` others that are best for each taste, by the smallest gap to a track of it.

    They are found among the 5 n nearest to each liked track, and where those are too few for the artists and copies
    in it, among 50 n. Neighbourhoods that are not measured are measured first.

    Parameters
    ----------
    points : Points
    liked : ndarray of int, shape (m, q)
        The rows of each taste.
    n : int
    copies, per_artist
        As in `recordings.choose`.

    Returns
    -------
    Ranked
        Of shape (m, n), with index −1 where there are too few.
    """
    measure_neighbourhoods(points)
    found = Ranked(np.full((len(liked), n), -1), *np.full((2, len(liked), n), np.inf))
    for depth in DEPTHS:
        short = np.flatnonzero(found.indices[:, -1] < 0)
        step = max(VALUES // (liked.shape[1] * depth * n), 1)
        for first in range(0, len(short), step):
            part = short[first : first + step]
            ranked = _for_tastes(points, liked[part], depth * max(n, N_NEIGHBOURS))
            places = choose(points.recordings, ranked.indices, liked[part], n, copies=copies, per_artist=per_artist)
            i, j = np.nonzero(places >= 0)
            for values, known in zip(found, ranked, strict=True):
                values[part[i], j] = known[i, places[i, j]]
    return found


def _for_tastes(points: Points, liked: Labels, k: int) -> Ranked:
    """Return the `k` nearest others of each liked track, in one list for each taste; index −1 is to be passed over."""
    m, q = liked.shape
    each = rank(points, liked.ravel(), k)
    if q == 1:
        return each
    ranked = Ranked._make(values.reshape(m, -1) for values in each)
    ranked = ranked.take(np.argsort(ranked.gaps, axis=1, kind="stable"))
    known = np.concatenate([liked, ranked.indices], axis=1)
    order = np.argsort(known, axis=1, kind="stable")
    ordered = np.take_along_axis(known, order, axis=1)
    again = np.zeros(known.shape, dtype=bool)
    np.put_along_axis(again, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    return ranked._replace(indices=np.where(again[:, q:], -1, ranked.indices))
