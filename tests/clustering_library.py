"""Synthetic libraries for the tests of the clustering: kinds of tracks around points of a latent space."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from typing import Any

import numpy as np

from clustering import cluster
from clustering.cluster import ClusterReport
from clustering.space import Vectors, declare, layouts
from core.config import Config, Groups
from core.records import Assignment, Features, Source, Track
from core.sqlite_bus import SQLiteBus
from core.store import Store

GROUPS = declare(Groups())
LATENT = 12


def vectors(n: int, kinds: int = 4, *, seed: int = 0, spread: float = 3.0) -> tuple[Vectors, np.ndarray]:
    """Return the vectors of n tracks and the kind of each; below a spread of 1 the kinds overlap."""
    rng = np.random.default_rng(seed)
    kind = np.arange(n) % kinds
    rows: Vectors = {}
    for declared in GROUPS:
        width = len(declared.columns)
        latent = (spread * rng.normal(size=(kinds, LATENT)))[kind] + rng.normal(size=(n, LATENT))
        values = latent @ rng.normal(size=(LATENT, width)) + rng.normal(size=(n, width))
        rows[declared.name] = (values * rng.uniform(0.1, 1000, size=width)).astype(np.float32)
    return rows, kind


def features(row: dict[str, np.ndarray]) -> Features:
    """Return one track's vectors as a record names them."""
    named: Features = {}
    for name, slots in layouts(GROUPS).items():
        ends = np.cumsum([slot.size for slot in slots])
        for slot, values in zip(slots, np.split(row[name], ends[:-1]), strict=True):
            named.setdefault(slot.block, {})[slot.statistic] = [float(value) for value in values.astype(float)]
    return named


def track(track_id: str, named: Features, **changed: object) -> Track:
    source = Source(
        path=f"/music/{track_id}.flac",
        size=1,
        mtime_ns=1,
        digest=track_id,
        codec="flac",
        sample_rate=44_100,
        channels=2,
        decoder="soundfile 0.13",
        librosa="0.11.0",
    )
    fields = {"rev": 1, "title": f"Title of {track_id}", "duration": 180.0, "feature_set": Config().feature_set}
    return Track(track_id=track_id, source=source, features=named, **(fields | changed))


def tracks(n: int, kinds: int = 4, *, seed: int = 0, spread: float = 3.0, **changed: object) -> list[Track]:
    """Return n tracks ``t000``, ``t001``, … of as many kinds, in turn, no two of one duration."""
    rows, _ = vectors(n, kinds, seed=seed, spread=spread)
    named = [features({name: group[i] for name, group in rows.items()}) for i in range(n)]
    return [track(f"t{i:03d}", one, **({"duration": 100.0 + 3 * i} | changed)) for i, one in enumerate(named)]


def cluster_them(config: Config, store: Store, **options: Any) -> ClusterReport:
    """Run the job, with a bus on the store's own file."""
    with closing(SQLiteBus(store.url)) as bus:
        return cluster.run(config, store=store, bus=bus, **options)


def partition(labels: Iterable[object]) -> set[frozenset[int]]:
    """Return the sets of rows that have the same label."""
    rows: dict[object, set[int]] = {}
    for row, label in enumerate(labels):
        rows.setdefault(label, set()).add(row)
    return {frozenset(members) for members in rows.values()}


def assigned(store: Store, run_id: str) -> dict[str, str]:
    """Return track id → cluster id of a run."""
    return {found["track_id"]: found["cluster_id"] for found in store.scan(Assignment, prefix=f"{run_id}/")}
