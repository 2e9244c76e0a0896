"""The one who writes to the cluster topics: what they said before, transactions, and the mark at the end.

The authority on what the topics say is the ledger topic. Each change travels in one transaction
with its ledger entry: a job that dies anywhere leaves a true ledger, and the next one goes on.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from operator import attrgetter
from typing import TypeVar

from clustering.place import settle
from core.bus import Bus, Consumer, Producer, read_to_end
from core.config import Config
from core.errors import MurmurError
from core.jobs import Watch
from core.names import CURRENT, UNCLUSTERED, Names, cloud_event
from core.records import LedgerEntry, Member, PublishedRun, Record, Run, RunInForce, Value, next_rev
from core.store import Store
from topics.due import Due, Ledger, digest_of_input, due
from topics.fold import changes, update
from topics.runs import RunsTopic, offsets_by_topic, published

CHUNK = 500
"""Tracks per transaction."""
WINDOW = 10_000
"""Changes sorted by cluster at a time: bounds the memory, and keeps the topics of a transaction few."""

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass
class Publisher:
    """Has fenced all others, and knows what the topics say; every message has a `rev` of its own."""

    config: Config
    names: Names
    bus: Bus
    store: Store
    producer: Producer
    runs: RunsTopic
    rev: int
    """The last one that was used."""
    sent: int = 0
    """Messages on cluster topics."""
    written: int = 0
    """Records of the store."""

    @cached_property
    def ledger(self) -> Ledger:
        """What was last sent of each track."""
        ledger: Ledger = {}
        for entry in changes(read_to_end(self.bus, [self.names.members]), LedgerEntry):
            update(ledger, entry)
            self.rev = max(self.rev, entry.rev)
        return ledger or self._recovered_ledger()

    def publish(self, run: Run, progress: Watch) -> Counter[str]:
        """Send what a run changes, and put it in force; return how many tracks joined, moved, changed, left and stayed.

        Where nothing has changed since the run was published, neither in the store nor on the cluster topics, not even
        the ledger is read.

        Raises
        ------
        MurmurError
            If the store has neither assignments of the run nor tracks of its feature set.
        """
        n_assignments = settle(self.store, run, progress)
        if not n_assignments:
            features = f"its assignments are no longer kept, and no track has its feature set {run.feature_set}"
            raise MurmurError(f"{self.store.url}: run {run.run_id} cannot be published: {features}; publish another")
        input_digest = digest_of_input(run, self.store)
        if self._is_unchanged(run, input_digest):
            tally = Counter(stayed=sum(self.runs.runs[run.run_id].sizes.values()))
        else:
            tally = self._send_run(run, n_assignments, input_digest, progress)
        assert self.runs.in_force is not None
        self.written += self.store.upsert([self.runs.in_force]).written
        return tally

    def refuse(self, reason: str) -> None:
        """Answer the request with the reason why it cannot be done."""
        assert self.runs.in_force is not None
        with self.producer.transaction():
            self._answer(self.runs.in_force.run_id, refused=reason)
        self.runs.refresh()

    def renew(self, run: Run) -> None:
        """Bring the mark of the run in force up to date with what was sent since."""
        self._put_in_force(run, self.runs.runs[run.run_id].changes)

    def lost_clusters(self) -> set[str]:
        """Return the clusters whose topic is gone, or lacks what was sent to it since it was made anew."""
        sent = {entry.cluster_id for entry in self.ledger.values()}
        there = set(self.bus.topics())
        lost = {cluster_id for cluster_id in sent if self.names.cluster(cluster_id) not in there}
        in_force = self.runs.runs.get(self.runs.in_force.run_id) if self.runs.in_force else None
        named = in_force.offsets if in_force else {}
        for (topic, partition), end in self.bus.ends(there & named.keys()).items():
            if end < named[topic].get(str(partition), 0) and (cluster_id := self.names.cluster_of(topic)):
                lost.add(cluster_id)
        return lost & sent

    def make_topics(self, run: Run) -> None:
        """Create the topics of a run and of all that was sent; what went to one that is lost is due again.

        That is in the ledger before the topic is: a job that dies in between leaves a true one.
        """
        lost = self.lost_clusters()
        for entries in _pieces([entry for entry in self.ledger.values() if entry.cluster_id in lost], CHUNK):
            with self.producer.transaction():
                for entry in entries:
                    due_again = entry.model_copy(update={"digest": ""})
                    self._send(run.feature_set, self.names.members, LedgerEntry, entry.track_id, due_again)
                    self.ledger[entry.track_id] = due_again
        wanted = {UNCLUSTERED, *(cluster.cluster_id for cluster in run.clusters)}
        wanted |= {entry.cluster_id for entry in self.ledger.values()}
        self.bus.create_topics(self.config.topics.of_clusters(sorted(wanted)))

    def send(self, feature_set: str, changes: Iterable[Due]) -> Counter[str]:
        """Send changes, `CHUNK` in a transaction; return how many tracks joined, moved, changed and left."""
        tally: Counter[str] = Counter()
        for window in _pieces(changes, WINDOW):
            window.sort(key=attrgetter("cluster_id", "track_id"))
            for chunk in _pieces(window, CHUNK):
                tally += self.send_together(feature_set, chunk)
        return tally

    def send_together(self, feature_set: str, changes: Sequence[Due]) -> Counter[str]:
        """Send changes in one transaction, even if there are none: with it goes the position of a consumer."""
        with self.producer.transaction():
            for change in changes:
                self._send_change(feature_set, change)
        for change in changes:
            self._remember(change)
        if changes:
            log.info("%d tracks sent, from %s to %s", len(changes), changes[0].cluster_id, changes[-1].cluster_id)
        return Counter(change.what for change in changes)

    def _send_run(self, run: Run, n_assignments: int, input_digest: str, progress: Watch) -> Counter[str]:
        self.make_topics(run)
        for one in self._not_kept(run):
            with self.producer.transaction():
                self._send(one.feature_set, self.names.spaces, Run, one.run_id, one)
        if run.run_id not in self.runs.runs:
            with self.producer.transaction():
                self._mark(published(run))
        tally = self.send(run.feature_set, due(run, n_assignments, self.store, self.ledger, progress))
        self._put_in_force(run, tally, input_digest)
        tally["stayed"] = len(self.ledger) - tally["joined"] - tally["moved"] - tally["changed"]
        return tally

    def _not_kept(self, run: Run) -> Iterator[Run]:
        """Yield what `restore` would miss: a run until it was sent in full; if their topic is new, all that were."""
        known, is_new = self.runs.runs.get(run.run_id), not any(self.bus.ends([self.names.spaces]).values())
        if is_new or not (known and known.published):
            yield run
        for run_id in sorted(self.runs.runs.keys() - {run.run_id}, reverse=True) if is_new else ():
            if found := self.store.get(Run, run_id):
                yield found

    def _recovered_ledger(self) -> Ledger:
        """Return what the cluster topics themselves say, for a ledger that was deleted: all of it is due again."""
        ledger: Ledger = {}
        for topic in cluster_topics(self.bus, self.names):
            members: dict[str, Member] = {}
            for change in changes(read_to_end(self.bus, [topic]), Member):
                update(members, change)
                self.rev = max(self.rev, change.rev)
            for track_id, member in members.items():
                known = member.model_dump(include={"track_id", "cluster_id", "since_run", "score"})
                ledger[track_id] = LedgerEntry(**known, digest="", track_rev=0)
        return ledger

    def _is_unchanged(self, run: Run, input_digest: str) -> bool:
        """Return whether the run is in force, of this input, and nothing was sent since."""
        if self.runs.request or not self.runs.is_in_force(run.run_id):
            return False
        known = self.runs.runs[run.run_id]
        there = offsets_by_topic(self.bus.ends(cluster_topics(self.bus, self.names)))
        return known.input_digest == input_digest and known.offsets == there

    def _put_in_force(self, run: Run, tally: Mapping[str, int], input_digest: str = "") -> None:
        """Mark a run as published, with the offsets of a consistent view, and as the current one.

        That is the answer to the request for it, or for another that was made before it began.
        """
        sizes = Counter(entry.cluster_id for entry in self.ledger.values())
        with self.producer.transaction():
            self._answer(run.run_id)
            self.producer.flush()  # Kafka takes it once the former transactions are readable, so `ends` sees them
            ends = self.bus.ends(cluster_topics(self.bus, self.names))
            done = {"changes": dict(tally), "input_digest": input_digest}
            self._mark(published(run, sizes, ends).model_copy(update=done))
        self.runs.refresh()

    def _answer(self, run_id: str, refused: str = "") -> None:
        """Name the run in force, and answer the request, if there is one; the last answer stays until then."""
        former, request = self.runs.in_force, self.runs.request
        answered = 0
        if request:
            answered = request.rev
        elif former:
            answered, refused = former.answered, former.refused
        rev = next_rev(max(self.rev, self.runs.rev))
        in_force = RunInForce(rev=rev, run_id=run_id, answered=answered, refused=refused)
        self._send("", self.names.runs, RunInForce, CURRENT, in_force)

    def _mark(self, run: PublishedRun) -> None:
        self._send(run.feature_set, self.names.runs, PublishedRun, run.run_id, run)

    def _send_change(self, feature_set: str, change: Due) -> None:
        if change.tombstone:
            self._send(feature_set, self.names.cluster(change.tombstone), Member, change.track_id, None)
        if change.member:
            self._send(feature_set, self.names.cluster(change.cluster_id), Member, change.track_id, change.member)
        self._send(feature_set, self.names.members, LedgerEntry, change.track_id, change.entry)

    def _remember(self, change: Due) -> None:
        if change.entry:
            self.ledger[change.track_id] = change.entry
        else:
            del self.ledger[change.track_id]

    def _send(self, feature_set: str, topic: str, kind: type[Value], key: str, value: Value | None) -> None:
        rev = value.rev if isinstance(value, Record) else next_rev(self.rev)
        headers = cloud_event(kind.__name__, key, rev, feature_set)
        self.producer.send(topic, key.encode(), value.to_json() if value else None, headers)
        self.rev = max(self.rev, rev)
        self.sent += kind is Member


@contextmanager
def opened_publisher(
    config: Config,
    *,
    store: Store,
    bus: Bus,
    commits: Consumer | None = None,
    until: Callable[[], bool] | None = None,
) -> Iterator[Publisher]:
    """Take the writing over from whoever has it, and read what the topics say.

    With each transaction goes the position of a consumer that it `commits` for. While the runs are read, a broken
    connection is waited for `until` that is true.
    """
    names = Names(config.topics.prefix)
    bus.create_topics(config.topics.of_clusters([]))
    producer = bus.producer(names.publisher, commits=commits)  # what is read from here on stays true
    try:
        with closing(RunsTopic(bus, names, until)) as runs:
            mirror = store.get(RunInForce, RunInForce.current)
            yield Publisher(config, names, bus, store, producer, runs, max(runs.rev, mirror.rev if mirror else 0))
    finally:
        producer.close()


def cluster_topics(bus: Bus, names: Names) -> list[str]:
    """Return the cluster topics there are."""
    return [topic for topic in bus.topics() if names.cluster_of(topic)]


def _pieces(items: Iterable[T], size: int) -> Iterator[list[T]]:
    rest = iter(items)
    while piece := list(islice(rest, size)):
        yield piece
