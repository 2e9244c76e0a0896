"""What the clusters of the run in force hold now: sizes, genres, most typical tracks."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from clustering.assign import home
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
    """Or ``unclustered``, for the tracks that are too far from every centre."""
    size: int
    genres: dict[str, int]
    """Genre → number of members, tracks without one left out."""
    typical: list[str]
    """Titles of the tracks nearest to the centre."""
    typical_id: str
    """The `track_id` of the nearest of them."""
    topic: str
    description: dict[str, Any] | None
    """As in the run; None for what is unclustered, and in a run of an older version."""


def overview(store: Store, names: Names) -> list[Overview]:
    """Return the clusters of the run in force that have members, in order of their ids; what is unclustered comes last.

    Members are as on the topics: tracks that are gone since are in no cluster.

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
    clusters = {cluster.cluster_id: cluster for cluster in run.clusters}
    members: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for found in store.scan(Assignment, fields=("cluster_id", "distance", "track_id"), prefix=f"{run.run_id}/"):
        if found["track_id"] in tracks:
            cluster_id = home(clusters[found["cluster_id"]], found["distance"])
            members[cluster_id].append((found["distance"], found["track_id"]))
    descriptions = {cluster_id: cluster.description for cluster_id, cluster in clusters.items()}
    return [
        _overview(
            cluster_id,
            [tracks[track_id] for _, track_id in sorted(near)],
            names.cluster(cluster_id),
            descriptions.get(cluster_id),
        )
        for cluster_id, near in sorted(members.items())
    ]


def _overview(cluster_id: str, nearest_first: list[Document], topic: str, description: Description | None) -> Overview:
    return Overview(
        cluster_id=cluster_id,
        size=len(nearest_first),
        genres=dict(Counter(track["genre"] for track in nearest_first if track["genre"])),
        typical=list(dict.fromkeys(map(title, nearest_first)))[:TYPICAL],
        typical_id=nearest_first[0]["track_id"],
        topic=topic,
        description=description.model_dump() if description else None,
    )


def title(track: Document) -> str:
    """Return what a person would call a track: its title, or the name of its file."""
    return track["title"] or PurePath(track["source"]["path"]).stem
