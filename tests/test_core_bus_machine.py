"""The promises of every bus under any order of events, against a model of a few lists: SQLite, and the real broker."""

from __future__ import annotations

import os
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import hypothesis
import pytest
from hypothesis import stateful
from hypothesis import strategies as st
from test_core_bus import GiveUpError

from core.bus import Bus, Consumer, Message, Producer, Topic, lag, open_bus, read_to_end
from core.errors import FencedError

FACTOR = 10 if "MURMUR_FULL" in os.environ else 1
CLEANUP = {"kept": "delete", "spread": "delete", "compacted": "compact", "copies": "delete"}
"""Name → cleanup; on Kafka `spread` has two partitions."""
GROUPS = {"first": ("kept", "spread", "compacted"), "second": ("compacted", "spread")}
POLL_SECONDS = 0.02

Key = tuple[str, bytes]
"""Topic, without what makes it new for each run, and key. All messages of one have the same sender."""


@dataclass
class Sent:
    """A message of the model."""

    number: int
    value: bytes | None
    is_certain: bool = False
    """Whether it was acknowledged, or seen."""
    is_trimmed: bool = False
    is_gone: bool = False
    """Whether it must not be seen any more: it was not acknowledged, and what was sent after it came without it."""

    @property
    def must_come(self) -> bool:
        return self.is_certain and not self.is_trimmed


@dataclass
class Group:
    """How many messages of each key a group has read and committed, and its member, if there is one."""

    name: str
    member: Consumer | None = None
    copier: Producer | None = None
    read: dict[Key, int] = field(default_factory=lambda: defaultdict(int))
    committed: dict[Key, int] = field(default_factory=lambda: defaultdict(int))


@dataclass
class Publisher:
    """A producer with a transactional id, and its open transaction with what was sent in it."""

    producer: Producer
    transaction: AbstractContextManager[None] | None = None
    sent: list[tuple[Key, Sent]] = field(default_factory=list)

    def give_up(self) -> None:
        """End the transaction by an error."""
        transaction, self.transaction = self.transaction, None
        assert transaction
        assert not transaction.__exit__(GiveUpError, GiveUpError(), None)


keys = st.sampled_from([b"a", b"b", b"c"])
topics = st.sampled_from(["kept", "spread", "compacted"])
groups = st.sampled_from(sorted(GROUPS))
tombstones = st.integers(0, 4).map(lambda n: n == 0)
few = st.integers(1, 4)


class BusMachine(stateful.RuleBasedStateMachine):
    """Senders, readers and their deaths in any order.

    Parameters
    ----------
    buses : sequence of Bus
        Two connections: what one sends the other reads.
    patience : float
        Seconds until what is missing counts as lost.
    """

    def __init__(self, buses: Sequence[Bus], patience: float) -> None:
        super().__init__()
        self.patience = patience
        self.sending, self.reading = buses
        self.run = uuid.uuid4().hex[:12]
        self.n_sent = 0
        self.log: dict[Key, list[Sent]] = defaultdict(list)
        self.groups = {name: Group(f"{self.run}.{name}") for name in GROUPS}
        self.plain: Producer | None = None
        self.unflushed: list[Sent] = []
        self.publisher: Publisher | None = None
        self.zombies: list[Publisher] = []
        self.sending.create_topics(
            Topic(self._topic(name), cleanup, partitions=2 if name == "spread" else 1)  # type: ignore[arg-type]
            for name, cleanup in CLEANUP.items()
        )

    # Sending

    @stateful.rule(topic=topics, key=keys, is_tombstone=tombstones)
    def send(self, topic: str, key: bytes, is_tombstone: bool) -> None:
        self.plain = self.plain or self.sending.producer()
        sent = self._send(self.plain, (topic, key), is_tombstone)
        self.log[topic, key].append(sent)
        self.unflushed.append(sent)

    @stateful.rule()
    def flush(self) -> None:
        if self.plain:
            self.plain.flush()
            for sent in self.unflushed:
                sent.is_certain = True
        self.unflushed = []

    @stateful.rule()
    def crash_before_flushing(self) -> None:
        """Lose what is not flushed, or not."""
        if self.plain:
            self.plain.close()
        self.plain, self.unflushed = None, []

    # Transactions

    @stateful.rule(topic=topics, key=keys, is_tombstone=tombstones)
    def publish(self, topic: str, key: bytes, is_tombstone: bool) -> None:
        """Send in a transaction, which begins if none is open; an heir comes if the publisher crashed."""
        self.publisher = publisher = self.publisher or Publisher(self.sending.producer(f"{self.run}.publisher"))
        if publisher.transaction is None:
            publisher.transaction = publisher.producer.transaction()
            publisher.transaction.__enter__()
        at = (topic, b"published " + key)
        publisher.sent.append((at, self._send(publisher.producer, at, is_tombstone)))

    @stateful.rule()
    def flush_what_is_published(self) -> None:
        if self.publisher:
            self.publisher.producer.flush()

    @stateful.precondition(lambda self: self.publisher and self.publisher.transaction)
    @stateful.rule()
    def commit_what_is_published(self) -> None:
        assert self.publisher
        assert self.publisher.transaction
        self.publisher.transaction.__exit__(None, None, None)
        for at, sent in self.publisher.sent:
            sent.is_certain = True
            self.log[at].append(sent)
        self.publisher = Publisher(self.publisher.producer)

    @stateful.precondition(lambda self: self.publisher and self.publisher.transaction)
    @stateful.rule()
    def abort_what_is_published(self) -> None:
        assert self.publisher
        self.publisher.give_up()
        self.publisher = Publisher(self.publisher.producer)

    @stateful.precondition(lambda self: self.publisher)
    @stateful.rule()
    def leave_the_publisher_to_an_heir(self) -> None:
        """Let it hang, as far as the others know, with its transaction open or not."""
        assert self.publisher
        self.zombies.append(self.publisher)
        self.publisher = None

    @stateful.precondition(lambda self: self.publisher and self.zombies)
    @stateful.rule(key=keys)
    def let_a_zombie_go_on(self, key: bytes) -> None:
        """Tell it that it was taken over; nothing of its transaction is seen."""
        zombie = self.zombies[-1]

        def go_on() -> None:
            with ExitStack() as stack:
                if zombie.transaction:
                    stack.push(zombie.transaction)
                else:
                    stack.enter_context(zombie.producer.transaction())
                zombie.transaction = None
                self._send(zombie.producer, ("kept", b"published " + key), False)

        with pytest.raises(FencedError):
            go_on()

    # Reading

    @stateful.rule(group=groups, n_messages=few)
    def poll(self, group: str, n_messages: int) -> None:
        self._poll(self.groups[group], n_messages)

    @stateful.rule(group=groups)
    def commit(self, group: str) -> None:
        if member := self.groups[group].member:
            member.commit()
            self._commit(self.groups[group])

    @stateful.rule(group=groups)
    def rewind(self, group: str) -> None:
        if member := self.groups[group].member:
            member.rewind()
            self._go_back(self.groups[group])

    @stateful.rule(group=groups)
    def crash_before_committing(self, group: str) -> None:
        self._leave(self.groups[group])

    @stateful.rule(group=groups, n_messages=few, is_aborted=st.booleans())
    def copy(self, group: str, n_messages: int, is_aborted: bool) -> None:
        """Read and send on, in a transaction that commits for the reader; if it is aborted it goes back."""
        one = self.groups[group]
        one.copier = one.copier or self.reading.producer(commits=self._member(one))
        copies: list[tuple[Key, Sent]] = []

        def send_on() -> None:
            assert one.copier
            with one.copier.transaction():
                for _, key in self._poll(one, n_messages):
                    at = ("copies", group.encode() + b" " + key)
                    copies.append((at, self._send(one.copier, at, False)))
                if is_aborted:
                    raise GiveUpError

        if is_aborted:
            with pytest.raises(GiveUpError):
                send_on()
            self._member(one).rewind()
            self._go_back(one)
            return
        send_on()
        self._commit(one)
        for at, sent in copies:
            sent.is_certain = True
            self.log[at].append(sent)

    @stateful.precondition(lambda self: not self._is_any_open())
    @stateful.rule(group=groups)
    def catch_up(self, group: str) -> None:
        """Read until all is there that is readable."""
        one, deadline = self.groups[group], time.monotonic() + self.patience
        while missing := self._missing(one.read, GROUPS[group]):
            assert time.monotonic() < deadline, f"{group} never got {missing}"
            self._poll(one, 100)

    @stateful.rule(group=groups)
    def trim(self, group: str) -> None:
        """Remove what a group has done with, whatever another thinks of it."""
        one = self.groups[group]
        trimmed = [topic for topic in GROUPS[group] if CLEANUP[topic] == "delete"]
        self.reading.trim(self.reading.committed(one.name, map(self._topic, trimmed)))
        for at, sent in self.log.items():
            for passed in sent[: one.committed[at]] if at[0] in trimmed else ():
                passed.is_trimmed = True

    def teardown(self) -> None:
        """Let everything end, and see that each group and a reader without one find what is left, and no more."""
        try:
            if sys.exception() is None:
                self._finish()
        finally:
            for group in self.groups.values():
                self._leave(group)
            for producer in (self.plain, *(one.producer for one in (self.publisher, *self.zombies) if one)):
                if producer:
                    producer.close()

    def _finish(self) -> None:
        self.flush()
        if self.zombies or self.publisher:
            self.publish("kept", b"a", False)  # an heir comes
            self.commit_what_is_published()
        for zombie in self.zombies:
            if zombie.transaction:
                zombie.give_up()
        for name, group in self.groups.items():
            self._leave(group)
            assert group.read == group.committed
            self.catch_up(name)
            member = self._member(group)
            uncertain = {
                at for at, sent in self.log.items() if not all(one.is_certain for one in sent[group.read[at] :])
            }
            while not member.at_end():
                assert uncertain.issuperset(self._poll(group, 100)), "it was acknowledged, and came after all had come"
            member.commit()
            assert lag(self.sending, group.name, [self._topic(topic) for topic in GROUPS[name]]) == 0
        everything: dict[Key, int] = defaultdict(int)
        for message in read_to_end(self.reading, [self._topic(name) for name in CLEANUP]):
            at = self._receive(everything, message)
            assert not self.log[at][everything[at] - 1].is_trimmed
        assert not self._missing(everything, CLEANUP)

    # The model

    def _topic(self, name: str) -> str:
        return f"{name}.{self.run}.v1"

    def _is_any_open(self) -> bool:
        """Return whether a transaction may hold the readers up."""
        abandoned = self.zombies if self.publisher is None else []
        return any(one.transaction for one in (self.publisher, *abandoned) if one)

    def _send(self, producer: Producer, at: Key, is_tombstone: bool) -> Sent:
        self.n_sent += 1
        sent = Sent(self.n_sent, None if is_tombstone else b"value %d" % self.n_sent)
        producer.send(self._topic(at[0]), at[1], sent.value, (("number", b"%d" % sent.number),))
        return sent

    def _member(self, group: Group) -> Consumer:
        if group.member is None:
            subscribed = GROUPS[group.name.rpartition(".")[2]]
            group.member = self.reading.consumer([self._topic(name) for name in subscribed], group=group.name)
        return group.member

    def _leave(self, group: Group) -> None:
        for client in (group.copier, group.member):
            if client:
                client.close()
        group.copier = group.member = None
        self._go_back(group)

    def _poll(self, group: Group, n_messages: int) -> list[Key]:
        messages = self._member(group).poll(POLL_SECONDS, n_messages)
        assert len(messages) <= n_messages
        return [self._receive(group.read, message) for message in messages]

    def _receive(self, read: dict[Key, int], message: Message) -> Key:
        """Move a reader behind a message: the next of its key, but for those that may be missing."""
        assert message.key is not None
        topic = message.topic.partition(".")[0]
        sent = self.log[topic, message.key]
        numbers = [one.number for one in sent]
        number = int(message.header("number") or 0)
        assert number in numbers, f"{number} was never sent, or not in a transaction that was committed"
        n, begin = numbers.index(number), read[topic, message.key]
        assert begin <= n, f"{number} came again, or after what was sent later"
        assert sent[n].value == message.value
        assert not sent[n].is_gone, f"{number} was not there when another read its key"
        if CLEANUP[topic] == "delete":
            assert not [one for one in sent[begin:n] if one.must_come], f"{number} came before what was sent earlier"
            for one in sent[begin:n]:
                one.is_gone = not one.is_certain
        sent[n].is_certain = True
        read[topic, message.key] = n + 1
        return topic, message.key

    def _missing(self, read: dict[Key, int], topics: Sequence[str] | dict[str, str]) -> list[int]:
        """Return the numbers of what must still come."""
        return [
            one.number for at, sent in self.log.items() for one in sent[read[at] :] if at[0] in topics and one.must_come
        ]

    def _commit(self, group: Group) -> None:
        group.committed = defaultdict(int, group.read)

    def _go_back(self, group: Group) -> None:
        group.read = defaultdict(int, group.committed)


def run_machine(url: str, *, n_runs: int, n_steps: int, patience: float, phases: Sequence[hypothesis.Phase]) -> None:
    """Let the machine run; what fails is repeated by the seed that is printed."""
    seed = os.environ["MURMUR_SEED"]
    print(f"MURMUR_SEED={seed} repeats it")
    settings = hypothesis.settings(
        max_examples=n_runs * FACTOR,
        stateful_step_count=n_steps,
        deadline=None,
        database=None,
        phases=phases,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    with closing(open_bus(url)) as sending, closing(open_bus(url)) as reading:

        @hypothesis.seed(seed)
        def machine() -> BusMachine:
            return BusMachine([sending, reading], patience)

        stateful.run_state_machine_as_test(machine, settings=settings)


def test_whatever_happens_in_whatever_order_sqlite_keeps_its_promises(tmp_path: Path) -> None:
    phases = [hypothesis.Phase.generate, hypothesis.Phase.shrink]
    run_machine(f"sqlite:///{tmp_path}/bus.db", n_runs=60, n_steps=40, patience=0.2, phases=phases)


@pytest.mark.servers
def test_whatever_happens_in_whatever_order_kafka_keeps_its_promises(
    kafka_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.kafka.TRANSACTION_TIMEOUT_MS", 120_000)  # a transaction stays open while others act
    run_machine(kafka_url, n_runs=10, n_steps=30, patience=60.0, phases=[hypothesis.Phase.generate])
