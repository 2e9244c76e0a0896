"""The tracks that are clustered: of one feature set, neither silent nor too short."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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
READ = ("track_id", "rev", "features", "duration", "artist")
"""What a library reads of each track, beside its metadata."""
TELL_EVERY = 500


@dataclass(frozen=True, slots=True)
class Library:
    """What is known of a copy of what is clustered, beside its vectors; rows in order of the `track_id`."""

    revs: dict[str, int]
    """Track id → its revision, of the tracks that have a row."""
    sounds: Matrix
    """(n, n_scales), from `describe.sounds`."""
    recordings: Recordings
    metadata: Sequence[Document]
    """What was asked for of each row's track."""
    input_digest: str
    unreadable: int
    """Tracks left out because their features do not fit this version."""
    n_distinct: int
    """How many rows differ in any value of their vectors."""

    @property
    def track_ids(self) -> list[str]:
        """The ids of the rows."""
        return list(self.revs)


@dataclass(frozen=True, slots=True)
class LoadedLibrary(Library):
    """A library with its vectors in the memory of this process."""

    vectors: Vectors


def clusterable(
    store: Store, feature_set: str, fields: Sequence[str], *, after: str = "", until: str | None = None
) -> Iterator[Document]:
    """Stream the clusterable tracks in order of the `track_id`, or those above one up to another."""
    where = {"feature_set": feature_set}
    for track in store.scan(Track, fields=[*fields, "flags"], where=where, after=after, until=until):
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


def fits(track: Document, slots: Mapping[str, Sequence[Slot]]) -> bool:
    """Return whether a track's values of each group fit this version, without a word where they do not."""
    try:
        for group in slots.values():
            vector(track, group)
    except RecordError:
        return False
    return True


def read_library(
    store: Store,
    feature_set: str,
    groups: Iterable[Declared | Group],
    total: int,
    progress: Watch,
    *,
    fields: Sequence[str] = (),
) -> LoadedLibrary:
    """Read the clusterable tracks once, with the columns of some groups; `total` is how many there are.

    Raises
    ------
    ConfigError
        If none has a vector.
    """
    slots, rows, heard, recordings, metadata = layouts(groups), [], [], [], []
    read: dict[str, int] = {}
    placed: dict[str, int] = {}
    for track in clusterable(store, feature_set, [*READ, *fields]):
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
        raise nothing_fits(store)
    unreadable = len(read) - len(placed)
    progress(Progress("read", len(read), len(read), unreadable))
    vectors = stack(rows)
    return LoadedLibrary(
        revs=placed,
        sounds=np.array(heard),
        recordings=np.array(recordings, dtype=RECORDING),
        metadata=metadata,
        input_digest=digest_of(read),
        unreadable=unreadable,
        n_distinct=count_distinct(vectors),
        vectors=vectors,
    )


def count_distinct(vectors: Vectors) -> int:
    """Return how many tracks differ in any value of any group."""
    return len({vectors_digest(rows) for rows in zip(*vectors.values(), strict=True)})


def vectors_digest(rows: Iterable[npt.NDArray[np.float32]]) -> str:
    """Return what is equal for tracks whose vectors, one of each group, are equal."""
    return digest(b"".join(row.tobytes() for row in rows))


def nothing_fits(store: Store) -> ConfigError:
    """Return the error of a library without a vector."""
    return ConfigError(f"{store.url}: no track has features that fit; run `murmur run AUDIO_DIR`")
