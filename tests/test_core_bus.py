"""One contract for every bus: SQLite, and Kafka on the real broker."""

from __future__ import annotations

import multiprocessing
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

import pytest

from core.bus import Bus, Consumer, Message, Topic, TopicPartition, lag, open_bus, read_to_end
from core.errors import BackendError, ConfigError, FencedError

Reopen = Callable[[], Bus]
NewTopic = Callable[..., str]


class GiveUpError(Exception):
    """What a test raises inside a transaction."""


def drain(consumer: Consumer, *, polls: int = 60) -> list[Message]:
    """Read until the consumer says that it is at its end."""
    messages: list[Message] = []
    for _ in range(polls):
        if consumer.at_end():
            return messages
        messages += consumer.poll(1.0)
    raise AssertionError(f"no end after {polls} polls and {len(messages)} messages")


def take(consumer: Consumer, n_messages: int, *, polls: int = 60) -> list[Message]:
    """Read exactly so many messages."""
    messages: list[Message] = []
    for _ in range(polls):
        messages += consumer.poll(1.0, max_records=n_messages - len(messages))
        if len(messages) >= n_messages:
            return messages
    raise AssertionError(f"{len(messages)} of {n_messages} messages after {polls} polls")


def send(bus: Bus, topic: str, *values: bytes | None, key: bytes | None = b"k") -> None:
    producer = bus.producer()
    for value in values:
        producer.send(topic, key, value)
    producer.flush()
    producer.close()


def values(messages: list[Message]) -> list[bytes | None]:
    return [message.value for message in messages]


def everything(bus: Bus, *topics: str) -> list[bytes | None]:
    return values(list(read_to_end(bus, topics)))


class BusContract:
    """What every bus promises. A subclass gives `reopen`: a bus on the same data, each time a new one."""

    @pytest.fixture
    def bus(self, reopen: Reopen) -> Bus:
        return reopen()

    @pytest.fixture
    def new_topic(self, bus: Bus) -> NewTopic:
        def create(*, cleanup: Literal["compact", "delete"] = "delete", partitions: int = 1) -> str:
            name = f"topic.{uuid.uuid4().hex}.v1"
            bus.create_topics([Topic(name, cleanup, partitions=partitions)])
            return name

        return create

    @pytest.fixture
    def topic(self, new_topic: NewTopic) -> str:
        return new_topic()

    @pytest.fixture
    def group(self) -> str:
        return f"group.{uuid.uuid4().hex}"

    @pytest.fixture
    def name(self) -> str:
        """Return a transactional id."""
        return f"publisher.{uuid.uuid4().hex}"

    # Topics

    def test_topics_lists_what_was_created_in_order(self, bus: Bus, new_topic: NewTopic) -> None:
        created = sorted(new_topic() for _ in range(3))
        assert [name for name in bus.topics() if name in created] == created
        assert bus.topics() == sorted(bus.topics())

    def test_topics_hides_what_belongs_to_the_server(self, bus: Bus, topic: str, group: str) -> None:
        consumer = bus.consumer([topic], group=group)
        drain(consumer)
        consumer.commit()
        assert not [name for name in bus.topics() if name.startswith("__")]

    def test_creating_a_topic_again_keeps_what_it_holds(self, bus: Bus, topic: str) -> None:
        send(bus, topic, b"1")
        other = f"topic.{uuid.uuid4().hex}.v1"
        bus.create_topics([Topic(topic, "delete"), Topic(other, "compact")])
        bus.create_topics([Topic(topic, "delete"), Topic(other, "compact")])
        assert everything(bus, topic) == [b"1"]
        assert other in bus.topics()

    def test_creating_no_topics_is_fine(self, bus: Bus) -> None:
        bus.create_topics([])

    def test_a_topic_that_does_not_exist_is_an_error_that_names_it(self, bus: Bus) -> None:
        with pytest.raises(BackendError, match=r"no\.such\.topic"):
            drain(bus.consumer(["no.such.topic"]))
        with pytest.raises(BackendError, match=r"no\.such\.topic"):
            drain(bus.consumer(["no.such.topic"], group="g"))
        with pytest.raises(BackendError, match=r"no\.such\.topic"):
            bus.ends(["no.such.topic"])
        with pytest.raises(BackendError, match=r"no\.such\.topic"):
            send(bus, "no.such.topic", b"1")
        assert "no.such.topic" not in bus.topics()

    # Messages

    def test_a_message_comes_back_as_it_was_sent(self, bus: Bus, topic: str) -> None:
        headers = (("rev", b"1"), ("rev", b"2"), ("empty", b""), ("odd \u97f3", b"\x00\xff"))
        before = int(time.time() * 1000)
        producer = bus.producer()
        producer.send(topic, b"\x00key\xff", b"\x00value\xff", headers)
        producer.flush()
        (message,) = read_to_end(bus, [topic])
        assert (message.topic, message.partition, message.offset) == (topic, 0, 0)
        assert (message.key, message.value, message.headers) == (b"\x00key\xff", b"\x00value\xff", headers)
        assert message.header("rev") == "2"
        assert message.header("none") is None
        assert before <= message.timestamp <= int(time.time() * 1000)

    def test_a_message_may_have_no_headers_and_an_empty_value(self, bus: Bus, topic: str) -> None:
        send(bus, topic, b"")
        (message,) = read_to_end(bus, [topic])
        assert (message.value, message.headers) == (b"", ())

    def test_a_tombstone_is_read_as_a_value_of_none(self, bus: Bus, topic: str) -> None:
        send(bus, topic, b"1", None)
        assert everything(bus, topic)[-1] is None

    def test_a_message_without_a_key_keeps_its_place_in_a_topic_that_is_not_compacted(
        self, bus: Bus, new_topic: NewTopic
    ) -> None:
        topic = new_topic()
        send(bus, topic, b"1", b"2", key=None)
        messages = list(read_to_end(bus, [topic]))
        assert [(message.key, message.value) for message in messages] == [(None, b"1"), (None, b"2")]

    def test_a_message_without_a_key_is_refused_by_a_compacted_topic_and_the_producer_lives_on(
        self, bus: Bus, new_topic: NewTopic
    ) -> None:
        topic = new_topic(cleanup="compact")
        producer = bus.producer()
        with pytest.raises(BackendError, match="key"):
            producer.send(topic, None, b"1")
        producer.send(topic, b"k", b"2")
        producer.flush()
        assert everything(bus, topic) == [b"2"]

    def test_messages_of_a_key_keep_their_order(self, bus: Bus, new_topic: NewTopic) -> None:
        topic = new_topic(partitions=3)
        producer = bus.producer()
        sent = [(f"k{n % 7}".encode(), str(n).encode()) for n in range(700)]
        for key, value in sent:
            producer.send(topic, key, value)
        producer.flush()
        messages = list(read_to_end(bus, [topic]))
        assert len(messages) == len(sent)
        for key in {key for key, _ in sent}:
            of_key = [message for message in messages if message.key == key]
            assert values(of_key) == [value for k, value in sent if k == key]
            assert len({message.partition for message in of_key}) == 1
            assert [message.offset for message in of_key] == sorted({message.offset for message in of_key})

    def test_a_large_message_passes(self, bus: Bus, topic: str) -> None:
        value = bytes(range(256)) * 3000
        send(bus, topic, value)
        assert everything(bus, topic) == [value]

    def test_what_is_flushed_is_there_for_every_other_connection(self, bus: Bus, topic: str, reopen: Reopen) -> None:
        producer = bus.producer()
        producer.send(topic, b"k", b"1")
        producer.flush()
        assert everything(reopen(), topic) == [b"1"]

    def test_flushing_nothing_and_closing_is_fine(self, bus: Bus) -> None:
        producer = bus.producer()
        producer.flush()
        producer.close()

    def test_messages_outlive_the_bus_object(self, bus: Bus, topic: str, reopen: Reopen) -> None:
        send(bus, topic, b"1")
        bus.close()
        assert everything(reopen(), topic) == [b"1"]

    # Reading

    def test_poll_moves_the_position_and_returns_no_more_than_asked(self, bus: Bus, topic: str) -> None:
        send(bus, topic, *(b"%d" % n for n in range(10)))
        consumer = bus.consumer([topic])
        first = take(consumer, 3)
        assert len(first) == 3
        assert values(first + drain(consumer)) == [b"%d" % n for n in range(10)]
        assert consumer.poll(0.1) == []

    def test_a_reader_without_a_group_begins_at_the_beginning_each_time(self, bus: Bus, topic: str) -> None:
        send(bus, topic, b"1", b"2")
        assert everything(bus, topic) == everything(bus, topic) == [b"1", b"2"]

    def test_a_reader_without_a_group_goes_back_to_where_it_said_that_it_was_done(self, bus: Bus, topic: str) -> None:
        send(bus, topic, *(b"%d" % n for n in range(4)))
        consumer = bus.consumer([topic])
        take(consumer, 2)
        consumer.rewind()
        assert values(take(consumer, 2)) == [b"0", b"1"]
        consumer.commit()
        take(consumer, 1)
        consumer.rewind(0.1)
        assert values(drain(consumer)) == [b"2", b"3"]

    def test_a_reader_begins_where_it_is_told_and_elsewhere_at_the_beginning(
        self, bus: Bus, new_topic: NewTopic
    ) -> None:
        first, second = new_topic(), new_topic()
        send(bus, first, b"1", b"2", b"3")
        send(bus, second, b"4", b"5")
        start = {TopicPartition(first, 0): 2}
        assert values(sorted_by_value(read_to_end(bus, [first, second], start))) == [b"3", b"4", b"5"]
        assert list(read_to_end(bus, [first], {TopicPartition(first, 0): 3})) == []

    def test_a_reader_of_several_topics_gets_all_of_them(self, bus: Bus, new_topic: NewTopic) -> None:
        topics = [new_topic() for _ in range(3)]
        for topic in topics:
            send(bus, topic, topic.encode())
        assert sorted(message.topic for message in read_to_end(bus, topics)) == sorted(topics)

    def test_a_reader_of_no_topics_has_nothing_to_read(self, bus: Bus) -> None:
        assert list(read_to_end(bus, [])) == []
        assert bus.ends([]) == {}

    def test_at_end_is_true_at_once_where_there_is_nothing_to_read(self, bus: Bus, topic: str) -> None:
        assert bus.consumer([topic]).at_end()

    def test_at_end_means_the_end_that_was_there_when_reading_began(self, bus: Bus, topic: str) -> None:
        send(bus, topic, b"1", b"2", b"3")
        consumer = bus.consumer([topic])
        take(consumer, 1)
        send(bus, topic, *[b"later"] * 5)
        assert not consumer.at_end()
        take(consumer, 2)
        assert consumer.at_end()
        assert values(take(consumer, 5)) == [b"later"] * 5

    def test_the_end_of_a_member_of_a_group_is_that_of_its_first_poll(self, bus: Bus, topic: str, group: str) -> None:
        send(bus, topic, b"1", b"2")
        consumer = bus.consumer([topic], group=group)
        take(consumer, 1)
        send(bus, topic, b"later")
        assert not consumer.at_end()
        take(consumer, 1)
        assert consumer.at_end()

    def test_a_reader_that_reached_the_end_can_follow(self, bus: Bus, topic: str) -> None:
        send(bus, topic, b"1")
        consumer = bus.consumer([topic])
        drain(consumer)
        assert consumer.poll(0.1) == []
        send(bus, topic, b"2")
        assert values(take(consumer, 1)) == [b"2"]

    def test_a_reader_that_looks_ahead_is_at_the_end_once_it_has_read_what_came_meanwhile(
        self, bus: Bus, topic: str
    ) -> None:
        send(bus, topic, b"1")
        consumer = bus.consumer([topic])
        drain(consumer)
        send(bus, topic, b"2", b"3")
        assert consumer.at_end()
        assert consumer.look_ahead() == bus.ends([topic])
        assert not consumer.at_end()
        assert values(drain(consumer)) == [b"2", b"3"]
        consumer.look_ahead()
        assert consumer.at_end()

    def test_a_member_of_a_group_looks_ahead_too(self, bus: Bus, topic: str, group: str) -> None:
        send(bus, topic, b"1")
        consumer = bus.consumer([topic], group=group)
        drain(consumer)
        send(bus, topic, b"2", b"3")
        assert consumer.look_ahead() == bus.ends([topic])
        assert values(drain(consumer)) == [b"2", b"3"]

    # Groups

    def test_a_new_group_begins_at_the_beginning(self, bus: Bus, topic: str, group: str) -> None:
        send(bus, topic, b"1", b"2")
        assert bus.committed(group, [topic]) == {}
        assert values(drain(bus.consumer([topic], group=group))) == [b"1", b"2"]

    def test_what_was_committed_is_not_read_again(self, bus: Bus, topic: str, group: str) -> None:
        send(bus, topic, b"1", b"2", b"3")
        consumer = bus.consumer([topic], group=group)
        take(consumer, 2)
        consumer.commit()
        consumer.close()
        assert bus.committed(group, [topic]) == {TopicPartition(topic, 0): 2}
        assert values(drain(bus.consumer([topic], group=group))) == [b"3"]

    def test_what_was_not_committed_is_delivered_again(self, bus: Bus, topic: str, group: str) -> None:
        send(bus, topic, b"1", b"2", b"3")
        consumer = bus.consumer([topic], group=group)
        take(consumer, 1)
        consumer.commit()
        take(consumer, 2)
        consumer.close()
        assert values(drain(bus.consumer([topic], group=group))) == [b"2", b"3"]

    def test_a_group_that_read_everything_has_no_lag(self, bus: Bus, topic: str, group: str, name: str) -> None:
        producer = bus.producer(name)
        with producer.transaction():
            producer.send(topic, b"a", b"1")
            producer.send(topic, b"b", b"2")
        assert lag(bus, group, [topic]) >= 2
        consumer = bus.consumer([topic], group=group)
        drain(consumer)
        consumer.commit()
        consumer.close()
        assert lag(bus, group, [topic]) == 0
        assert drain(bus.consumer([topic], group=group)) == []

    def test_a_commit_outlives_the_bus_object(self, bus: Bus, topic: str, group: str, reopen: Reopen) -> None:
        send(bus, topic, b"1", b"2")
        consumer = bus.consumer([topic], group=group)
        take(consumer, 1)
        consumer.commit()
        consumer.close()
        bus.close()
        assert reopen().committed(group, [topic]) == {TopicPartition(topic, 0): 1}

    def test_groups_are_independent(self, bus: Bus, topic: str, group: str) -> None:
        send(bus, topic, b"1", b"2")
        consumer = bus.consumer([topic], group=group)
        drain(consumer)
        consumer.commit()
        assert values(drain(bus.consumer([topic], group=f"{group}.other"))) == [b"1", b"2"]
        assert bus.committed(f"{group}.other", [topic]) == {}

    def test_committed_tells_of_the_asked_topics_only(self, bus: Bus, new_topic: NewTopic, group: str) -> None:
        first, second = new_topic(), new_topic()
        send(bus, first, b"1")
        send(bus, second, b"1")
        consumer = bus.consumer([first, second], group=group)
        drain(consumer)
        consumer.commit()
        assert bus.committed(group, [second]) == {TopicPartition(second, 0): 1}

    def test_a_second_member_goes_on_from_the_commit_when_the_first_leaves(
        self, bus: Bus, topic: str, group: str, reopen: Reopen
    ) -> None:
        send(bus, topic, *(b"%d" % n for n in range(6)))
        first = bus.consumer([topic], group=group)
        take(first, 2)
        first.commit()
        take(first, 2)
        second = reopen().consumer([topic], group=group)
        assert second.poll(0.5) == []
        first.close()
        assert values(take(second, 4)) == [b"2", b"3", b"4", b"5"]

    def test_after_going_back_what_was_not_committed_is_delivered_again(self, bus: Bus, topic: str, group: str) -> None:
        send(bus, topic, *(b"%d" % n for n in range(6)))
        consumer = bus.consumer([topic], group=group)
        take(consumer, 2)
        consumer.rewind()
        assert values(take(consumer, 3)) == [b"0", b"1", b"2"]
        consumer.commit()
        take(consumer, 2)
        consumer.rewind(0.5)
        assert values(take(consumer, 3)) == [b"3", b"4", b"5"]
        consumer.rewind()
        consumer.commit()
        assert bus.committed(group, [topic]) == {TopicPartition(topic, 0): 3}

    def test_going_back_with_nothing_read_changes_nothing(self, bus: Bus, topic: str, group: str) -> None:
        send(bus, topic, b"1", b"2")
        consumer = bus.consumer([topic], group=group)
        consumer.rewind(0.3)
        take(consumer, 1)
        consumer.commit()
        consumer.rewind()
        assert values(drain(consumer)) == [b"2"]

    def test_the_groups_of_a_prefix_are_known_with_what_they_have_committed(
        self, bus: Bus, new_topic: NewTopic, group: str
    ) -> None:
        topic, other = new_topic(), new_topic()
        send(bus, topic, b"1", b"2", b"3")
        send(bus, other, b"4")
        for name, read in ((f"{group}.a", topic), (f"{group}.b", topic), (f"{group}.c", other), (f"x.{group}", topic)):
            consumer = bus.consumer([read], group=name)
            take(consumer, 1)
            if name != f"{group}.b":
                consumer.commit()
            consumer.close()
        assert bus.groups(group, [topic]) == {f"{group}.a": {TopicPartition(topic, 0): 1}}
        assert bus.groups(group, [topic, other]).keys() == {f"{group}.a", f"{group}.c"}
        assert bus.groups("no such prefix", [topic]) == {}

    # Ends

    def test_the_first_message_beyond_an_offset_is_found_in_each_partition(
        self, bus: Bus, new_topic: NewTopic, name: str
    ) -> None:
        topic, compacted, empty = new_topic(), new_topic(cleanup="compact"), new_topic()
        send(bus, topic, *(b"%d" % n for n in range(100)))
        for value in (b"a", b"b"):
            send(bus, compacted, value, key=value)
        producer = bus.producer(name)
        with producer.transaction():
            producer.send(empty, b"k", b"in a transaction")
        at, beside, beyond = (TopicPartition(topic, 0) for topic in (topic, compacted, empty))
        found = bus.first({at: 7, beside: 1, beyond: 1})
        assert {place: (message.offset, message.value) for place, message in found.items()} == {
            at: (7, b"7"),
            beside: (1, b"b"),
        }
        assert abs(found[at].timestamp / 1000 - time.time()) < 600
        assert bus.first({at: 100}) == bus.first({}) == {}

    def test_the_first_message_is_found_beyond_what_was_removed(self, bus: Bus, topic: str) -> None:
        send(bus, topic, *(b"%d" % n for n in range(5)))
        at = TopicPartition(topic, 0)
        bus.trim({at: 3})
        assert bus.first({at: 0})[at].value == b"3"

    def test_ends_are_the_next_offsets(self, bus: Bus, new_topic: NewTopic) -> None:
        empty, filled = new_topic(), new_topic()
        send(bus, filled, b"1", b"2")
        assert bus.ends([empty, filled]) == {TopicPartition(empty, 0): 0, TopicPartition(filled, 0): 2}

    def test_reading_from_the_ends_gives_only_what_is_new(self, bus: Bus, topic: str) -> None:
        send(bus, topic, b"1")
        ends = bus.ends([topic])
        send(bus, topic, b"2")
        assert values(list(read_to_end(bus, [topic], ends))) == [b"2"]

    # Transactions

    def test_a_transaction_is_seen_as_a_whole_and_not_before_its_end(
        self, bus: Bus, new_topic: NewTopic, name: str
    ) -> None:
        first, second = new_topic(), new_topic()
        producer = bus.producer(name)
        with producer.transaction():
            producer.send(first, b"a", b"1")
            producer.send(first, b"b", b"2")
            producer.send(second, b"a", b"3")
            assert everything(bus, first, second) == []
            assert set(bus.ends([first, second]).values()) == {0}
        assert values(sorted_by_value(read_to_end(bus, [first, second]))) == [b"1", b"2", b"3"]

    def test_a_transaction_that_raises_is_never_seen_and_the_error_passes(
        self, bus: Bus, topic: str, name: str
    ) -> None:
        producer = bus.producer(name)

        def give_up() -> None:
            with producer.transaction():
                producer.send(topic, b"a", b"lost")
                raise GiveUpError

        with pytest.raises(GiveUpError):
            give_up()
        assert everything(bus, topic) == []
        assert drain(bus.consumer([topic])) == []
        with producer.transaction():
            producer.send(topic, b"a", b"kept")
        assert everything(bus, topic) == [b"kept"]

    def test_an_aborted_transaction_between_committed_ones_leaves_no_trace(
        self, bus: Bus, topic: str, group: str, name: str
    ) -> None:
        producer = bus.producer(name)
        for n in range(6):
            with suppress(GiveUpError), producer.transaction():
                producer.send(topic, b"k", b"%d" % n)
                if n % 2:
                    raise GiveUpError
        assert everything(bus, topic) == [b"0", b"2", b"4"]
        consumer = bus.consumer([topic], group=group)
        assert values(drain(consumer)) == [b"0", b"2", b"4"]
        consumer.commit()
        assert lag(bus, group, [topic]) == 0

    def test_transactions_follow_each_other_and_may_be_empty(self, bus: Bus, topic: str, name: str) -> None:
        producer = bus.producer(name)
        for n in range(5):
            with producer.transaction():
                if n != 2:
                    producer.send(topic, b"k", b"%d" % n)
        assert everything(bus, topic) == [b"0", b"1", b"3", b"4"]

    def test_what_a_transaction_sent_is_there_as_soon_as_it_has_ended(
        self, bus: Bus, new_topic: NewTopic, name: str
    ) -> None:
        topics = [new_topic() for _ in range(5)]
        producer = bus.producer(name)
        before = bus.ends(topics)
        for _ in range(20):
            with producer.transaction():
                for topic in topics:
                    producer.send(topic, b"k", b"v")
            after = bus.ends(topics)
            assert all(after[partition] > end for partition, end in before.items())
            before = after

    def test_a_message_that_is_refused_inside_a_transaction_ends_it_unseen(
        self, bus: Bus, topic: str, name: str
    ) -> None:
        producer = bus.producer(name)

        def refused() -> None:
            with producer.transaction():
                producer.send(topic, b"k", b"lost")
                producer.send("no.such.topic", b"k", b"lost")

        with pytest.raises(BackendError):
            refused()
        assert everything(bus, topic) == []

    def test_a_new_producer_of_the_same_id_fences_the_former_one(self, bus: Bus, topic: str, name: str) -> None:
        zombie = bus.producer(name)
        with zombie.transaction():
            zombie.send(topic, b"k", b"before")
        heir = bus.producer(name)
        for _ in range(2):
            with pytest.raises(FencedError), zombie.transaction():
                zombie.send(topic, b"k", b"zombie")
        for _ in range(2):
            with heir.transaction():
                heir.send(topic, b"k", b"heir")
        assert everything(bus, topic) == [b"before", b"heir", b"heir"]

    def test_a_producer_fenced_inside_a_transaction_cannot_commit_it(
        self, bus: Bus, topic: str, name: str, reopen: Reopen
    ) -> None:
        zombie, heirs = bus.producer(name), []

        def overtaken() -> None:
            with zombie.transaction():
                zombie.send(topic, b"k", b"zombie")
                zombie.flush()
                heirs.append(reopen().producer(name))
                with heirs[0].transaction():
                    heirs[0].send(topic, b"k", b"heir")
                zombie.send(topic, b"k", b"zombie")

        with pytest.raises(FencedError):
            overtaken()
        with heirs[0].transaction():
            heirs[0].send(topic, b"k", b"heir")
        assert everything(bus, topic) == [b"heir", b"heir"]

    def test_producers_of_different_ids_do_not_fence_each_other(self, bus: Bus, topic: str, name: str) -> None:
        first, second = bus.producer(name), bus.producer(f"{name}.other")
        for producer in (first, second, first):
            with producer.transaction():
                producer.send(topic, b"k", b"1")
        assert everything(bus, topic) == [b"1"] * 3

    def test_a_producer_without_an_id_has_no_transactions(self, bus: Bus) -> None:
        producer = bus.producer()
        with pytest.raises(BackendError, match="transactional_id"), producer.transaction():
            pass

    def test_a_transaction_that_commits_for_a_consumer_persists_messages_and_position_together(
        self, bus: Bus, new_topic: NewTopic, group: str
    ) -> None:
        source, target = new_topic(), new_topic()
        send(bus, source, *(b"%d" % n for n in range(5)))
        consumer = bus.consumer([source], group=group)
        producer = bus.producer(commits=consumer)
        for n_messages in (2, 1):
            with producer.transaction():
                for message in take(consumer, n_messages):
                    producer.send(target, message.key, message.value)
        assert everything(bus, target) == [b"0", b"1", b"2"]
        assert bus.committed(group, [source]) == {TopicPartition(source, 0): 3}
        consumer.rewind()
        assert values(drain(consumer)) == [b"3", b"4"]

    def test_a_transaction_that_raises_persists_neither_messages_nor_position(
        self, bus: Bus, new_topic: NewTopic, group: str
    ) -> None:
        source, target = new_topic(), new_topic()
        send(bus, source, b"0", b"1", b"2")
        consumer = bus.consumer([source], group=group)
        producer = bus.producer(commits=consumer)

        def give_up() -> None:
            with producer.transaction():
                for message in take(consumer, 2):
                    producer.send(target, message.key, message.value)
                raise GiveUpError

        with pytest.raises(GiveUpError):
            give_up()
        assert everything(bus, target) == []
        assert bus.committed(group, [source]) == {}
        consumer.rewind()
        with producer.transaction():
            for message in take(consumer, 3):
                producer.send(target, message.key, message.value)
        assert everything(bus, target) == [b"0", b"1", b"2"]

    def test_a_producer_with_an_id_that_commits_for_a_consumer_persists_neither_once_it_is_fenced(
        self, bus: Bus, new_topic: NewTopic, group: str, name: str
    ) -> None:
        source, target = new_topic(), new_topic()
        send(bus, source, *(b"%d" % n for n in range(5)))
        consumer = bus.consumer([source], group=group)
        producer = bus.producer(name, commits=consumer)

        def pass_on(n_messages: int) -> None:
            with producer.transaction():
                for message in take(consumer, n_messages):
                    producer.send(target, message.key, message.value)

        pass_on(2)
        bus.producer(name)
        with pytest.raises(FencedError):
            pass_on(1)
        assert everything(bus, target) == [b"0", b"1"]
        assert bus.committed(group, [source]) == {TopicPartition(source, 0): 2}

    def test_a_group_has_members_while_a_consumer_of_it_is_at_work(self, bus: Bus, topic: str, group: str) -> None:
        assert not bus.has_members(group)
        consumer = bus.consumer([topic], group=group)
        drain(consumer)
        assert bus.has_members(group)
        assert not bus.has_members(f"{group}.other")
        consumer.close()
        assert not bus.has_members(group)

    # Trimming

    def test_what_is_trimmed_is_gone_and_offsets_stay(self, bus: Bus, new_topic: NewTopic, group: str) -> None:
        trimmed, other = new_topic(), new_topic()
        for topic in (trimmed, other):
            send(bus, topic, *(b"%d" % n for n in range(5)))
        bus.trim({TopicPartition(trimmed, 0): 3})
        messages = list(read_to_end(bus, [trimmed]))
        assert [(message.offset, message.value) for message in messages] == [(3, b"3"), (4, b"4")]
        assert len(everything(bus, other)) == 5
        bus.trim({TopicPartition(trimmed, 0): 5})
        bus.trim({})
        assert everything(bus, trimmed) == []
        assert bus.ends([trimmed]) == {TopicPartition(trimmed, 0): 5}
        send(bus, trimmed, b"5")
        assert [message.offset for message in read_to_end(bus, [trimmed])] == [5]
        assert values(drain(bus.consumer([trimmed], group=group))) == [b"5"]

    # Compaction

    def test_a_compacted_topic_keeps_the_last_value_of_every_key(self, bus: Bus, new_topic: NewTopic) -> None:
        topic = new_topic(cleanup="compact")
        producer = bus.producer()
        for n in range(300):
            producer.send(topic, b"k%d" % (n % 10), b"%d" % n)
        producer.send(topic, b"k3", None)
        producer.flush()
        last = {message.key: message.value for message in read_to_end(bus, [topic])}
        expected: dict[bytes, bytes | None] = {b"k%d" % key: b"%d" % (290 + key) for key in range(10)}
        assert last == expected | {b"k3": None}

    def test_a_compacted_topic_passes_tombstones_on(self, bus: Bus, new_topic: NewTopic) -> None:
        topic = new_topic(cleanup="compact")
        send(bus, topic, b"1", None)
        assert everything(bus, topic)[-1] is None

    def test_a_reader_in_the_middle_of_a_compacted_topic_still_gets_every_last_value(
        self, bus: Bus, new_topic: NewTopic
    ) -> None:
        topic = new_topic(cleanup="compact")
        for key in (b"a", b"b", b"c"):
            send(bus, topic, b"old", key=key)
        consumer = bus.consumer([topic])
        last = {message.key: message.value for message in take(consumer, 2)}
        for key in (b"a", b"c"):
            send(bus, topic, b"new", key=key)
        for _ in range(60):
            last |= {message.key: message.value for message in consumer.poll(1.0)}
            if last == {b"a": b"new", b"b": b"old", b"c": b"new"}:
                break
        assert last == {b"a": b"new", b"b": b"old", b"c": b"new"}

    def test_a_topic_that_is_not_compacted_keeps_every_message(self, bus: Bus, topic: str) -> None:
        send(bus, topic, *(b"%d" % n for n in range(50)))
        assert everything(bus, topic) == [b"%d" % n for n in range(50)]


def sorted_by_value(messages: Iterator[Message]) -> list[Message]:
    return sorted(messages, key=lambda message: message.value or b"")


class TestSQLite(BusContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/bus.db"

    @pytest.fixture
    def reopen(self, url: str) -> Iterator[Reopen]:
        yield from opening(url)

    def test_processes_that_send_never_find_it_locked_while_another_reads(
        self, url: str, bus: Bus, topic: str, group: str
    ) -> None:
        send(bus, topic, *(b"%d" % n for n in range(2000)))
        reading = read_to_end(bus, [topic])
        assert next(reading).value == b"0"
        consumer = bus.consumer([topic], group=group)
        spawn = multiprocessing.get_context("spawn")
        senders = [spawn.Process(target=send_batches, args=(url, topic, name, 60)) for name in ("x", "y")]
        for sender in senders:
            sender.start()
        received = 0
        while any(sender.is_alive() for sender in senders) or not consumer.at_end():
            received += len(consumer.poll(0.1))
            consumer.commit()
        assert [sender.exitcode for sender in senders] == [0, 0]
        assert sum(1 for _ in reading) >= 1999
        consumer.close()
        received += len(drain(bus.consumer([topic], group=group)))
        assert received == 2000 + 2 * 60 * 10

    def test_a_bus_that_only_reads_makes_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"nothing\.db"):
            open_bus(f"sqlite:///{tmp_path}/nothing.db", create=False)
        assert list(tmp_path.iterdir()) == []


def send_batches(url: str, topic: str, name: str, n_batches: int) -> None:
    """Send batches of ten messages, then let go: what a sending process of the test above runs."""
    bus = open_bus(url)
    producer = bus.producer()
    for batch in range(n_batches):
        for n in range(10):
            producer.send(topic, f"{name}{batch}{n}".encode(), b"value" * 100)
        producer.flush()
    producer.close()
    bus.close()


def opening(url: str) -> Iterator[Reopen]:
    """Yield a function that opens the bus at `url`; close what it opened at the end."""
    opened: list[Bus] = []

    def reopen() -> Bus:
        opened.append(open_bus(url))
        return opened[-1]

    yield reopen
    for bus in opened:
        bus.close()


@pytest.mark.servers
class TestKafka(BusContract):
    @pytest.fixture
    def reopen(self, kafka_url: str) -> Iterator[Reopen]:
        yield from opening(kafka_url)
