"""What the clusters of the run in force hold: sizes, genres, most typical tracks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from clustering.runs import require_run_in_force
from core.names import Names
from core.records import Assignment, Description, Track
from core.store import Document, Store

TYPICAL = 3
"""How many tracks stand for a cluster: those nearest to its centre."""


@dataclass(frozen=True, slots=True)
class Overview:
    """One cluster as a person meets it."""

    cluster_id: str
    size: int
    genres: dict[str, int]
    """Genre → number of members, tracks without one left out."""
    typical: list[str]
    """Titles of the tracks nearest to the centre."""
    typical_id: str
    """The `track_id` of the nearest of them."""
    topic: str
    description: dict[str, Any] | None
    """As in the run; None in a run of an older version."""


def overview(store: Store, names: Names) -> list[Overview]:
    """Return the clusters of the run in force, in order of their ids.

    Raises
    ------
    ConfigError
        If no run has been published yet.
    """
    run = require_run_in_force(store)
    tracks = {
        track["track_id"]: track
        for track in store.scan(Track, fields=("track_id", "title", "artist", "genre", "source"))
    }
    members: dict[str, list[tuple[float, str]]] = {cluster.cluster_id: [] for cluster in run.clusters}
    for found in store.scan(Assignment, fields=("cluster_id", "distance", "track_id"), prefix=f"{run.run_id}/"):
        members[found["cluster_id"]].append((found["distance"], found["track_id"]))
    descriptions = {one.cluster_id: one.description for one in run.clusters}
    return [
        _overview(cluster_id, sorted(near), tracks, names.cluster(cluster_id), descriptions[cluster_id])
        for cluster_id, near in sorted(members.items())
        if near
    ]


def _overview(
    cluster_id: str,
    near: list[tuple[float, str]],
    tracks: dict[str, Document],
    topic: str,
    description: Description | None,
) -> Overview:
    members = [tracks[track_id] for _, track_id in near if track_id in tracks]
    return Overview(
        cluster_id=cluster_id,
        size=len(near),
        genres=dict(Counter(track["genre"] for track in members if track["genre"])),
        typical=list(dict.fromkeys(map(title, members)))[:TYPICAL],
        typical_id=near[0][1],
        topic=topic,
        description=description.model_dump() if description else None,
    )


def title(track: Document) -> str:
    """Return what a person would call a track: its title, or the name of its file."""
    return track["title"] or PurePath(track["source"]["path"]).stem
