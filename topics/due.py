"""What a run changes: its assignments and the tracks' metadata against the ledger."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from core.errors import MurmurError
from core.jobs import Progress, Watch
from core.names import digest
from core.records import Assignment, LedgerEntry, Member, Run, Track
from core.store import Document, Store

METADATA = ("track_id", "title", "artist", "album", "genre", "year", "duration", "extra", "rev")
"""What is read of a track; never `features`, and not `source`, which holds a path."""
STEP = 500
"""Assignments between two words of progress."""

Ledger = dict[str, LedgerEntry]
"""`track_id` → what was last sent of the track."""
Titles = dict[str, Document]
"""`track_id` → title and artist."""


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


def due(run: Run, store: Store, ledger: Ledger, progress: Watch) -> Iterator[Due]:
    """Yield what of a run the topics don't say yet.

    A message is due when the cluster or anything else a subscriber sees differs; the name of the
    run alone is no difference. Memory grows with the ledger and the titles only.

    Parameters
    ----------
    run : Run
    store : Store
        With the assignments of the run.
    ledger : dict of str to LedgerEntry
        Used up on the way: tracks that remain in it at the end have left.
    progress : callable

    Raises
    ------
    MurmurError
        If assignments of the run are missing, before a track leaves for that reason.
    """
    titles = {track.pop("track_id"): track for track in store.scan(Track, fields=("track_id", "title", "artist"))}
    assignments = store.scan(Assignment, prefix=f"{run.run_id}/")
    read = 0
    for assignment, track in _paired(assignments, store.scan(Track, fields=METADATA)):
        read += 1
        if track is not None:
            last = ledger.pop(track["track_id"], None)
            yield from _compare(last, _member(assignment, track, titles, last), track["rev"])
        if read % STEP == 0:
            progress(Progress("publish", read, run.n_tracks))
    if read != run.n_tracks:
        found = f"{store.url} holds {read} of the {run.n_tracks} assignments of run {run.run_id}"
        raise MurmurError(f"{found}; run `murmur cluster` again")
    progress(Progress("publish", read, read))
    for entry in ledger.values():
        yield Due(entry.cluster_id, entry.track_id, "left", entry.cluster_id, None, None)


def _paired(assignments: Iterator[Document], tracks: Iterator[Document]) -> Iterator[tuple[Document, Document | None]]:
    """Pair each assignment with its track, both in order of `track_id`; None where the track is gone."""
    track = next(tracks, None)
    for assignment in assignments:
        while track is not None and track["track_id"] < assignment["track_id"]:
            track = next(tracks, None)
        found = track is not None and track["track_id"] == assignment["track_id"]
        yield assignment, track if found else None


def _member(assignment: Document, track: Document, titles: Titles, last: LedgerEntry | None) -> Member:
    stays = last is not None and last.cluster_id == assignment["cluster_id"]
    return Member.from_document(
        {
            **track,
            "cluster_id": assignment["cluster_id"],
            "score": assignment["score"],
            "neighbours": [
                near | titles[near["track_id"]] for near in assignment["neighbours"] if near["track_id"] in titles
            ],
            "since_run": last.since_run if last and stays else assignment["run_id"],
        }
    )


def _compare(last: LedgerEntry | None, member: Member, track_rev: int) -> Iterator[Due]:
    seen = digest(member.model_dump_json(exclude={"since_run"}).encode())
    if last is not None and last.digest == seen:
        return
    moved = last is not None and last.cluster_id != member.cluster_id
    entry = LedgerEntry(
        track_id=member.track_id,
        cluster_id=member.cluster_id,
        since_run=member.since_run,
        score=member.score,
        digest=seen,
        track_rev=track_rev,
    )
    what = "joined" if last is None else "moved" if moved else "changed"
    yield Due(member.cluster_id, member.track_id, what, last.cluster_id if last and moved else None, member, entry)
