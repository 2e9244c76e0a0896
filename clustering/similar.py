"""The nearest tracks to one or several liked ones, by the run in force."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePath
from typing import NamedTuple

import numpy as np

from clustering.assign import assign, distances_to, score
from clustering.library import VARIOUS
from clustering.overview import title
from clustering.place import located
from clustering.runs import require_run_in_force
from clustering.space import Matrix
from core.errors import ConfigError
from core.names import path_text
from core.records import Run, Track
from core.store import Document, Store

MAX_DURATION_DIFFERENCE = 1.0
"""s"""
MAX_TIMBRE_DIFFERENCE = 5.0
"""rms of the differences of the 20 MFCC means; encodings of one recording stay below 3.6, others above 8.6."""
PER_ARTIST = 2
"""Tracks of one artist among the similar ones: a taste is more than an artist's catalogue."""
SHOWN = 5


@dataclass(frozen=True, slots=True)
class Similar:
    """A track near a liked one."""

    track_id: str
    title: str | None
    artist: str | None
    path: str
    cluster_id: str
    distance: float
    """Euclidean in the space, to the nearest liked track."""
    score: float
    """1 / (1 + distance / r), r the radius of that liked track's cluster."""


class Placed(NamedTuple):
    """A track in the space, with what tells its copies."""

    track: Document
    position: Matrix
    timbre: Matrix
    """(20,) MFCC means."""


def similar(
    store: Store, liked: Sequence[str], *, n: int = 10, copies: bool = False, per_artist: int = PER_ARTIST
) -> list[Similar]:
    """Return the `n` tracks nearest to any of the liked ones, nearest first.

    Parameters
    ----------
    store : Store
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
    run = require_run_in_force(store)
    library = list(_place(store, run))
    wanted = set(liked)
    chosen = [placed for placed in library if placed.track["track_id"] in wanted]
    if missing := wanted.difference(placed.track["track_id"] for placed in chosen):
        raise ConfigError(
            f"track {min(missing)} has no place in {run.run_id}: it is silent, too short, or must be extracted again"
        )
    others = [placed for placed in library if placed.track["track_id"] not in wanted]
    if not others:
        return []
    distances, scores = _nearest_liked(run, chosen, others)
    order = np.argsort(distances, kind="stable").tolist()
    different = order if copies else _without_copies(list(chosen), others, order)
    ranked = list(islice(_of_many_artists(others, different, per_artist) if per_artist else different, n))
    labels = assign(run.clusters, np.stack([other.position for other in others])).labels
    return [
        Similar(
            track_id=(track := others[i].track)["track_id"],
            title=track["title"],
            artist=track["artist"],
            path=track["source"]["path"],
            cluster_id=run.clusters[labels[i]].cluster_id,
            distance=float(distances[i]),
            score=float(scores[i]),
        )
        for i in ranked
    ]


def same_recording(a: Placed, b: Placed) -> bool:
    """Return whether two tracks are encodings of one recording, by duration and timbre."""
    if abs(a.track["duration"] - b.track["duration"]) > MAX_DURATION_DIFFERENCE:
        return False
    return bool(np.sqrt(np.square(a.timbre - b.timbre).mean()) <= MAX_TIMBRE_DIFFERENCE)


def one_artist(track: Document) -> str:
    """Return a name that is the same for all tracks of an artist, empty where none or many are meant."""
    artist = " ".join((track["artist"] or "").casefold().split())
    return "" if artist in VARIOUS else artist


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


def _place(store: Store, run: Run) -> Iterator[Placed]:
    for track, position in located(store, run, ["title", "artist", "duration", "source"]):
        yield Placed(track, position, np.array(track.pop("features")["mfcc"]["mean"]))


def _nearest_liked(run: Run, chosen: Sequence[Placed], others: Sequence[Placed]) -> tuple[Matrix, Matrix]:
    liked, X = (np.stack([placed.position for placed in group]) for group in (chosen, others))
    distances = np.stack([distances_to(X, position) for position in liked])
    closest = distances.argmin(axis=0)
    radii = np.array([cluster.radius for cluster in run.clusters])[assign(run.clusters, liked).labels]
    shortest = distances[closest, np.arange(len(X))]
    return shortest, score(shortest, radii[closest])


def _without_copies(kept: list[Placed], others: Sequence[Placed], order: Sequence[int]) -> Iterator[int]:
    for i in order:
        if not any(same_recording(others[i], known) for known in kept):
            kept.append(others[i])
            yield i


def _of_many_artists(others: Sequence[Placed], order: Iterable[int], per_artist: int) -> Iterator[int]:
    counts: Counter[str] = Counter()
    for i in order:
        artist = one_artist(others[i].track)
        if not artist or counts[artist] < per_artist:
            counts[artist] += 1
            yield i
