"""What a run changes: its assignments and the tracks' metadata against the ledger."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple
from zlib import crc32

import orjson

from clustering.assign import home
from core.errors import MurmurError
from core.jobs import Progress, Watch
from core.names import digest
from core.records import Assignment, LedgerEntry, Member, Run, Track
from core.store import Document, Store

SHOWN = ("title", "artist", "album", "genre", "year", "duration", "extra")
"""What a subscriber sees of a track."""
FIELDS = ("track_id", *SHOWN, "rev")
"""What is read of a track; never `features`, and not `source`, which holds a path."""
REVS = ("track_id", "rev")
SCORE_STEP = 0.05
"""A score that has moved no farther since it was sent is not sent again."""
NEIGHBOUR_SHARE = 0.2
"""Nor are neighbours of which no larger share has changed: 2 of 10."""
STEP = 500
"""Assignments between two words of progress."""

Ledger = dict[str, LedgerEntry]
"""`track_id` → what was last sent of the track."""
Titles = dict[str, "Title"]
"""By `track_id`."""


class Title(NamedTuple):
    """What a subscriber sees of a neighbour."""

    title: str | None
    artist: str | None
    crc: int
    """Of the id, the title and the artist."""


class Due(NamedTuple):
    """What is to be sent of one track."""

    cluster_id: str
    """Where the track is now, or was last."""
    track_id: str
    what: str
    """``joined``, ``moved``, ``changed`` or ``left``."""
    tombstone: str | None
    """The cluster that loses the track."""
    member: Member | None
    entry: LedgerEntry | None


def due(
    run: Run, n_assignments: int, store: Store, ledger: Mapping[str, LedgerEntry], progress: Watch
) -> Iterator[Due]:
    """Yield what of a run the topics don't say yet; the name of the run alone is no difference.

    Memory grows with the ledger and the titles only.

    Parameters
    ----------
    run : Run
    n_assignments : int
        How many the run has.
    store : Store
        With them.
    ledger : mapping of str to LedgerEntry
        May learn on the way what was sent.
    progress : callable

    Raises
    ------
    MurmurError
        If assignments of the run are missing, before a track leaves for that reason.
    """
    titles = read_titles(store)
    assignments = store.scan(Assignment, prefix=f"{run.run_id}/")
    judge = Judge(run, titles)
    there = set()
    read = 0
    for assignment, track in _paired(assignments, store.scan(Track, fields=FIELDS)):
        read += 1
        if track is not None:
            there.add(track["track_id"])
            if found := judge.compare(ledger.get(track["track_id"]), assignment, track):
                yield found
        if read % STEP == 0:
            progress(Progress("publish", read, n_assignments))
    if read < n_assignments:
        found_only = f"{store.url} holds {read} of the {n_assignments} assignments of run {run.run_id}"
        raise MurmurError(f"{found_only}; run `murmur publish --run {run.run_id}` again")
    progress(Progress("publish", read, read))
    for entry in [entry for track_id, entry in ledger.items() if track_id not in there]:
        yield leaver(entry)


class Judge:
    """Tells what of a track is to be sent, by a run and the titles of its neighbours."""

    def __init__(self, run: Run, titles: Titles) -> None:
        self._clusters = {cluster.cluster_id: cluster for cluster in run.clusters}
        self._titles = titles

    def compare(self, last: LedgerEntry | None, assignment: Document, track: Document) -> Due | None:
        """Return what is to be sent of a track, None where the difference is none or too small."""
        titles = self._titles
        near = [(one, titles[one["track_id"]]) for one in assignment["neighbours"] if one["track_id"] in titles]
        cluster_id = home(self._clusters[assignment["cluster_id"]], assignment["distance"])
        metadata = digest(orjson.dumps([track[name] for name in SHOWN], option=orjson.OPT_SORT_KEYS))
        crcs = [title.crc for _, title in near]
        if last and not _differ(last, cluster_id, metadata, assignment["score"], crcs):
            return None
        entry = LedgerEntry(
            track_id=track["track_id"],
            cluster_id=cluster_id,
            since_run=last.since_run if last and last.cluster_id == cluster_id else assignment["run_id"],
            score=assignment["score"],
            digest=metadata,
            track_rev=assignment["track_rev"],  # not that of a version that came after it was assigned
            neighbours=crcs,
        )
        shown = entry.model_dump(include={"cluster_id", "score", "since_run"})
        named = [one | {"title": title.title, "artist": title.artist} for one, title in near]
        member = Member.from_document({**track, **shown, "neighbours": named})
        moved = last is not None and last.cluster_id != cluster_id
        what = "joined" if last is None else "moved" if moved else "changed"
        return Due(cluster_id, entry.track_id, what, last.cluster_id if last and moved else None, member, entry)


def leaver(entry: LedgerEntry) -> Due:
    """Return what is to be sent of a track that leaves."""
    return Due(entry.cluster_id, entry.track_id, "left", entry.cluster_id, None, None)


def read_titles(store: Store) -> Titles:
    """Return the title and artist of every track."""
    return {track["track_id"]: title_of(track) for track in store.scan(Track, fields=("track_id", "title", "artist"))}


def title_of(track: Document) -> Title:
    """Return what a subscriber sees of a track that is a neighbour."""
    title, artist = track["title"], track["artist"]
    return Title(title, artist, crc32(f"{track['track_id']} {title} {artist}".encode()))


def digest_of_input(run: Run, store: Store) -> str:
    """Return a digest of the revisions of all that decides what is due, but for what was sent before."""
    hashed = hashlib.blake2b(digest_size=16)
    for found in (store.scan(Assignment, fields=REVS, prefix=f"{run.run_id}/"), store.scan(Track, fields=REVS)):
        for one in found:
            hashed.update(f"{one['track_id']} {one['rev']}\n".encode())
        hashed.update(b"\n")
    return hashed.hexdigest()


def _differ(last: LedgerEntry, cluster_id: str, metadata: str, score: float, crcs: Sequence[int]) -> bool:
    if (last.cluster_id, last.digest) != (cluster_id, metadata) or abs(last.score - score) > SCORE_STEP:
        return True
    before, after = set(last.neighbours), set(crcs)
    most = max(len(before), len(after))
    return most - len(before & after) > NEIGHBOUR_SHARE * most


def _paired(assignments: Iterator[Document], tracks: Iterator[Document]) -> Iterator[tuple[Document, Document | None]]:
    """Pair each assignment with its track, both in order of `track_id`; None where the track is gone."""
    track = next(tracks, None)
    for assignment in assignments:
        while track is not None and track["track_id"] < assignment["track_id"]:
            track = next(tracks, None)
        found = track is not None and track["track_id"] == assignment["track_id"]
        yield assignment, track if found else None
