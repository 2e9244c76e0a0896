"""What an extraction has to do: the folder and the catalogue compared with what is known. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from core.errors import AudioError
from core.records import Failure
from etl.catalogue import Row
from etl.folders import AudioFile, Walk, is_gone, look
from etl.known import KnownTrack

if TYPE_CHECKING:
    from etl.worker import Trouble

Look = Callable[[str], AudioFile | None]


@dataclass(frozen=True, slots=True)
class Draft:
    """A track that is to be sent."""

    track_id: str
    rev: int
    """Of what is known of it; 0 if it is new."""
    file: AudioFile
    """The first in order of all that hold it."""
    digest: str
    """Digest of the file's audio packets."""
    copies: tuple[AudioFile, ...]
    row: Row | None
    donor: str | None
    """The known track that has its features already; None: they are to be computed."""

    @property
    def files(self) -> tuple[AudioFile, ...]:
        """The source and the copies."""
        return self.file, *self.copies

    @property
    def paths(self) -> tuple[str, ...]:
        """The source and the copies."""
        return tuple(self.stats)

    @property
    def stats(self) -> dict[str, tuple[int, int]]:
        """Size and modification time of the source and the copies, by path."""
        return {file.path: (file.size, file.mtime_ns) for file in self.files}


@dataclass(frozen=True, slots=True)
class Lost:
    """A track whose files all hold something else now."""

    track_id: str
    rev: int
    paths: frozenset[str]
    """Those files."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done."""

    drafts: list[Draft] = field(default_factory=list)
    """In order of their files."""
    lost: list[Lost] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    """Files of tracks that are as they should be."""
    gone: list[str] = field(default_factory=list)
    """Tracks whose files are no longer there."""
    unseen: list[str] = field(default_factory=list)
    """Tracks of whose files that cannot be said: see `etl.folders.is_gone`."""
    copies: int = 0
    """Files that hold the same track as another one in the folder."""


def is_lasting(trouble: Trouble | Failure) -> bool:
    """Return whether the next try would give the same while the file is the same.

    What could not even be opened may be so the next time: a permission is no change of the file.
    """
    return (trouble.stage, trouble.error) != ("read", AudioError.__name__)


def remembered_failures(files: Iterable[AudioFile], failures: Iterable[Failure], feature_set: str) -> set[str]:
    """Return the paths of the files that need not be tried again: as they were when they failed, at these features."""
    by_path = {failure.path: failure for failure in failures if not failure.retry}
    return {
        file.path
        for file in files
        if (failure := by_path.get(file.path))
        and (failure.size, failure.mtime_ns, failure.feature_set) == (file.size, file.mtime_ns, feature_set)
        and (is_lasting(failure) or file.size == 0)
        and failure.error != MemoryError.__name__  # there may be more of it now
    }


def known_digests(files: Iterable[AudioFile], tracks: Mapping[str, KnownTrack]) -> dict[str, str]:
    """Return the packets' digests of the files that are as they were: same path, size and time."""
    by_age = sorted(tracks.values(), key=lambda track: track.rev)
    known = {path: (stat, track.source.digest) for track in by_age for path, stat in track.stats.items()}
    return {
        file.path: known[file.path][1]
        for file in files
        if file.path in known and known[file.path][0] == (file.size, file.mtime_ns)
    }


def remembered_rows(
    files: Iterable[AudioFile], digests: Mapping[str, str], tracks: Mapping[str, KnownTrack]
) -> dict[str, Row]:
    """Return the rows of a catalogue that is not given this time, by path: what it said before stays."""
    by_age = sorted(tracks.values(), key=lambda track: track.rev)
    by_path = {(path, track.source.digest): track for track in by_age for path in track.paths}
    by_digest = {track.source.digest: track for track in by_age}
    rows = {}
    for file in files:
        digest = digests.get(file.path, "")
        track = by_path.get((file.path, digest)) or by_digest.get(digest)
        if track and track.row:
            rows[file.path] = track.row
    return rows


def plan(
    found: Walk,
    rows: Mapping[str, Row],
    digests: Mapping[str, str],
    tracks: Mapping[str, KnownTrack],
    feature_set: str,
    *,
    look: Look = look,
    is_gone: Callable[[str], bool] = is_gone,
) -> Plan:
    """Decide what is to be computed, sent again, deleted or left alone.

    Parameters
    ----------
    found : Walk
        The folder.
    rows : mapping of str to Row
        The catalogue, by the file's path.
    digests : mapping of str to str
        Digest of the audio packets, by the file's path; a file that could not be read has none.
    tracks : mapping of str to KnownTrack
        What is known, by `track_id`.
    feature_set : str
        The features that are wanted.
    look : callable
        Returns the file at a path outside the folder, None if there is none.
    is_gone : callable
        Returns whether there is surely nothing any more at a path.
    """
    ids = track_ids(found.files, rows, digests)
    here: dict[str, list[AudioFile]] = {}
    for file in found.files:
        if file.path in ids:
            here.setdefault(ids[file.path], []).append(file)
    taken = _taken_paths(tracks, ids)
    unread = {file.path for file in found.files}.difference(ids)
    donors = {track.source.digest: track.track_id for track in tracks.values() if track.feature_set == feature_set}
    result = Plan(copies=len(ids) - len(here))
    for track_id, track in _missing(tracks, {*here, *taken}, unread, found.root):
        if all(map(is_gone, track.paths)):
            result.gone.append(track_id)
        elif not any(map(look, track.paths)):
            result.unseen.append(track_id)
    for track_id in sorted({*here, *taken}):
        before, members = tracks.get(track_id), here.get(track_id, [])
        digest = digests[members[0].path] if members else tracks[track_id].source.digest
        same = before if before and before.source.digest == digest else None
        others = _elsewhere(same, found.root, look) if same else []
        if not members and not others:
            if unread.isdisjoint(tracks[track_id].paths):
                result.lost.append(Lost(track_id, tracks[track_id].rev, frozenset(taken[track_id])))
            continue
        donor = track_id if same and same.feature_set == feature_set else donors.get(digest)
        draft = _draft(track_id, before, digest, members, others, rows, donor)
        if same and _is_as_before(draft, same):
            result.unchanged.extend(file.path for file in members)
        else:
            result.drafts.append(draft)
    result.drafts.sort(key=lambda draft: draft.file.path)
    return result


def track_ids(files: Iterable[AudioFile], rows: Mapping[str, Row], digests: Mapping[str, str]) -> dict[str, str]:
    """Return the `track_id` of each file that could be read.

    The catalogue's id belongs to the first file of its row, and to every exact copy of that file.
    Any other file goes by the digest of its audio packets.
    """
    owners: dict[str, str] = {}
    for file in files:
        row = rows.get(file.path)
        if row and row.track_id and file.path in digests:
            owners.setdefault(row.track_id, digests[file.path])
    named: dict[str, str] = {}
    for track_id, digest in owners.items():
        named.setdefault(digest, track_id)

    def track_id_of(path: str) -> str:
        digest = digests[path]
        own = rows[path].track_id if path in rows else None
        return own if own and owners[own] == digest else named.get(digest, digest)

    return {file.path: track_id_of(file.path) for file in files if file.path in digests}


def is_inside(path: str, root: str) -> bool:
    """Return whether a stored path lies below a folder."""
    return path.startswith(root.rstrip("/") + "/")


def _taken_paths(tracks: Mapping[str, KnownTrack], ids: Mapping[str, str]) -> dict[str, set[str]]:
    """Return the paths that hold another track now, by the track that had them."""
    taken: dict[str, set[str]] = {}
    for track_id, track in tracks.items():
        for path in track.paths:
            if ids.get(path, track_id) != track_id:
                taken.setdefault(track_id, set()).add(path)
    return taken


def _elsewhere(track: KnownTrack, root: str, look: Look) -> list[AudioFile]:
    """Return the files of a track that lie outside the folder, with what is known of them."""
    return [
        replace(file, size=size, mtime_ns=mtime_ns)
        for path, (size, mtime_ns) in track.stats.items()
        if not is_inside(path, root) and (file := look(path))
    ]


def _missing(
    tracks: Mapping[str, KnownTrack], seen: set[str], unread: set[str], root: str
) -> Iterator[tuple[str, KnownTrack]]:
    """Yield the tracks that had a file in the folder, and were not seen there."""
    for track_id, track in tracks.items():
        here = track_id not in seen and any(is_inside(path, root) for path in track.paths)
        if here and unread.isdisjoint(track.paths):
            yield track_id, track


def _draft(
    track_id: str,
    before: KnownTrack | None,
    digest: str,
    members: list[AudioFile],
    others: list[AudioFile],
    rows: Mapping[str, Row],
    donor: str | None,
) -> Draft:
    files = sorted([*members, *others], key=lambda file: file.path)
    row = next((rows[file.path] for file in members if file.path in rows), None)
    if row is None and before and others:
        row = before.row  # it may come from the catalogue of another folder
    return Draft(
        track_id=track_id,
        rev=before.rev if before else 0,
        file=files[0],
        digest=digest,
        copies=tuple(files[1:]),
        row=row,
        donor=donor,
    )


def _is_as_before(draft: Draft, before: KnownTrack) -> bool:
    row_digest = draft.row.digest if draft.row else None
    return (
        draft.donor == before.track_id
        and row_digest == before.source.row_digest
        and list(draft.stats.items()) == list(before.stats.items())
    )
