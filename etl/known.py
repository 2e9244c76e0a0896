"""What is known of files from earlier runs: sent but not loaded yet, or in the store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePath
from typing import ClassVar, TypeVar

from pydantic import Field

from core.bus import Bus, Offsets, read_to_end
from core.errors import RecordError
from core.names import Names
from core.records import Failure, File, Record, Track
from core.store import Store
from etl.catalogue import Row
from etl.messages import decode
from etl.metadata import Metadata, plain

R = TypeVar("R", bound=Record)


class KnownSource(File):
    """The part of a `Source` that tells whether its file has changed."""

    digest: str
    row_digest: str | None = None


class KnownTrack(Record):
    """The part of a `Track` that tells whether it has changed: without `features`."""

    collection: ClassVar[str] = Track.collection

    track_id: str
    title: str | None = None
    artist: str | None = None
    album: str | None = None
    genre: str | None = None
    year: int | None = None
    extra: dict[str, str] = Field(default_factory=dict)
    duration: float
    feature_set: str
    source: KnownSource
    copies: list[File] = Field(default_factory=list)

    @property
    def key(self) -> str:
        """The `track_id`."""
        return self.track_id

    @property
    def row(self) -> Row | None:
        """The catalogue's row as far as the track tells; None if it never had one."""
        if self.source.row_digest is None:
            return None
        stem = plain(PurePath(self.source.path).stem)
        title = self.title if self.title != stem else None  # the file's name follows it
        metadata = Metadata(title, self.artist, self.album, self.genre, self.year, self.extra)
        track_id = None if self.track_id == self.source.digest else self.track_id
        return Row(track_id, metadata, self.source.row_digest)

    @property
    def paths(self) -> list[str]:
        """The source and the copies."""
        return list(self.stats)

    @property
    def stats(self) -> dict[str, tuple[int, int]]:
        """Size and modification time of the source and the copies, by path."""
        return {file.path: (file.size, file.mtime_ns) for file in (self.source, *self.copies)}


@dataclass(frozen=True, slots=True)
class Known:
    """The latest of everything."""

    tracks: dict[str, KnownTrack]
    """By `track_id`."""
    failures: dict[str, Failure]
    """By path digest."""
    unloaded: set[str]
    """The tracks whose latest version only the topic has."""
    start: Offsets
    """Where the topics go on beyond what is loaded."""


def read_known(names: Names, *, store: Store, bus: Bus) -> Known:
    """Read what is known: first what the loader has committed, then the topics beyond it, then the store.

    In this order nothing is missed while a loader runs: what it has committed is in the store.
    """
    start = bus.committed(names.load_group, [names.tracks, names.failed])
    tracks, unloaded = _latest(KnownTrack, [names.tracks], start, store, bus)
    failures, _ = _latest(Failure, [names.failed], start, store, bus)
    return Known(tracks, failures, unloaded, start)


def read_failures(names: Names, *, store: Store, bus: Bus) -> list[Failure]:
    """Return the failures that are known, in order of their paths; in the way of `read_known`."""
    topics = {names.failed}.intersection(bus.topics())
    start = bus.committed(names.load_group, topics)
    failures, _ = _latest(Failure, topics, start, store, bus)
    return sorted(failures.values(), key=lambda failure: failure.path)


def with_features(known: Known, track_ids: Iterable[str], names: Names, *, store: Store, bus: Bus) -> Iterator[Track]:
    """Yield whole tracks, in any order; those that have changed since `known` was read are left out."""
    wanted = {track_id: known.tracks[track_id] for track_id in track_ids}
    if not known.unloaded.isdisjoint(wanted):
        for message in read_to_end(bus, [names.tracks], known.start):
            before = wanted.get((message.key or b"").decode("utf-8", "replace"))
            with suppress(RecordError):
                track = decode(Track, message).record if before and message.value else None
                if track and before and track.rev == before.rev:
                    del wanted[track.track_id]
                    yield track
    for before in wanted.values():
        track = store.get(Track, before.track_id)
        if track and track.rev == before.rev:
            yield track


def _latest(
    kind: type[R], topics: Iterable[str], start: Offsets, store: Store, bus: Bus
) -> tuple[dict[str, R], set[str]]:
    """Return the latest record of each key, deleted ones left out, and the keys that are not loaded yet."""
    latest: dict[str, tuple[int, R | None]] = {}
    for message in read_to_end(bus, topics, start):
        with suppress(RecordError):  # `load` makes a dead letter of it
            key, rev, record = decode(kind, message)
            if rev > latest.get(key, (-1, None))[0]:
                latest[key] = rev, record
    unloaded = set(latest)
    for document in store.scan(kind, fields=list(kind.model_fields)):
        record = kind.from_document(document)
        if record.rev >= latest.get(record.key, (-1, None))[0]:
            latest[record.key] = record.rev, record
            unloaded.discard(record.key)
    return {key: record for key, (_, record) in latest.items() if record}, unloaded
