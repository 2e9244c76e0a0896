"""How the clusters came to be what they are: the runs in their order, and what moved between two of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from clustering.members import members, number
from clustering.runs import require_run
from core.records import Lineage, Run
from core.store import Store


@dataclass(frozen=True, slots=True)
class Comparison:
    """What moved between two runs; shares are of the tracks that are in both."""

    before: str
    after: str
    pairs: list[tuple[str, str, int]]
    """Cluster before, cluster after, and how many tracks went from the one to the other."""
    both: int
    """Tracks that are in both."""
    stayed: float
    """Share of the tracks whose cluster has the same id in both."""
    ari: float
    """Adjusted Rand index (Hubert & Arabie 1985): 1 for the same groups, whatever their ids."""
    joined: int
    """Tracks that are in the second only."""
    left: int
    """Tracks that are in the first only."""


def history(store: Store) -> list[dict[str, Any]]:
    """Return the complete runs, oldest first: id, time, numbers of tracks and clusters, and the `Lineage`."""
    fields = ["run_id", "created_at", "n_tracks", "n_clusters"]
    runs = store.scan(Run, fields=[*fields, "lineage"], where={"complete": True})
    return [
        {name: run[name] for name in fields} | Lineage.from_document(run.get("lineage", {})).model_dump()
        for run in runs
    ]


def compare(store: Store, before: str, after: str) -> Comparison:
    """Return what moved between two runs, of which the assignments may no longer be kept.

    Raises
    ------
    ConfigError
        If one of them is unknown, or neither its assignments nor any track of its feature set are left.
    """
    from sklearn.metrics import adjusted_rand_score

    old, new = (members(store, require_run(store, run_id)) for run_id in (before, after))
    both = sorted(old.keys() & new.keys())
    here, there = np.array([old[one] for one in both]), np.array([new[one] for one in both])
    found, counts = np.unique(np.stack([here, there]), axis=1, return_counts=True)
    pairs = [(str(a), str(b), int(n)) for a, b, n in zip(*found, counts, strict=True)]
    return Comparison(
        before=before,
        after=after,
        pairs=sorted(pairs, key=lambda pair: (number(pair[0]), -pair[2], number(pair[1]))),
        both=len(both),
        stayed=float(np.mean(here == there)) if both else 0.0,
        ari=float(adjusted_rand_score(here, there)) if both else 0.0,
        joined=len(new) - len(both),
        left=len(old) - len(both),
    )
