"""The clustering space: groups of statistics, standardised, clipped, rotated and weighed.

A fitted space is a list of `core.records.Group`: it alone, with numpy, places a new track.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from core.blocks import BLOCKS
from core.config import Groups
from core.errors import RecordError
from core.records import Group

Matrix = npt.NDArray[np.float64]
Vectors = dict[str, npt.NDArray[np.float32]]
"""Group name → (n_tracks, n_columns); a row of NaN stays out of the group."""

Row = dict[str, npt.NDArray[np.float32]]
"""Group name → (n_columns,): one track's vectors."""

BLOCK_ROWS = 4096
NULL_VARIANCE = 1e-12
"""Components below this share of a group's variance are rounding noise and left out."""
KEPT_OUT_BY = {"fluctuation": "no_rhythm"}
"""Block → the flag of tracks that lack it."""


class Declared(NamedTuple):
    """A group before it is fitted."""

    name: str
    columns: list[str]
    """``block.statistic[i]``."""
    weight: float
    clip: float = 2.0
    n_components: int = 30


class Moments(NamedTuple):
    """What the fit needs to know of some rows; the moments of parts merge into those of the whole."""

    n: int
    mean: Matrix
    """(d,)"""
    scatter: Matrix
    """(d, d): sum of the products of the deviations from `mean`."""


class Slot(NamedTuple):
    """Where a run of columns is found in a track's features."""

    block: str
    statistic: str
    size: int


def declare(groups: Groups) -> list[Declared]:
    """Return the configured groups, those of weight 0 left out."""
    return [
        Declared(name, columns(group.blocks), group.weight, group.clip, group.components)
        for name, group in groups
        if group.weight
    ]


def columns(blocks: Sequence[str]) -> list[str]:
    """Return the names of the values of some blocks, ``block.statistic[i]``."""
    slots = ((block, statistic) for block in blocks for statistic in BLOCKS[block].statistics)
    return [f"{block}.{statistic}[{i}]" for block, statistic in slots for i in range(BLOCKS[block].rows)]


def layout(names: Sequence[str]) -> tuple[Slot, ...]:
    """Return where columns named as by `columns` are found in a track's features."""
    runs = [(name.split("."), len(list(run))) for name, run in groupby(names, lambda name: name.partition("[")[0])]
    return tuple(Slot(block, statistic, size) for (block, statistic), size in runs)


def layouts(groups: Iterable[Declared | Group]) -> dict[str, tuple[Slot, ...]]:
    """Return the layout of each group, declared or fitted."""
    return {group.name: layout(group.columns) for group in groups}


def vector(track: Mapping[str, Any], slots: Sequence[Slot]) -> npt.NDArray[np.float32]:
    """Return one group's values of a `Track` document, NaN if a flag keeps the track out.

    Raises
    ------
    RecordError
        If the features lack a statistic or hold another number of values.
    """
    if any(KEPT_OUT_BY.get(slot.block) in track["flags"] for slot in slots):
        return np.full(sum(slot.size for slot in slots), np.nan, dtype=np.float32)
    values: list[float] = []
    for block, statistic, size in slots:
        found = track["features"].get(block, {}).get(statistic, ())
        if len(found) != size:
            raise RecordError(
                f"track {track['track_id']}: {block}.{statistic} has {len(found)} values instead of {size}; "
                "it was not written by this version of `murmur extract`"
            )
        values += found
    return np.array(values, dtype=np.float32)


def stack(rows: Sequence[Row]) -> Vectors:
    """Return the vectors of one track or more as matrices."""
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def fit_group(declared: Declared, moments_of: Callable[[Callable[[Matrix], Matrix]], Moments]) -> Group:
    """Fit one group: standardise (ddof 0), clip, PCA, unit total variance.

    Parameters
    ----------
    declared : Declared
        The group's columns and settings.
    moments_of : callable
        Takes a function of rows and returns the `Moments` of its values over all rows that are in
        the group, wherever they are kept; it is called twice.

    Returns
    -------
    Group
        With min(n_components, d, n − 1) components at most, the largest loading of each positive.
        A constant column (std below 1e-8·max(1, |mean|)) has std 0. Fewer than two rows, or rows
        that are all equal, leave no component: the group adds no dimension.
    """
    raw = moments_of(np.positive)
    mean, std = raw.mean, np.sqrt(np.diag(raw.scatter) / max(raw.n, 1))
    std[std < 1e-8 * np.maximum(1.0, np.abs(mean))] = 0.0
    clipped = moments_of(partial(standardise, mean=mean, std=std, clip=declared.clip))
    variances, loadings = np.linalg.eigh(clipped.scatter / max(clipped.n, 1))
    most = max(min(declared.n_components, len(mean), raw.n - 1), 0)
    kept = np.arange(len(mean))[::-1][:most]
    kept = kept[variances[kept] > NULL_VARIANCE * max(variances.sum(), NULL_VARIANCE)]
    components = loadings[:, kept].T
    signs = np.sign(components[np.arange(len(kept)), np.abs(components).argmax(axis=1)])
    return Group(
        name=declared.name,
        weight=declared.weight,
        clip=declared.clip,
        columns=declared.columns,
        mean=mean.tolist(),
        std=std.tolist(),
        pca_mean=clipped.mean.tolist(),
        components=(components * signs[:, None]).tolist(),
        scale=float(np.sqrt(variances[kept].sum())) if len(kept) else 1.0,
    )


def standardise(X: npt.NDArray[np.floating[Any]], mean: Matrix, std: Matrix, clip: float) -> Matrix:
    """Return ``(X − mean) / std`` within ±`clip`, 0 in the columns whose `std` is 0."""
    known = std > 0
    Z: Matrix = np.clip((X - mean) / np.where(known, std, 1.0), -clip, clip) * known
    return Z


def moments(X: npt.NDArray[np.floating[Any]]) -> Moments:
    """Return the moments of (n, d) rows, in float64."""
    mean = X.mean(axis=0, dtype=np.float64) if len(X) else np.zeros(X.shape[1])
    deviations = X - mean
    return Moments(len(X), mean, deviations.T @ deviations)


def merged(parts: Iterable[Moments]) -> Moments:
    """Return the moments of all parts' rows together (Chan, Golub & LeVeque 1983)."""
    whole, *rest = parts
    for part in rest:
        n = max(whole.n + part.n, 1)
        step = part.mean - whole.mean
        whole = Moments(
            whole.n + part.n,
            whole.mean + step * (part.n / n),
            whole.scatter + part.scatter + np.outer(step, step) * (whole.n * part.n / n),
        )
    return whole


def moments_by_block(X: npt.NDArray[np.float32], function: Callable[[Matrix], Matrix]) -> Moments:
    """Return the moments of `function` of the rows of X that are no NaN, in bounded memory."""
    return merged(moments(function(present(X[rows]))) for rows in blocks(len(X)))


def present(X: npt.NDArray[np.float32]) -> Matrix:
    """Return the rows that are in the group, float64."""
    return X[~np.isnan(X[:, 0])].astype(np.float64)


def blocks(n: int) -> Iterator[slice]:
    """Yield the places of n rows in blocks, an empty one where there are none."""
    for first in range(0, max(n, 1), BLOCK_ROWS):
        yield slice(first, first + BLOCK_ROWS)


def coordinates(group: Group, X: npt.NDArray[np.float32]) -> Matrix:
    """Return the (n, n_components) coordinates of one group, 0 for rows that stay out of it."""
    mean, std, pca_mean = (np.array(values) for values in (group.mean, group.std, group.pca_mean))
    rotation = np.array(group.components).reshape(-1, len(mean)).T * (group.weight / group.scale)
    Z = np.vstack([(standardise(X[rows], mean, std, group.clip) - pca_mean) @ rotation for rows in blocks(len(X))])
    Z[np.isnan(X[:, 0])] = 0.0
    return Z


def transform(space: Sequence[Group], vectors: Mapping[str, npt.NDArray[np.float32]]) -> Matrix:
    """Return the (n_tracks, n_dimensions) coordinates in a fitted space, its groups side by side."""
    return np.hstack([coordinates(group, vectors[group.name]) for group in space])
