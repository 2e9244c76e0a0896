"""The nearest tracks to one or several liked ones, by the run in force."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePath

import numpy as np

from clustering.assign import assign, home
from clustering.overview import title
from clustering.place import read_places
from clustering.ranking import recommend
from clustering.recordings import PER_ARTIST
from clustering.runs import require_run_in_force
from core.errors import ConfigError
from core.names import Names, path_text
from core.records import Track
from core.store import Store

SHOWN = 5


@dataclass(frozen=True, slots=True)
class Similar:
    """A track near a liked one."""

    track_id: str
    title: str | None
    artist: str | None
    path: str
    cluster_id: str
    """Where it is published: `UNCLUSTERED` if it is too far from every centre."""
    topic: str
    distance: float
    """Euclidean in the space, to the liked track that brings it."""
    score: float
    """As that of a `Neighbour` of that track."""


def similar(
    store: Store,
    names: Names,
    liked: Sequence[str],
    *,
    n: int = 10,
    copies: bool = False,
    per_artist: int = PER_ARTIST,
) -> list[Similar]:
    """Return the `n` tracks that `ranking.recommend` recommends to the liked ones, the best first.

    Parameters
    ----------
    store : Store
    names : Names
        Of the topics.
    liked : sequence of str
        Track ids; see `resolve`.
    n : int
        How many at most.
    copies : bool
        Whether other encodings of a liked recording, or of one that is in the result, count as well.
    per_artist : int
        How many tracks of one artist at most; 0 for any number. A missing artist or "Various" is not one artist.

    Raises
    ------
    ConfigError
        If no run is in force, or a liked track has no place in its space.
    """
    places = read_places(store, require_run_in_force(store))
    if missing := [track_id for track_id in sorted(set(liked)) if track_id not in places.rows]:
        run_id = places.run.run_id
        raise ConfigError(
            f"track {missing[0]} has no place in {run_id}: it is silent, too short, or must be extracted again"
        )
    taste = np.array([[places.rows[track_id] for track_id in dict.fromkeys(liked)]])
    n = min(n, len(places.ids))
    near = recommend(places.points, taste, n, copies=copies, per_artist=per_artist)
    rows = near.indices[near.indices >= 0]
    there = assign(places.run.clusters, places.points.X[rows])
    found = []
    for i, row in enumerate(rows):
        if track := store.get(Track, places.ids[row]):
            cluster_id = home(places.run.clusters[there.labels[i]], float(there.distances[i]))
            found.append(
                Similar(
                    track_id=track.track_id,
                    title=track.title,
                    artist=track.artist,
                    path=track.source.path,
                    cluster_id=cluster_id,
                    topic=names.cluster(cluster_id),
                    distance=float(near.distances[0, i]),
                    score=float(near.scores[0, i]),
                )
            )
    return found


def resolve(store: Store, text: str) -> str:
    """Return the id of the track that `text` names: an id, a path, a file's name, a title, or a part of one title only.

    A track without a title goes by the name of its file.

    Raises
    ------
    ConfigError
        If there is no such track, or more than one; then the candidates are named.
    """
    path, wanted = path_text(os.path.abspath(text)), text.casefold()  # noqa: PTH100  # as paths are stored: links stay
    exact: dict[str, str] = {}
    parts: dict[str, str] = {}
    for track in store.scan(Track, fields=["track_id", "title", "source", "copies"]):
        track_id, known = track["track_id"], title(track)
        if track_id == text or path in [file["path"] for file in (track["source"], *track["copies"])]:
            return str(track_id)
        if wanted in (known.casefold(), PurePath(track["source"]["path"]).name.casefold()):
            exact[track_id] = known
        elif wanted in known.casefold():
            parts[track_id] = known
    found = exact or parts
    if len(found) == 1:
        return next(iter(found))
    if not found and not store.count(Track):
        raise ConfigError(f"{store.url}: no tracks yet; run `murmur run AUDIO_DIR` first")
    if not found:
        raise ConfigError(f"no track is named {text!r}: give an id, a path, or a part of a title")
    shown = ", ".join(f"{track_id} ({name})" for track_id, name in islice(found.items(), SHOWN))
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    raise ConfigError(f"{text!r} names {len(found)} tracks: {shown}{more}; give an id")
