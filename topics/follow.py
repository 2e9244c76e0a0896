"""The job `publish --follow`: a track that arrives is on the topic of its cluster at once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from typing import NamedTuple

from clustering.place import Places, read_places, store_all
from clustering.runs import require_published_runs, require_run
from core.bus import Bus, Consumer, Message
from core.config import Config
from core.errors import BackendError, MurmurError
from core.jobs import Progress, Report, Watch, ignore
from core.metrics import count_batch, lag_watch
from core.names import Names
from core.patience import patience
from core.records import Assignment, Run, RunRequest, Track
from core.store import Document, Store
from topics.due import Due, Judge, Titles, leaver, read_titles, title_of
from topics.fold import Change, changes
from topics.publish import latest_or_named, tell
from topics.publisher import CHUNK, Publisher, opened_publisher

POLL_SECONDS = 0.2
LOOK_SECONDS = 10.0
"""Between two looks whether a topic is gone, and whether the mark of the run is out of date."""
SESSION_SECONDS = 12.0
"""For which a follower that was killed still counts as one, and some more."""

log = logging.getLogger(__name__)


class Batch(NamedTuple):
    """What the messages of one poll change."""

    read: int
    written: int
    due: list[Due]
    began: float
    """By the monotonic clock, s."""


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
    left undone is done then. A cluster topic that is gone is made anew and filled, and the mark of the run in force is
    brought up to date every 10 s with what was routed. What is no track is left to `load`.

    A broken connection is waited for while the bus is read and what arrives is stored; one that breaks a transaction
    or a whole publication ends the job, since nobody can say what became of it: started again, it goes on from there.

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
        `read` counts tracks that arrived, `written` records of the store, `sent` messages on cluster topics.

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
    read = written = 0
    with closing(bus.consumer([names.tracks], group=names.follow_group)) as consumer:
        if not (_is_alone(bus, names.follow_group, until) and _has_joined(bus, names.follow_group, consumer, until)):
            return Report(seconds=time.monotonic() - started)
        with opened_publisher(config, store=store, bus=bus, commits=consumer, until=until) as publisher:
            follower = Follower(publisher, consumer, run_id, until, progress)
            while batch := follower.next_batch():
                if batch.read:
                    follower.send(batch)
                    read, written = read + batch.read, written + batch.written
                    progress(Progress("route", read, None))
                follower.attend()
            follower.renew()
    return Report(
        read=read, written=written + publisher.written, sent=publisher.sent, seconds=time.monotonic() - started
    )


class Follower:
    """The one publisher while it lives: between batches it publishes whole runs.

    Parameters
    ----------
    publisher : Publisher
        Whose transactions carry the consumer's position.
    consumer : Consumer
        Of the tracks.
    run_id : str, optional
        The run to begin with; default: the one that is asked for, else the one in force, else the latest.
    until : callable
    progress : callable
    """

    def __init__(
        self,
        publisher: Publisher,
        consumer: Consumer,
        run_id: str | None,
        until: Callable[[], bool],
        progress: Watch,
    ) -> None:
        self._publisher, self._consumer, self._until, self._progress = publisher, consumer, until, progress
        self._store, self._runs = publisher.store, publisher.runs
        self._patiently = patience(consumer, until)
        self._look_at_lag = lag_watch(publisher.bus, publisher.names.follow_group, [publisher.names.tracks])
        self._look_at = time.monotonic() + LOOK_SECONDS
        self._has_sent = False
        """Whether the mark of the run in force is out of date."""
        if run_id is None and self._runs.request:
            run_id = self._runs.request.run_id
        if run_id is None and self._runs.in_force:
            run_id = self._runs.in_force.run_id
        run = latest_or_named(self._store, run_id)
        self._send_whole(run)
        self._routing = self._routing_by(run)

    def next_batch(self) -> Batch | None:
        """Return what has arrived, None once it is time to stop; a broken connection is waited for."""
        return self._patiently(lambda: None if self._until() else self._read())

    def send(self, batch: Batch) -> None:
        """Send what a batch changes, and commit its offsets with that."""
        self._publisher.send_together(self._routing.run.feature_set, batch.due)
        self._has_sent = self._has_sent or bool(batch.due)
        count_batch(batch.read, batch.written, 0, time.monotonic() - batch.began)

    def attend(self) -> None:
        """Publish the run that is asked for, if one is; now and then see to the topics and the mark."""
        self._runs.refresh()
        if self._runs.request:
            self._answer(self._runs.request)
        elif time.monotonic() >= self._look_at:
            if self._patiently(self._publisher.lost_clusters):
                log.warning("%s: a cluster topic is gone; it is made anew", self._publisher.bus.url)
                self._publish(self._routing.run)
            self.renew()
            self._look_at = time.monotonic() + LOOK_SECONDS

    def renew(self) -> None:
        """Bring the mark of the run in force up to date with what was routed."""
        if self._has_sent:
            self._publisher.renew(self._routing.run)
            self._has_sent = False

    def _read(self) -> Batch:
        """Read what has arrived, bring the store up to date, and say what is to be sent of it."""
        self._look_at_lag()
        messages = self._consumer.poll(POLL_SECONDS, CHUNK)
        began = time.monotonic()
        news = self._news(messages)
        written = self._store.upsert(change.value for change in news if change.value).written
        written += self._store.delete(Track, {change.key: change.rev for change in news if not change.value}).written
        found = {change.key: self._store.get(Track, change.key) for change in news}
        there = {key: track.model_dump() for key, track in found.items() if track}
        assigned = self._routing.place(there, gone=found.keys() - there.keys())
        store_all(self._store, assigned)
        due = list(self._due(there, found.keys() - there.keys(), {one.track_id: one for one in assigned}))
        return Batch(len(messages), written + len(assigned), due, began)

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

    def _due(
        self, tracks: Mapping[str, Document], gone: Iterable[str], assigned: Mapping[str, Assignment]
    ) -> Iterator[Due]:
        """Yield what is to be sent; a track that has no place any more keeps the one it had."""
        ledger, run_id = self._publisher.ledger, self._routing.run.run_id
        yield from (leaver(ledger[track_id]) for track_id in gone if track_id in ledger)
        for track_id, track in tracks.items():
            found = assigned.get(track_id) or self._store.get(Assignment, f"{run_id}/{track_id}")
            due = self._routing.judge.compare(ledger.get(track_id), found.model_dump(), track) if found else None
            if due:
                yield due

    def _answer(self, request: RunRequest) -> None:
        before = self._publisher.sent
        try:
            self._publish(require_run(self._store, request.run_id))
        except BackendError:
            raise
        except MurmurError as error:
            log.warning("run %s is asked for: %s", request.run_id, error)
            self._publisher.refuse(str(error))
            if self._publisher.sent > before:  # the topics have a part of it
                self._send_whole(self._routing.run)

    def _publish(self, run: Run) -> None:
        """Publish a whole run, and place what arrives by it from now on."""
        self._send_whole(run)
        if run.run_id != self._routing.run.run_id:
            del self._routing  # two libraries would take twice the memory
            self._routing = self._routing_by(run)

    def _send_whole(self, run: Run) -> None:
        before = self._publisher.sent
        tally = self._publisher.publish(run, self._stay)
        tell(run, self._publisher.sent - before, tally)
        self._has_sent = False

    def _routing_by(self, run: Run) -> Routing:
        titles = read_titles(self._store)
        return Routing(run, read_places(self._store, run, self._stay), titles, Judge(run, titles))

    def _stay(self, progress: Progress) -> None:
        """Pass progress on, and poll: a member that does not for minutes is put out of its group."""
        self._consumer.rewind(0.001)
        self._progress(progress)


class Routing(NamedTuple):
    """What places and names the tracks that arrive."""

    run: Run
    places: Places
    titles: Titles
    judge: Judge
    """With these titles."""

    def place(self, tracks: Mapping[str, Document], gone: Iterable[str]) -> list[Assignment]:
        """Return the assignments of those that have a place."""
        for track_id, track in tracks.items():
            self.titles[track_id] = title_of(track)
        for track_id in gone:
            self.titles.pop(track_id, None)
            self.places.drop(track_id)
        return self.places.place(tracks.values())


def _is_alone(bus: Bus, group: str, until: Callable[[], bool]) -> bool:
    """Wait until a follower that was killed no longer counts; raise if it is alive; False if it is time to stop."""
    deadline = time.monotonic() + SESSION_SECONDS
    while not until():
        if not bus.has_members(group):
            return True
        if time.monotonic() > deadline:
            raise MurmurError(f"{bus.url}: another `murmur publish --follow` is at work; stop it first")
        time.sleep(POLL_SECONDS)
    return False


def _has_joined(bus: Bus, group: str, consumer: Consumer, until: Callable[[], bool]) -> bool:
    """Become known as the follower, before a publisher that is fenced looks for one; False if it is time to stop."""
    while not until():
        consumer.poll(POLL_SECONDS, 1)
        if bus.has_members(group):
            consumer.rewind()
            return True
    return False
