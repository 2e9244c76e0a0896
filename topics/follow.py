"""The job `publish --follow`: a track that arrives is on the topic of its cluster at once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import NamedTuple

from clustering.place import read_places, store_all
from clustering.runs import require_published_runs, require_run
from core.bus import Bus, Consumer, Message
from core.config import Config
from core.errors import BackendError, MurmurError
from core.jobs import Progress, Report, Watch, ignore
from core.metrics import count_batch, lag_watch
from core.names import Names
from core.patience import patience
from core.records import Assignment, Run, Track
from core.store import Document, Store
from topics.due import Due, Judge, leaver, read_titles, title_of
from topics.fold import Change, changes
from topics.publish import latest_or_named, tell
from topics.publisher import CHUNK, Publisher, opened_publisher

POLL_SECONDS = 0.2
LOOK_SECONDS = 10.0
"""Between two looks whether a topic is gone."""
SESSION_SECONDS = 12.0
"""For which a follower that was killed still counts as one, and some more."""

log = logging.getLogger(__name__)


class Batch(NamedTuple):
    """What the messages of one poll change."""

    read: int
    written: int
    due: list[Due]
    seconds: float


def run(
    config: Config,
    *,
    store: Store,
    bus: Bus,
    until: Callable[[], bool],
    run_id: str | None = None,
    progress: Watch = ignore,
) -> Report:
    """Publish a run, then route the tracks that arrive, and publish what `publish` asks for, until told to stop.

    Reads what `publish` reads, and the topic of the tracks from the group's committed offsets. Writes what `publish`
    writes, and each track that arrives and its assignment by the run in force to the store; the messages of a batch and
    its offsets travel in one transaction. It begins with a whole publication, so that whatever an earlier follower
    left undone is done then. A cluster topic that is gone is made anew and filled. What is no track is left to `load`.

    A broken connection is waited for while the bus is read and the store is written; one that breaks a transaction ends
    the job, since nobody can say what became of it: started again, it goes on from there.

    Parameters
    ----------
    config : Config
    store, bus
    until : callable
        Go on until this is true, after the batch at hand.
    run_id : str, optional
        Default: the one in force, else the latest.
    progress : callable

    Returns
    -------
    Report
        `read` counts tracks that arrived, `written` records of the store, `sent` messages.

    Raises
    ------
    ConfigError
        If there is no such run.
    MurmurError
        If another follower is at work, there is no run, or the bus knows a later one than the store.
    FencedError
        If another publisher has taken over.
    BackendError
        If the store or the bus fails in a transaction.
    """
    started = time.monotonic()
    names = Names(config.topics.prefix)
    require_published_runs(store, bus, names)
    bus.create_topics([*config.topics.of_tracks(), *config.topics.of_clusters([])])
    _await_nobody(bus, names.follow_group, until)
    read = written = 0
    with closing(bus.consumer([names.tracks], group=names.follow_group)) as consumer:
        _join(bus, names.follow_group, consumer, until)
        with opened_publisher(config, store=store, bus=bus, commits=consumer) as publisher:
            follower = Follower(publisher, consumer, progress)
            follower.begin(run_id)
            patiently, look_at_lag = patience(consumer, until), lag_watch(bus, names.follow_group, [names.tracks])

            def next_batch() -> Batch | None:
                look_at_lag()
                return None if until() else follower.read()

            while (batch := patiently(next_batch)) is not None:
                if batch.read:
                    publisher.send_together(follower.run.feature_set, batch.due)
                    read, written = read + batch.read, written + batch.written
                    count_batch(batch.read, batch.written, 0, batch.seconds)
                    progress(Progress("route", read, None))
                follower.attend()
    return Report(
        read=read,
        written=written + publisher.written,
        sent=publisher.sent,
        seconds=time.monotonic() - started,
    )


class Follower:
    """The one publisher while it lives: between batches it publishes whole runs.

    Parameters
    ----------
    publisher : Publisher
        Whose transactions carry the consumer's position.
    consumer : Consumer
        Of the tracks.
    progress : callable
    """

    def __init__(self, publisher: Publisher, consumer: Consumer, progress: Watch) -> None:
        self._publisher, self._consumer, self._progress = publisher, consumer, progress
        self._store = publisher.store
        self._look_at = 0.0
        self.run: Run

    def begin(self, run_id: str | None) -> None:
        """Publish the run that is asked for, else the one in force, else the latest."""
        runs = self._publisher.runs
        if run_id is None and (asked := runs.requested()):
            run_id = asked[-1].run_id
        if run_id is None and runs.in_force:
            run_id = runs.in_force.run_id
        self._publish(latest_or_named(self._store, run_id))

    def read(self) -> Batch:
        """Read what has arrived, bring the store up to date, and return what is to be sent of it."""
        messages = self._consumer.poll(POLL_SECONDS, CHUNK)
        started = time.monotonic()
        news = self._news(messages)
        written = self._store.upsert(change.value for change in news if change.value).written
        written += self._store.delete(Track, {change.key: change.rev for change in news if not change.value}).written
        found = {change.key: self._store.get(Track, change.key) for change in news}
        there = {key: track.model_dump() for key, track in found.items() if track}
        assigned = self._place(there, gone=found.keys() - there.keys())
        store_all(self._store, assigned)
        due = list(self._due(found, {one.track_id: one.model_dump() for one in assigned}))
        return Batch(len(messages), written + len(assigned), due, time.monotonic() - started)

    def attend(self) -> None:
        """Publish the run that is asked for, if one is, and what went to topics that are gone."""
        runs = self._publisher.runs
        runs.refresh()
        if asked := runs.requested():
            self._answer(asked[-1].run_id)
        elif time.monotonic() >= self._look_at:
            if self._publisher.lacks_topics():
                log.warning("%s: a cluster topic is gone; it is made anew", self._publisher.bus.url)
                self._publish(self.run)
            self._look_at = time.monotonic() + LOOK_SECONDS

    def _answer(self, run_id: str) -> None:
        try:
            self._publish(require_run(self._store, run_id))
        except BackendError:
            raise
        except MurmurError as error:
            log.warning("run %s is asked for: %s", run_id, error)
            self._publisher.refuse(run_id, str(error))

    def _publish(self, run: Run) -> None:
        """Publish a whole run, and place what arrives by it from now on."""

        def stay(progress: Progress) -> None:
            self._consumer.rewind(0.001)  # a member that does not poll for minutes is put out of its group
            self._progress(progress)

        before = self._publisher.sent
        tally = self._publisher.publish(run, stay)
        tell(run, self._publisher.sent - before, tally)
        self.run = run
        self._places = read_places(self._store, run)
        self._titles = read_titles(self._store)
        self._judge = Judge(run, self._titles)
        self._look_at = time.monotonic() + LOOK_SECONDS

    def _news(self, messages: Iterable[Message]) -> list[Change[Track]]:
        """Return the latest change of each track, but for those that were sent already."""
        latest: dict[str, Change[Track]] = {}
        for change in changes(messages, Track):
            if change.key not in latest or change.rev > latest[change.key].rev:
                latest[change.key] = change
        ledger = self._publisher.ledger
        return [
            change
            for change in latest.values()
            if change.value is None or change.key not in ledger or ledger[change.key].track_rev < change.rev
        ]

    def _place(self, tracks: dict[str, Document], gone: Iterable[str]) -> list[Assignment]:
        """Return the assignments of those that have a place."""
        for track_id, track in tracks.items():
            self._titles[track_id] = title_of(track)
        for track_id in gone:
            self._titles.pop(track_id, None)
            self._places.drop(track_id)
        return self._places.place(tracks.values())

    def _due(self, found: dict[str, Track | None], assigned: dict[str, Document]) -> Iterator[Due]:
        """Yield what is to be sent; a track that has no place any more keeps the one it had."""
        ledger = self._publisher.ledger
        for track_id, track in found.items():
            last = ledger.get(track_id)
            if track is None:
                if last:
                    yield leaver(last)
                continue
            assignment = assigned.get(track_id) or self._former(track_id)
            if assignment and (due := self._judge.compare(last, assignment, track.model_dump())):
                yield due

    def _former(self, track_id: str) -> Document | None:
        found = self._store.get(Assignment, f"{self.run.run_id}/{track_id}")
        return found.model_dump() if found else None


def _await_nobody(bus: Bus, group: str, until: Callable[[], bool]) -> None:
    """Wait until a follower that was killed no longer counts; raise if it is alive."""
    deadline = time.monotonic() + SESSION_SECONDS
    while bus.has_members(group) and not until():
        if time.monotonic() > deadline:
            raise MurmurError(f"{bus.url}: another `murmur publish --follow` is at work; stop it first")
        time.sleep(POLL_SECONDS)


def _join(bus: Bus, group: str, consumer: Consumer, until: Callable[[], bool]) -> None:
    """Become known as the follower, before a publisher that is fenced looks for one."""
    while not bus.has_members(group) and not until():
        consumer.poll(POLL_SECONDS, 1)
    consumer.rewind()
