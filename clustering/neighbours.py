"""The nearest rows of a space: exact, at the speed of a product of matrices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from clustering.assign import Labels, distances_to
from clustering.space import Matrix

Products = npt.NDArray[np.float32]
"""(n, d + 1): rows, each with half the square of its length."""

ROWS = 512
"""Asked for their neighbours at a time."""
BLOCK_VALUES = 512 * 2048
"""Values of a block of the product: looked at while they are in the cache, 4 MB."""
PAIRS = 1 << 15
"""Exact distances at a time: 16 MB."""
ROUNDING = 2.0**-24
"""Largest relative error of a float32."""
TINY = 1e-36
"""Above the error of what is too small for a float32."""


class Candidates(NamedTuple):
    """Pairs of a row that is asked and one that may be its neighbour; of each row in order of `columns`."""

    places: Labels
    """Which of the rows that are asked."""
    columns: Labels
    """Which row of all."""
    values: npt.NDArray[np.float32]
    """Of the product."""

    def take(self, chosen: npt.NDArray[np.generic]) -> Candidates:
        """Return some of them."""
        return Candidates(self.places[chosen], self.columns[chosen], self.values[chosen])

    def with_more(self, more: Candidates) -> Candidates:
        """Return these and others of later columns."""
        places, columns = (np.concatenate(pair) for pair in zip(self[:2], more[:2], strict=True))
        return Candidates(places, columns, np.concatenate([self.values, more.values]))


def products(X: Matrix) -> Products:
    """Return (…, d) rows as the search multiplies them."""
    return np.concatenate([X, np.square(X).sum(axis=-1, keepdims=True) / 2], axis=-1).astype(np.float32)


def neighbours(X: Matrix, k: int, rows: Labels | None = None, P: Products | None = None) -> tuple[Labels, Matrix]:
    """Return the nearest other rows of each row, nearest first, and their distances.

    As |x − y|² = |x|² + 2 (|y|²/2 − x·y), the bracket orders the y by their distance to x. A float32 product of
    matrices gives it, block by block; what is above the k-th smallest so far by more than rounding explains is out,
    and of the few that remain the distances are exact.

    Parameters
    ----------
    X : ndarray, shape (n, d)
    k : int
        At most n − 1 are returned.
    rows : ndarray of int, shape (m,), optional
        Those whose neighbours are wanted; default: all n.
    P : ndarray of float32, shape (n, d + 1), optional
        ``products(X)``, where it is there.

    Returns
    -------
    indices : ndarray, shape (m, min(k, n − 1))
        Equal distances in order of the index.
    distances : ndarray, same shape
    """
    rows, k = np.arange(len(X)) if rows is None else rows, max(min(k, len(X) - 1), 0)
    indices, distances = np.empty((len(rows), k), dtype=np.intp), np.empty((len(rows), k))
    if k > 0:
        P = products(X) if P is None else P
        for first in range(0, len(rows), ROWS):
            part = slice(first, first + ROWS)
            found = _candidates(X, P, rows[part], k)
            chosen, distances[part] = _closest(X, rows[part], found, k)
            indices[part] = found.columns[chosen]
    return indices, distances


def _candidates(X: Matrix, P: Products, rows: Labels, k: int) -> Candidates:
    """Return at most `ROWS` rows, 0 < k < n, each with its k nearest others and a few more."""
    slack = _slack(P, rows)
    found = limits = None
    for number, (first, V) in enumerate(_blocks(P, rows, k), start=1):
        if limits is None:
            limits = _above(np.partition(V, k, axis=1)[:, k] + slack)  # of k + 1: one may be the row itself
        hits = np.flatnonzero(limits[:, None] >= V)
        places, columns = np.divmod(hits, V.shape[1])
        new = Candidates(places, columns + first, V.ravel()[hits])
        new = new.take(rows[places] != new.columns)
        found = found.with_more(new) if found else new
        if number.bit_count() == 1 or len(found.places) > BLOCK_VALUES:  # 1, 2, 4, … blocks
            table = _by_place(found, len(rows))
            values = np.where(table < 0, np.inf, found.values[table])
            limits = _above(np.partition(values, k - 1, axis=1)[:, k - 1] + slack)
            found = found.take(found.values <= limits[found.places])
            if len(found.places) > BLOCK_VALUES:  # of many equal rows the first will do
                found = found.take(_closest(X, rows, found, k)[0].ravel())
    assert found is not None
    return found


def _blocks(P: Products, rows: Labels, k: int) -> Iterator[tuple[int, Products]]:
    """Yield the product of some rows with all, block by block, each with the number of its first column."""
    Q = -P[rows]
    Q[:, -1] = 1
    width = min(max(BLOCK_VALUES // len(rows), k + 1), len(P))
    V = np.empty(len(rows) * width, dtype=np.float32)
    for first in range(0, len(P), width):
        block = P[first : first + width]
        yield first, np.matmul(Q, block.T, out=V[: len(rows) * len(block)].reshape(len(rows), len(block)))


def _slack(P: Products, rows: Labels) -> Matrix:
    """Return for each row what rounding may add to the difference of two values (Higham 2002, 3.1)."""
    lengths, longest = np.sqrt(2.0 * P[rows, -1].astype(np.float64)), np.sqrt(2.0 * float(P[:, -1].max()))
    slack: Matrix = 2 * (P.shape[1] + 4) * ROUNDING * (lengths + longest) * longest + TINY
    return slack


def _above(values: Matrix) -> npt.NDArray[np.float32]:
    """Return for each value a float32 that is not below it."""
    return np.nextafter(values.astype(np.float32), np.float32(np.inf))


def _by_place(found: Candidates, n: int) -> Labels:
    """Return (n, most): the positions in `found` of each row's candidates, in their order, then −1."""
    order = np.argsort(found.places, kind="stable")
    counts = np.bincount(found.places, minlength=n)
    table = np.full((n, counts.max(initial=0)), -1)
    table[np.arange(table.shape[1]) < counts[:, None]] = order
    return table


def _closest(X: Matrix, rows: Labels, found: Candidates, k: int) -> tuple[Labels, Matrix]:
    """Return (n_rows, k): the positions in `found` of the k nearest of each row, by exact distance, and that."""
    table = _by_place(found, len(rows))
    pairs = [slice(first, first + PAIRS) for first in range(0, len(found.places), PAIRS)]
    exact = np.concatenate([distances_to(X[found.columns[one]], X[rows[found.places[one]]]) for one in pairs])
    distances = np.where(table < 0, np.inf, exact[table])
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(table, order, axis=1), np.take_along_axis(distances, order, axis=1)
