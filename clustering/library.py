"""The tracks that are clustered: of one feature set, neither silent nor too short."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from clustering.describe import sounds
from clustering.recordings import RECORDING, Recordings, recording
from clustering.space import Declared, Matrix, Row, Slot, Vectors, layouts, stack, vector
from core.errors import ConfigError, RecordError
from core.jobs import Progress, Watch
from core.names import digest
from core.records import Group, Track
from core.store import Document, Store

log = logging.getLogger(__name__)

UNCLUSTERABLE = frozenset({"silent", "too_short"})
"""Flags of tracks that have no place in the space."""
TELL_EVERY = 500


@dataclass(frozen=True, slots=True)
class Library:
    """A copy of what is clustered; rows in order of the `track_id`."""

    revs: dict[str, int]
    """Track id → its revision, of the tracks that have a row."""
    vectors: Vectors
    sounds: Matrix
    """(n, n_scales), from `describe.sounds`."""
    recordings: Recordings
    metadata: list[Document]
    """What was asked for of each row's track."""
    input_digest: str
    unreadable: int
    """Tracks left out because their features do not fit this version."""

    @property
    def track_ids(self) -> list[str]:
        """The ids of the rows."""
        return list(self.revs)


def clusterable(store: Store, feature_set: str, fields: Sequence[str]) -> Iterator[Document]:
    """Stream the clusterable tracks in order of the `track_id`."""
    for track in store.scan(Track, fields=[*fields, "flags"], where={"feature_set": feature_set}):
        if UNCLUSTERABLE.isdisjoint(track["flags"]):
            yield track


def digest_of(revs: Mapping[str, int]) -> str:
    """Return the digest of the sorted (track_id, rev)."""
    return digest("\n".join(f"{track_id} {rev}" for track_id, rev in sorted(revs.items())).encode())


def current_revs(store: Store, feature_set: str) -> dict[str, int]:
    """Return the revision of every clusterable track, without reading its features."""
    return {track["track_id"]: track["rev"] for track in clusterable(store, feature_set, ["track_id", "rev"])}


def row_of(track: Document, slots: Mapping[str, Sequence[Slot]]) -> Row | None:
    """Return a track's values of each group; None, and a warning, where they do not fit this version."""
    try:
        return {name: vector(track, group) for name, group in slots.items()}
    except RecordError as error:
        log.warning("left out: %s", error)
        return None


def read_library(
    store: Store,
    feature_set: str,
    groups: Iterable[Declared | Group],
    total: int,
    progress: Watch,
    *,
    fields: Sequence[str] = (),
) -> Library:
    """Read the clusterable tracks once, with the columns of some groups; `total` is how many there are.

    Raises
    ------
    ConfigError
        If none has a vector.
    """
    slots, rows, heard, recordings, metadata = layouts(groups), [], [], [], []
    read: dict[str, int] = {}
    placed: dict[str, int] = {}
    for track in clusterable(store, feature_set, ["track_id", "rev", "features", "duration", "artist", *fields]):
        read[track["track_id"]] = track["rev"]
        if row := row_of(track, slots):
            placed[track["track_id"]] = track["rev"]
            rows.append(row)
            heard.append(sounds(track["features"]))
            recordings.append(recording(track))
            metadata.append({field: track[field] for field in fields})
        if len(read) % TELL_EVERY == 0 and len(read) < total:
            progress(Progress("read", len(read), total, len(read) - len(placed)))
    if not placed:
        raise ConfigError(f"{store.url}: no track has features that fit; run `murmur run AUDIO_DIR`")
    progress(Progress("read", len(read), len(read), len(read) - len(placed)))
    return Library(
        placed,
        stack(rows),
        np.array(heard),
        np.array(recordings, dtype=RECORDING),
        metadata,
        digest_of(read),
        len(read) - len(placed),
    )
