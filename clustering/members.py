"""Who was where: the members of a run's clusters, from the store or assigned anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from clustering.assign import Labels, assign
from clustering.library import read_library
from clustering.space import transform
from core.jobs import ignore
from core.records import Assignment, Run
from core.store import Store

Counts = npt.NDArray[np.int64]


class Former(NamedTuple):
    """The clusters of an earlier run, as the rows of a library know them."""

    ids: list[str]
    """In order of their numbers."""
    labels: Labels
    """(n,) index of each row's former cluster, −1 for a row that was in none."""
    left: int
    """How many members have no row."""

    def shared(self, labels: Labels) -> Counts:
        """Return how many rows each former cluster has in common with each of the clusters 0 … `labels.max()`."""
        counts = np.zeros((len(self.ids), labels.max() + 1), dtype=np.int64)
        known = self.labels >= 0
        np.add.at(counts, (self.labels[known], labels[known]), 1)
        return counts


def members(store: Store, run: Run) -> dict[str, str]:
    """Return track id → cluster id; where the assignments are no longer kept, the tracks there are, assigned anew.

    Raises
    ------
    ConfigError
        If they are no longer kept, and no track of the run's feature set is left.
    """
    ids = [cluster.cluster_id for cluster in run.clusters]
    found = store.scan(Assignment, fields=["track_id", "cluster_id"], prefix=f"{run.run_id}/")
    kept = {assignment["track_id"]: assignment["cluster_id"] for assignment in found}
    if not kept:
        library = read_library(store, run.feature_set, run.space, 0, ignore)
        labels = assign(run.clusters, transform(run.space, library.vectors)).labels
        kept = {track_id: ids[label] for track_id, label in zip(library.track_ids, labels, strict=True)}
    return {track_id: cluster_id for track_id, cluster_id in kept.items() if cluster_id in ids}


def recall(track_ids: Sequence[str], members: Mapping[str, str]) -> Former:
    """Return what the rows of a library know of an earlier run, of which `members` is track id → cluster id."""
    ids = sorted(set(members.values()), key=number)
    places = {cluster_id: place for place, cluster_id in enumerate(ids)}
    labels = np.array([places[members[one]] if one in members else -1 for one in track_ids], dtype=np.intp)
    return Former(ids, labels, len(members) - int((labels >= 0).sum()))


def number(cluster_id: str) -> int:
    """Return the number in an id."""
    return int(cluster_id[1:])
