"""Cluster ids: ``c01``, ``c02``, …; a cluster keeps its id from run to run, and none is ever given again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count

import numpy as np

from clustering.assign import Labels


def identify(track_ids: Sequence[str], labels: Labels, former: Mapping[str, str], highest: int) -> list[str]:
    """Return the id of each new cluster.

    A new cluster takes the id of the former one with which it shares members, where the assignment that
    keeps the most tracks under their id says so (Kuhn 1955); the others get new ids, the largest first.

    Parameters
    ----------
    track_ids : sequence of str
    labels : ndarray of int, shape (n_tracks,)
        New clusters 0 … k − 1, none without members.
    former : mapping of str to str
        Track id → cluster id in the former run; empty for the first.
    highest : int
        The highest number that was ever in an id.
    """
    from scipy.optimize import linear_sum_assignment

    sizes = np.bincount(labels)
    rows = {cluster_id: row for row, cluster_id in enumerate(sorted(set(former.values())))}
    shared = np.zeros((len(rows), len(sizes)), dtype=int)
    for track_id, label in zip(track_ids, labels, strict=True):
        if track_id in former:
            shared[rows[former[track_id]], label] += 1
    old, new = linear_sum_assignment(shared, maximize=True)
    former_ids = list(rows)
    ids = {int(j): former_ids[i] for i, j in zip(old, new, strict=True) if shared[i, j]}
    numbers = count(highest + 1)
    for label in np.argsort(-sizes, kind="stable").tolist():
        if label not in ids:
            ids[label] = f"c{next(numbers):02d}"
    return [ids[label] for label in range(len(sizes))]


def number(cluster_id: str) -> int:
    """Return the number in an id."""
    return int(cluster_id[1:])
