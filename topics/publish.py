"""Publishing a run: the cluster topics are made to say what it says, by sending only what differs.

The authority on what the topics say is the ledger topic. Each change travels in one transaction
with its ledger entry: a job that dies anywhere leaves a true ledger, and the next one goes on.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter
from typing import NamedTuple, TypeVar

from clustering.runs import latest_run
from core.bus import Bus, Message, Offsets, Producer, read_to_end
from core.config import Config
from core.errors import MurmurError
from core.jobs import Report, Watch, ignore
from core.names import CURRENT, Names, cloud_event
from core.records import LedgerEntry, Member, PublishedRun, Record, Run, RunInForce, Value, next_rev
from core.store import Store
from topics.due import Due, Ledger, due
from topics.fold import Change, V, changes, update

CHUNK = 500
"""Tracks per transaction."""
WINDOW = 10_000
"""Changes sorted by cluster at a time: bounds the memory, and keeps the topics of a transaction few."""

T = TypeVar("T")

log = logging.getLogger(__name__)


def run(config: Config, *, store: Store, bus: Bus, progress: Watch = ignore) -> Report:
    """Send what the latest complete run changes, and put that run in force.

    Reads the run, its assignments and the tracks' metadata from the store, the ledger and the runs
    from the bus. Writes the cluster topics, the ledger, the runs topic, and at the end the store's
    mirror of the run in force. Run twice, it sends nothing the second time; run after a job that
    died, it sends what is missing; a job that is still alive elsewhere is fenced, and stops.

    Returns
    -------
    Report
        `read` counts assignments, `unchanged` those that the topics had already, `sent` messages.

    Raises
    ------
    MurmurError
        If no run is complete, or the store lacks assignments of the run.
    FencedError
        If another publisher has taken over.
    """
    started = time.monotonic()
    latest = latest_run(store)
    if latest is None:
        raise MurmurError(f"{store.url} holds no complete run; run `murmur cluster` first")
    names = Names(config.topics.prefix)
    bus.create_topics(config.topics.of_clusters(cluster.cluster_id for cluster in latest.clusters))
    producer = bus.producer(names.publisher)  # fences its predecessor: what is read from here on stays true
    try:
        past = _read_past(bus, names, latest.run_id)
        known = len(past.ledger)
        outbox = _Outbox(names, producer, latest.feature_set, max(past.rev, _mirrored_rev(store)))
        if past.run is None:
            outbox.send_run(latest)
        tally = outbox.send_all(due(latest, store, past.ledger, progress))
        in_force = past.in_force
        if in_force is None or tally or not past.says(latest):
            in_force = outbox.put_in_force(latest, bus)
    finally:
        producer.close()
    written = store.upsert([in_force]).written
    _tell(latest, outbox.sent, tally)
    return Report(
        read=latest.n_tracks,
        written=written,
        unchanged=known - tally["changed"] - tally["moved"] - tally["left"],
        sent=outbox.sent,
        seconds=time.monotonic() - started,
    )


class _Past(NamedTuple):
    """What the topics say before anything is sent."""

    ledger: Ledger
    run: PublishedRun | None
    """The run that is to be published, where the runs topic has it already."""
    in_force: RunInForce | None
    rev: int
    """The highest there."""

    def says(self, latest: Run) -> bool:
        """Return whether that run was sent in full and put in force."""
        in_full = self.run is not None and self.run.published
        return in_full and self.in_force is not None and self.in_force.run_id == latest.run_id


def _read_past(bus: Bus, names: Names, run_id: str) -> _Past:
    ledger: Ledger = {}
    rev = 0
    for entry in changes(read_to_end(bus, [names.members]), LedgerEntry):
        update(ledger, entry)
        rev = max(rev, entry.rev)
    messages = list(read_to_end(bus, [names.runs]))
    known, current = _last(messages, run_id, PublishedRun), _last(messages, CURRENT, RunInForce)
    return _Past(ledger, known.value, current.value, max(rev, known.rev, current.rev))


def _last(messages: Iterable[Message], key: str, kind: type[V]) -> Change[V]:
    found = list(changes((message for message in messages if message.key == key.encode()), kind))
    return found[-1] if found else Change(key, None, 0)


@dataclass
class _Outbox:
    """Sends in transactions and counts; every message has a `rev` of its own."""

    names: Names
    producer: Producer
    feature_set: str
    rev: int
    """The last one that was used."""
    sent: int = 0

    def send_run(self, latest: Run) -> None:
        """Make a run known, before its changes."""
        with self.producer.transaction():
            self._send(self.names.runs, PublishedRun, latest.run_id, _published(latest))

    def send_all(self, changes: Iterable[Due]) -> Counter[str]:
        """Send changes, `CHUNK` in a transaction; return how many tracks joined, moved, changed and left."""
        tally: Counter[str] = Counter()
        for window in _pieces(changes, WINDOW):
            window.sort(key=attrgetter("cluster_id", "track_id"))
            for chunk in _pieces(window, CHUNK):
                with self.producer.transaction():
                    for change in chunk:
                        self._send_change(change)
                tally.update(change.what for change in chunk)
                log.info("%d tracks sent, from %s to %s", len(chunk), chunk[0].cluster_id, chunk[-1].cluster_id)
        return tally

    def put_in_force(self, latest: Run, bus: Bus) -> RunInForce:
        """Mark a run as published, with the offsets of a consistent view, and as the current one."""
        in_force = RunInForce(rev=next_rev(self.rev), run_id=latest.run_id)
        with self.producer.transaction():
            self._send(self.names.runs, RunInForce, CURRENT, in_force)
            self.producer.flush()  # Kafka takes it once the former transactions are readable, so `ends` sees them
            ends = bus.ends([topic for topic in bus.topics() if self.names.cluster_of(topic)])
            self._send(self.names.runs, PublishedRun, latest.run_id, _published(latest, ends))
        return in_force

    def _send_change(self, change: Due) -> None:
        if change.tombstone:
            self._send(self.names.cluster(change.tombstone), Member, change.track_id, None)
        if change.member:
            self._send(self.names.cluster(change.cluster_id), Member, change.track_id, change.member)
        self._send(self.names.members, LedgerEntry, change.track_id, change.entry)

    def _send(self, topic: str, kind: type[Value], key: str, value: Value | None) -> None:
        self.rev = value.rev if isinstance(value, Record) else next_rev(self.rev)
        headers = cloud_event(kind.__name__, key, self.rev, self.feature_set)
        self.producer.send(topic, key.encode(), value.to_json() if value else None, headers)
        self.sent += 1


def _published(latest: Run, ends: Offsets | None = None) -> PublishedRun:
    offsets: dict[str, dict[str, int]] = {}
    for (topic, partition), end in sorted((ends or {}).items()):
        offsets.setdefault(topic, {})[str(partition)] = end
    return PublishedRun(
        **latest.model_dump(
            include={"run_id", "created_at", "engine", "feature_set", "n_clusters", "n_tracks", "metrics"}
        ),
        **latest.lineage.model_dump(include={"former", "births", "deaths", "successors"}),
        sizes={cluster.cluster_id: cluster.size for cluster in latest.clusters},
        descriptions={one.cluster_id: one.description for one in latest.clusters if one.description},
        published=ends is not None,
        offsets=offsets,
    )


def _mirrored_rev(store: Store) -> int:
    mirror = store.get(RunInForce, RunInForce.current)
    return mirror.rev if mirror else 0


def _pieces(items: Iterable[T], size: int) -> Iterator[list[T]]:
    rest = iter(items)
    while piece := list(islice(rest, size)):
        yield piece


def _tell(latest: Run, sent: int, tally: Counter[str]) -> None:
    if not sent:
        log.info("run %s is published and in force: nothing to send", latest.run_id)
        return
    counts = ", ".join(f"{tally[what]} {what}" for what in ("joined", "moved", "changed", "left"))
    log.info("run %s is in force: %s; %d messages sent", latest.run_id, counts, sent)
