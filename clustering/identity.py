"""Cluster ids: ``c01``, ``c02``, …; a cluster keeps its id from run to run, and none is ever given again."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import numpy as np

from clustering.assign import Labels
from clustering.members import Counts, Former, number
from clustering.space import Matrix
from core.records import Lineage

SURVIVAL = 0.5
"""A cluster lives on where at least this share of its members that are still there stay together.

The overlap and its threshold are those of MONIC (Spiliopoulou, Ntoutsi, Theodoridis & Schult 2006): below it, most
members of the former cluster would find themselves under an id that they never had.
"""
PART = 0.3
"""A cluster is split between clusters that each have at least this share of its members (MONIC, as above)."""


def identify(former: Former, labels: Labels, gaps: Matrix, highest: int) -> list[str]:
    """Return the id of each new cluster.

    A new cluster takes the id of a former one that lives on in it, where the assignment that keeps the most
    tracks under their id says so (Kuhn 1955), and of two that keep as many the one with the nearer centres. The
    others get new ids, the largest first.

    Parameters
    ----------
    former : Former
    labels : ndarray of int, shape (n_tracks,)
        New clusters 0 … k − 1, none without members.
    gaps : ndarray, shape (n_former, k)
        Distances from the former clusters' means to the new centres, in the new space.
    highest : int
        The highest number that was ever in an id.
    """
    from scipy.optimize import linear_sum_assignment

    shared = former.shared(labels)
    alive = (shared > 0) & (shared >= SURVIVAL * shared.sum(axis=1, keepdims=True))
    nearness = 1 - gaps / max(gaps.max(initial=0), np.finfo(float).tiny)
    pairs = linear_sum_assignment(alive * (shared + nearness / (len(gaps) + 1)), maximize=True)
    ids = {int(new): former.ids[old] for old, new in zip(*pairs, strict=True) if alive[old, new]}
    numbers = count(highest + 1)
    sizes = np.bincount(labels)
    for label in np.argsort(-sizes, kind="stable").tolist():
        if label not in ids:
            ids[label] = f"c{next(numbers):02d}"
    return [ids[label] for label in range(len(sizes))]


def trace(former: Former, labels: Labels, ids: Sequence[str], run_id: str | None) -> Lineage:
    """Return what became of the clusters of a former run.

    Parameters
    ----------
    former : Former
    labels : ndarray of int, shape (n_tracks,)
    ids : sequence of str
        Of the new clusters 0 … k − 1.
    run_id : str, optional
        Of the former run, None if there was none.
    """
    shared = former.shared(labels)
    sizes = shared.sum(axis=1)
    deaths = [old for old in former.ids if old not in ids]
    parts = {old: _most(ids, row, PART * row.sum()) for old, row in zip(former.ids, shared, strict=True)}
    whole = {new: _most(former.ids, column, SURVIVAL * sizes) for new, column in zip(ids, shared.T, strict=True)}
    stayed = sum(int(shared[former.ids.index(new), j]) for j, new in enumerate(ids) if new in former.ids)
    return Lineage(
        former=run_id,
        births=sorted(set(ids).difference(former.ids), key=number),
        deaths=deaths,
        successors={old: _most(ids, shared[former.ids.index(old)], 0) for old in deaths},
        splits={old: found for old, found in parts.items() if len(found) > 1},
        merges={new: whole[new] for new in sorted(whole, key=number) if len(whole[new]) > 1},
        stayed=stayed,
        moved=int(shared.sum()) - stayed,
        joined=int((former.labels < 0).sum()),
        left=former.left,
    )


def _most(ids: Sequence[str], counts: Counts, least: Matrix | float) -> dict[str, int]:
    """Return id → count, the most first, of those that are at least `least` and not 0."""
    chosen = np.flatnonzero((counts > 0) & (counts >= least))
    return {ids[i]: int(counts[i]) for i in sorted(chosen.tolist(), key=lambda i: (-counts[i], number(ids[i])))}
