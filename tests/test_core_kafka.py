"""What is particular to Kafka; its promises as a bus are in ``test_core_bus.py``."""

from __future__ import annotations

import random
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import kafka
import pytest
from conftest import Run
from kafka.admin import ConfigResource, MemberToRemove
from kafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from test_core_bus import GiveUpError, drain, everything, send, take, values
from topics_library import delete_topic

from core.bus import Message, Topic, TopicPartition, lag, open_bus, read_to_end
from core.errors import BackendError, FencedError, MadeAnewError
from core.kafka import Consumer, KafkaBus, Producer


@pytest.fixture
def bus(kafka_url: str) -> Iterator[KafkaBus]:
    bus = KafkaBus(kafka_url)
    yield bus
    bus.close()


@pytest.fixture
def admin(kafka_url: str) -> Iterator[kafka.KafkaAdminClient]:
    with kafka.KafkaAdminClient(bootstrap_servers=kafka_url.removeprefix("kafka://").split(",")) as admin:
        yield admin


@pytest.fixture
def topic(bus: KafkaBus) -> str:
    name = f"topic.{uuid.uuid4().hex}.v1"
    bus.create_topics([Topic(name, "compact")])
    return name


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.kafka.TIMEOUT", 0.5)


def settings(admin: kafka.KafkaAdminClient, topic: str, *names: str) -> list[str]:
    resource = ConfigResource("topic", topic, dict.fromkeys(names))
    found = admin.describe_configs([resource], config_filter="all")["topic"][topic]
    return [found[name]["value"] for name in names]


# Topics


@pytest.mark.servers
def test_a_compacted_topic_keeps_tombstones_for_a_week(admin: kafka.KafkaAdminClient, topic: str) -> None:
    found = settings(admin, topic, "cleanup.policy", "delete.retention.ms")
    assert found == ["compact", str(7 * 24 * 3600 * 1000)]


@pytest.mark.servers
def test_dead_letters_are_kept_for_two_weeks_and_may_be_what_another_producer_had_compressed(
    bus: KafkaBus, admin: kafka.KafkaAdminClient, topic: str
) -> None:
    large = b"x" * 5_000_000
    server = bus.url.removeprefix("kafka://")
    with kafka.KafkaProducer(bootstrap_servers=server, compression_type="zstd", max_request_size=10**7) as producer:
        producer.send(topic, large, b"k").get(10)
    bus.create_topics([Topic(letters := f"{topic}.dlq", "delete")])
    send(bus, letters, *everything(bus, topic))
    assert everything(bus, letters) == [large]
    assert settings(admin, letters, "cleanup.policy", "retention.ms") == ["delete", str(14 * 24 * 3600 * 1000)]


@pytest.mark.servers
def test_a_topic_of_dead_letters_that_takes_less_than_their_sources_is_an_error(
    bus: KafkaBus, admin: kafka.KafkaAdminClient, topic: str
) -> None:
    declared = [Topic(topic, "compact"), Topic(letters := f"{topic}.dlq", "delete")]
    bus.create_topics(declared)
    bus.create_topics(declared)
    change(admin, letters, "max.message.bytes", "1100000")
    with pytest.raises(
        BackendError, match=f"{letters} has max.message.bytes=1100000, .* have 1048588.*=52428800` sets it"
    ):
        bus.create_topics(declared)


@pytest.mark.servers
def test_a_topic_has_the_partitions_that_were_asked_for(bus: KafkaBus) -> None:
    name = f"topic.{uuid.uuid4().hex}.v1"
    bus.create_topics([Topic(name, "compact", partitions=3)])
    assert sorted(partition.partition for partition in bus.ends([name])) == [0, 1, 2]


@pytest.mark.servers
@pytest.mark.parametrize(
    ("there", "declared", "said"),
    [
        ({}, {"partitions": 4}, "has 2 partitions, topics.partitions asks for 4: set it to 2$"),
        ({}, {"partitions": 1}, "has 2 partitions, .* asks for 1: set it to 2; .*kafka-topics.sh .* --delete --topic"),
        ({}, {"replication": 3}, "has 1 replicas, topics.replication asks for 3: set it to 1, or .*reassign"),
        ({"cleanup.policy": "delete"}, {}, "cleanup.policy=delete, not compact: `kafka-configs.sh .*=compact` sets it"),
        ({"cleanup.policy": "compact,delete"}, {}, "cleanup.policy=compact,delete, not compact"),
    ],
)
def test_a_topic_that_is_not_as_declared_is_an_error_that_says_what_is_wrong_and_how_to_mend_it(
    bus: KafkaBus, admin: kafka.KafkaAdminClient, there: dict[str, str], declared: dict[str, int], said: str
) -> None:
    name = f"topic.{uuid.uuid4().hex}.v1"
    found = {"num_partitions": 2, "replication_factor": 1, "configs": {"cleanup.policy": "compact", **there}}
    admin.create_topics({name: found}, wait_for_metadata=True)
    with pytest.raises(BackendError, match=f"{name} (has )?{said}") as caught:
        bus.create_topics([Topic(f"{name}.new", "compact"), Topic(name, "compact", **{"partitions": 2} | declared)])
    assert not caught.value.retriable
    assert "\n" not in str(caught.value)
    assert f"{name}.new" not in bus.topics()


@pytest.mark.servers
def test_a_topic_that_is_as_declared_is_taken_as_it_is(bus: KafkaBus) -> None:
    declared = Topic(f"topic.{uuid.uuid4().hex}.v1", "compact", partitions=2, replication=1)
    bus.create_topics([declared])
    bus.create_topics([declared])


@pytest.mark.servers
def test_after_compaction_the_last_values_remain_and_a_reader_still_finds_the_end(
    bus: KafkaBus, admin: kafka.KafkaAdminClient
) -> None:
    name = f"topic.{uuid.uuid4().hex}.v1"
    eager = {"cleanup.policy": "compact", "segment.ms": "500", "min.cleanable.dirty.ratio": "0.01"}
    admin.create_topics(
        {name: {"num_partitions": 1, "replication_factor": 1, "configs": eager}}, wait_for_metadata=True
    )
    producer = bus.producer(f"publisher.{uuid.uuid4().hex}")
    for n in range(40):
        with producer.transaction():
            producer.send(name, b"a", b"%d" % n)
            producer.send(name, b"b", b"%d" % n)
        with suppress(GiveUpError), producer.transaction():
            producer.send(name, b"a", b"lost")
            raise GiveUpError
        read = list(read_to_end(bus, [name]))
        assert {message.key: message.value for message in read} == {b"a": b"%d" % n, b"b": b"%d" % n}
        if len(read) < 2 * (n + 1):
            return
        time.sleep(0.6)
    raise AssertionError("the broker has not compacted within 24 s")


# Sizes


@pytest.mark.servers
def test_a_message_of_exactly_the_limit_passes_and_a_larger_one_is_refused_before_it_is_sent(
    bus: KafkaBus, admin: kafka.KafkaAdminClient, topic: str
) -> None:
    limit = int(*settings(admin, topic, "max.message.bytes"))
    headers = (("rev", b"1"), ("ce_type", b"murmuration.Track.v1"))
    producer = bus.producer()
    with pytest.raises(
        BackendError, match=rf"a message of (\d+) bytes exceeds the {limit} that {topic} takes"
    ) as caught:
        producer.send(topic, b"k", random.Random(0).randbytes(limit), headers)
    surplus = int(re.findall(r"of (\d+) bytes", str(caught.value))[0]) - limit
    fits = random.Random(0).randbytes(limit - surplus)
    producer.send(topic, b"k", fits, headers)
    producer.flush()
    assert len(fits) > 0.999 * limit
    assert everything(bus, topic) == [fits]


@pytest.mark.servers
def test_the_limit_is_the_topics_own(bus: KafkaBus, admin: kafka.KafkaAdminClient) -> None:
    name = f"topic.{uuid.uuid4().hex}.v1"
    large = {"num_partitions": 1, "replication_factor": 1, "configs": {"max.message.bytes": "8000000"}}
    admin.create_topics({name: large}, wait_for_metadata=True)
    value = random.Random(0).randbytes(7_900_000)
    send(bus, name, value)
    assert everything(bus, name) == [value]


@pytest.mark.servers
def test_more_messages_than_the_buffer_holds_are_all_sent(
    bus: KafkaBus, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.kafka.BUFFER_BYTES", 10_000)
    producer = bus.producer()
    for n in range(100):
        producer.send(topic, b"%d" % n, b"x" * 1000)
    producer.flush()
    assert len(everything(bus, topic)) == 100


# Acknowledgements


def lose(monkeypatch: pytest.MonkeyPatch, *lost: bytes) -> None:
    """Let the driver neither send nor acknowledge these values, each as often as it is named."""
    send, left = kafka.KafkaProducer.send, list(lost)

    def losing(driver: kafka.KafkaProducer, topic: str, value: bytes, *rest: object) -> object:
        if value not in left:
            return send(driver, topic, value, *rest)
        left.remove(value)
        return kafka.future.Future()

    monkeypatch.setattr(kafka.KafkaProducer, "send", losing)


@pytest.mark.servers
def test_what_was_not_acknowledged_is_sent_again_and_the_order_of_its_key_stays(
    bus: KafkaBus, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    producer, sent = bus.producer(), [f"k{n % 3} {n}".encode() for n in range(12)]
    lose(monkeypatch, b"k1 4", b"k2 8")
    for value in sent:
        producer.send(topic, value[:2], value)
    producer.flush()
    producer.send(topic, b"k1", b"k1 12")
    producer.flush()
    read = everything(bus, topic)
    again = [b"k1 4", b"k1 7", b"k2 8", b"k1 10", b"k2 11"]
    arrived = [value for value in sent if value not in (b"k1 4", b"k2 8")]
    assert sorted(read, key=str) == sorted([*arrived, *again, b"k1 12"], key=str)
    for key in (b"k0", b"k1", b"k2"):
        last = [value for value in [*sent, b"k1 12"] if value[:2] == key][-2:]
        assert [value for value in read if value and value[:2] == key][-2:] == last


@pytest.mark.servers
def test_messages_without_a_key_are_sent_again_alone(bus: KafkaBus, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"topic.{uuid.uuid4().hex}.v1"
    bus.create_topics([Topic(name, "delete")])
    lose(monkeypatch, b"2")
    producer = bus.producer()
    for value in (b"1", b"2", b"3"):
        producer.send(name, None, value)
    producer.flush()
    assert sorted(value for value in everything(bus, name) if value) == [b"1", b"2", b"3"]


@pytest.mark.servers
def test_what_is_not_acknowledged_twice_is_an_error_and_the_producer_lives_on(
    bus: KafkaBus, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose(monkeypatch, b"lost", b"lost")
    producer = bus.producer()
    producer.send(topic, b"k", b"lost")
    with pytest.raises(BackendError, match="no acknowledgement") as caught:
        producer.flush()
    assert caught.value.retriable
    producer.flush()
    producer.send(topic, b"k", b"taken")
    producer.flush()
    assert everything(bus, topic) == [b"taken"]


@pytest.mark.servers
def test_a_message_that_cannot_even_be_handed_over_is_sent_by_a_new_producer(bus: KafkaBus, topic: str) -> None:
    producer = bus.producer()
    producer.send(topic, b"k", b"1")
    producer.flush()
    producer._driver.close()
    producer.send(topic, b"k", b"2")
    producer.flush()
    assert everything(bus, topic) == [b"1", b"2"]


@pytest.mark.servers
def test_a_limit_that_was_lowered_meanwhile_is_named_and_the_producer_lives_on(
    bus: KafkaBus, admin: kafka.KafkaAdminClient, topic: str
) -> None:
    producer = bus.producer()
    producer.send(topic, b"k", b"before")
    producer.flush()
    change(admin, topic, "max.message.bytes", "5000")
    producer.send(topic, b"k", random.Random(0).randbytes(6000))
    with pytest.raises(BackendError, match=f"exceeds the 5000 that {topic} takes"):
        producer.flush()
    producer.send(topic, b"k", b"after")
    producer.flush()
    assert everything(bus, topic) == [b"before", b"after"]


@pytest.mark.servers
def test_a_transaction_with_a_message_that_was_not_acknowledged_is_never_seen(
    bus: KafkaBus, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    producer = bus.producer(f"publisher.{uuid.uuid4().hex}")
    lose(monkeypatch, b"2")

    def publish() -> None:
        with producer.transaction():
            for value in (b"1", b"2", b"3"):
                producer.send(topic, b"k", value)

    with pytest.raises(BackendError, match="no acknowledgement"):
        publish()
    assert everything(bus, topic) == []
    publish()
    assert everything(bus, topic) == [b"1", b"2", b"3"]


def change(admin: kafka.KafkaAdminClient, topic: str, name: str, value: str) -> None:
    """Change a topic's setting and wait until the broker goes by it."""
    admin.alter_configs([ConfigResource("topic", topic, {name: value})])
    while settings(admin, topic, name) != [value]:
        time.sleep(0.01)


# Connections


@pytest.mark.usefixtures("_impatient")
def test_nobody_there_is_one_line_with_the_place_and_the_cause(capfd: pytest.CaptureFixture[str]) -> None:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with pytest.raises(
        BackendError, match=rf"127\.0\.0\.1:{port}: no connection: Connection refused; .*bus\.url"
    ) as caught:
        open_bus(f"kafka://127.0.0.1:{port}")
    assert caught.value.retriable
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("_impatient")
def test_somebody_who_is_no_broker_is_an_error_and_not_a_wait() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent, pytest.raises(BackendError, match="no connection"):
        open_bus(f"kafka://127.0.0.1:{silent.getsockname()[1]}")


@pytest.mark.servers
def test_the_first_of_several_brokers_may_be_missing(kafka_url: str) -> None:
    KafkaBus(f"kafka://127.0.0.1:1,{kafka_url.removeprefix('kafka://')}").close()


@pytest.mark.servers
@pytest.mark.usefixtures("_impatient")
def test_a_broker_that_goes_away_is_an_error_and_not_a_wait(
    own_kafka: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("REQUEST_TIMEOUT_MS", "DELIVERY_TIMEOUT_MS", "TRANSACTION_TIMEOUT_MS", "COMMIT_TIMEOUT_MS"):
        monkeypatch.setattr(f"core.kafka.{name}", 2000)
    with own_kafka(tmp_path) as url:
        bus = KafkaBus(url)
        bus.create_topics([Topic("t", "delete")])
        plain, publisher = bus.producer(), bus.producer("a")
        plain.send("t", b"k", b"v")
        plain.flush()
        member, reader = bus.consumer(["t"], group="g"), bus.consumer(["t"])
        drain(member)

    def unfinished() -> None:
        with publisher.transaction():
            publisher.send("t", b"k", b"v")

    def unsent() -> None:
        plain.send("t", b"k", b"v")
        plain.flush()

    def opened() -> None:
        bus.producer("b")

    calls: list[Callable[[], object]] = [bus.topics, lambda: bus.ends(["t"]), member.commit, unsent, unfinished, opened]
    calls.append(lambda: drain(reader))
    for call in calls:
        with pytest.raises(BackendError, match="no connection") as caught:
            call()
        assert caught.value.retriable
    bus.close()


@pytest.mark.servers
def test_a_client_that_cannot_be_opened_is_an_error_and_leaves_no_producer_behind(
    bus: KafkaBus, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise kafka.errors.CoordinatorNotAvailableError

    monkeypatch.setattr(kafka.KafkaProducer, "init_transactions", fail)
    monkeypatch.setattr(kafka.KafkaConsumer, "topics", fail)
    for opened in (lambda: bus.producer("a"), lambda: bus.consumer([topic], group=topic)):
        with pytest.raises(BackendError, match="CoordinatorNotAvailable") as caught:
            opened()
        assert caught.value.retriable
    assert not any(isinstance(client, Producer) for client in bus.opened)


# Headers


class NotUTF8(str):
    """A name of a header as other drivers may send it."""

    __slots__ = ()

    def encode(self, *_: object) -> bytes:
        return b"caf\xe9"


@pytest.mark.servers
def test_a_header_whose_name_is_not_utf8_is_read_with_an_escape_and_holds_nothing_up(bus: KafkaBus, topic: str) -> None:
    """The driver would give up the whole batch, and its next poll would never end."""
    producer = bus.producer()
    for n, headers in enumerate(((), ((NotUTF8("name"), b"\xff"), ("rev", b"1")), (("rev", b"2"),))):
        producer.send(topic, b"k%d" % n, b"%d" % n, headers)
    producer.flush()
    messages = list(read_to_end(bus, [topic]))
    assert values(messages) == [b"0", b"1", b"2"]
    assert [message.headers for message in messages] == [(), (("caf\\xe9", b"\xff"), ("rev", b"1")), (("rev", b"2"),)]


@pytest.mark.servers
def test_a_header_without_a_value_is_read_as_an_empty_one(
    bus: KafkaBus, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver cannot send one without a value, neither here nor to the dead letters."""
    append = DefaultRecordBatchBuilder.append

    def without_value(builder: object, offset: int, at: int, key: bytes, value: bytes, _: object) -> object:
        return append(builder, offset, at, key, value, [("none", None), ("some", b"1")])

    monkeypatch.setattr(DefaultRecordBatchBuilder, "append", without_value)
    send(bus, topic, b"1")
    (message,) = read_to_end(bus, [topic])
    assert message.headers == (("none", b""), ("some", b"1"))


@pytest.mark.servers
def test_a_damaged_batch_is_an_error_that_ends_the_reading(
    bus: KafkaBus, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(bus, topic, b"1")
    monkeypatch.setattr(DefaultRecordBatch, "validate_crc", lambda _: False)
    with pytest.raises(BackendError, match=r"damaged: .*failed crc check") as caught:
        list(read_to_end(bus, [topic]))
    assert not caught.value.retriable


# Groups


@pytest.fixture
def other(kafka_url: str) -> Iterator[KafkaBus]:
    """Return a second connection: another process, as far as the server knows."""
    other = KafkaBus(kafka_url)
    yield other
    other.close()


@pytest.fixture
def shared(bus: KafkaBus) -> str:
    """Return a topic of four partitions with 200 messages."""
    name = f"topic.{uuid.uuid4().hex}.v1"
    bus.create_topics([Topic(name, "delete", partitions=4)])
    producer = bus.producer()
    for n in range(200):
        producer.send(name, b"%d" % n, b"%d" % n)
    producer.flush()
    return name


@pytest.mark.servers
def test_members_share_the_partitions_and_each_message_is_read_once_while_one_comes_and_goes(
    bus: KafkaBus, other: KafkaBus, shared: str
) -> None:
    first, second = bus.consumer([shared], group=shared), None
    read: dict[object, list[bytes | None]] = {first: []}
    for _ in range(300):
        for member in read:
            read[member] += values(member.poll(0.1, 5))
            member.commit()
        if second is None and len(read[first]) >= 20:
            second = other.consumer([shared], group=shared)
            read = {first: read[first], second: []}
        if second and len(read[second]) >= 10:
            break
    assert second
    second.close()
    while len(together := [*read[first], *read[second]]) < 200:
        read[first] += values(first.poll(1.0))
        first.commit()
    assert sorted(together) == sorted(b"%d" % n for n in range(200))
    assert len(read[second]) >= 10
    assert lag(bus, shared, [shared]) == 0


@pytest.mark.servers
def test_a_member_that_waits_before_it_goes_on_lets_another_take_its_share(
    bus: KafkaBus, other: KafkaBus, shared: str
) -> None:
    first, second = bus.consumer([shared], group=shared), other.consumer([shared], group=shared)
    take(first, 4)
    early: list[Message] = []

    def follow() -> None:
        deadline = time.monotonic() + 30
        while not early and time.monotonic() < deadline:
            early.extend(second.poll(0.1, 10))

    following = threading.Thread(target=follow)
    following.start()
    while not early and following.is_alive():
        first.rewind(0.5)
    following.join()
    read = values(early)
    while len(read) < 200:
        read += values(first.poll(0.1)) + values(second.poll(0.1))
    assert early
    assert sorted(read) == sorted(b"%d" % n for n in range(200))


@pytest.mark.servers
def test_a_member_whose_partitions_another_has_taken_commits_nothing_and_its_transaction_is_never_seen(
    bus: KafkaBus, other: KafkaBus, admin: kafka.KafkaAdminClient, topic: str
) -> None:
    bus.create_topics([Topic(letters := f"{topic}.dlq", "delete")])
    send(bus, topic, *(b"%d" % n for n in range(6)))
    zombie, heir = bus.consumer([topic], group=topic), other.consumer([topic], group=topic)
    producer = bus.producer(commits=zombie)
    take(zombie, 3)
    (member,) = admin.describe_groups([topic])[topic]["members"]
    admin.remove_group_members(topic, [MemberToRemove(member_id=member["member_id"])])
    take(heir, 1)
    heir.commit()

    def bury() -> None:
        with producer.transaction():
            producer.send(letters, b"k", b"letter")

    with pytest.raises(BackendError, match="another consumer") as caught:
        bury()
    assert caught.value.retriable
    zombie.commit()
    assert everything(bus, letters) == []
    assert bus.committed(topic, [topic]) == {TopicPartition(topic, 0): 1}
    heir.close()
    zombie.rewind(0.1)
    assert len(take(zombie, 5)) == 5
    bury()
    assert everything(bus, letters) == [b"letter"]
    assert bus.committed(topic, [topic]) == {TopicPartition(topic, 0): 6}


def commit_all(bus: KafkaBus, topic: str, *members: Consumer) -> None:
    """Read and commit until nothing is left."""
    deadline = time.monotonic() + 20
    while any(lag(bus, str(member.group), [topic]) for member in members):
        assert time.monotonic() < deadline
        for member in members:
            member.poll(0.1)
            member.commit()


@pytest.mark.servers
def test_a_member_that_is_busy_while_new_partitions_are_shared_out_takes_its_share(
    bus: KafkaBus, admin: kafka.KafkaAdminClient, topic: str
) -> None:
    consumer = bus.consumer([topic], group=topic)
    send(bus, topic, b"1")
    commit_all(bus, topic, consumer)
    admin.create_partitions({topic: 2})
    while len(consumer._driver.partitions_for_topic(topic)) < 2:
        consumer._driver.topics()  # what the driver does every five minutes
    consumer.poll(0.001)
    time.sleep(0.5)  # as long as it takes the group to answer
    producer = bus.producer()
    for n in range(20):
        producer.send(topic, b"%d" % n, b"2")
    producer.flush()
    commit_all(bus, topic, consumer)
    assert set(bus.committed(topic, [topic])) == set(bus.partitions([topic]))


@pytest.mark.servers
def test_a_group_that_takes_no_commit_for_long_is_an_error(
    bus: KafkaBus, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise kafka.errors.RebalanceInProgressError

    consumer = bus.consumer([topic], group=topic)
    send(bus, topic, b"1")
    take(consumer, 1)
    with monkeypatch.context() as patched:
        patched.setattr(kafka.KafkaConsumer, "commit", refuse)
        consumer.commit()
        patched.setattr("core.kafka.REFUSED_SECONDS", 0)
        with pytest.raises(BackendError, match=f"{topic} has taken no commit for 0 s") as caught:
            consumer.commit()
    assert caught.value.retriable
    commit_all(bus, topic, consumer)


@pytest.mark.servers
def test_a_transaction_for_a_member_that_has_not_joined_yet_commits_no_position(bus: KafkaBus, topic: str) -> None:
    bus.create_topics([Topic(letters := f"{topic}.dlq", "delete")])
    consumer = bus.consumer([topic], group=topic)
    producer = bus.producer(commits=consumer)
    with producer.transaction():
        producer.send(letters, b"k", b"letter")
    assert everything(bus, letters) == [b"letter"]
    assert bus.committed(topic, [topic]) == {}


@pytest.mark.servers
@pytest.mark.parametrize("is_committed", [True, False])
def test_after_a_transaction_of_unknown_outcome_reading_goes_on_behind_what_was_committed(
    bus: KafkaBus, topic: str, monkeypatch: pytest.MonkeyPatch, is_committed: bool
) -> None:
    bus.create_topics([Topic(letters := f"{topic}.dlq", "delete")])
    consumer = bus.consumer([topic], group=topic)
    commit = kafka.KafkaProducer.commit_transaction

    def commit_unanswered(driver: kafka.KafkaProducer) -> None:
        if is_committed:
            commit(driver)
        raise kafka.errors.KafkaTimeoutError("no answer")

    def bury() -> None:
        read = take(consumer, 1)
        with closing(bus.producer(commits=consumer)) as producer, producer.transaction():
            producer.send(letters, b"k", read[0].value)

    send(bus, topic, b"1", b"2")
    with monkeypatch.context() as patched:
        patched.setattr(kafka.KafkaProducer, "commit_transaction", commit_unanswered)
        with pytest.raises(BackendError, match="no answer") as caught:
            bury()
    assert caught.value.retriable
    consumer.rewind()
    bury()
    assert everything(bus, letters) == ([b"1", b"2"] if is_committed else [b"1"])


@pytest.mark.servers
def test_a_member_that_is_expelled_while_it_polls_commits_nothing_in_a_transaction(
    bus: KafkaBus, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is nobody then, and from nobody the broker takes every offset: another member may have read the same."""
    bus.create_topics([Topic(letters := f"{topic}.dlq", "delete")])
    send(bus, topic, b"1", b"2")
    consumer = bus.consumer([topic], group=topic)
    take(consumer, 1)
    producer = bus.producer(commits=consumer)
    nobody = consumer._driver.group_metadata()._replace(generation_id=-1, member_id="")
    with monkeypatch.context() as expelled:
        expelled.setattr(consumer._driver, "group_metadata", lambda: nobody)
        take(consumer, 1)
        with pytest.raises(BackendError, match="another consumer") as caught, producer.transaction():
            producer.send(letters, b"k", b"letter")
    assert caught.value.retriable
    assert everything(bus, letters) == []
    assert bus.committed(topic, [topic]) == {}


# Topics that are created anew


@pytest.mark.servers
def test_a_topic_that_goes_away_while_it_is_looked_at_is_created_again(
    bus: KafkaBus, admin: kafka.KafkaAdminClient, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a broker that was asked first had not heard of its end."""
    stale = iter([bus._describe([topic])])
    describe = bus._describe
    delete_topic(bus, topic)
    monkeypatch.setattr(bus, "_describe", lambda names: next(stale, None) or describe(names))
    bus.create_topics([Topic(topic, "compact")])
    assert topic in bus.topics()
    assert settings(admin, topic, "cleanup.policy") == ["compact"]


@pytest.mark.servers
@pytest.mark.parametrize("n_messages", [1, 20])
def test_a_topic_that_was_deleted_and_created_again_is_read_from_its_beginning_and_said_so(
    bus: KafkaBus, topic: str, n_messages: int
) -> None:
    send(bus, topic, *(b"%d" % n for n in range(10)))
    consumer = bus.consumer([topic], group=topic)
    take(consumer, 5)
    consumer.commit()
    take(consumer, 5)
    delete_topic(bus, topic)
    with pytest.raises(BackendError, match="there is no topic") as caught:
        consumer.commit()
    assert caught.value.retriable
    bus.create_topics([Topic(topic, "compact")])
    send(bus, topic, *(b"new %d" % n for n in range(n_messages)))
    with pytest.raises(BackendError, match=f"{topic} was deleted and created again") as caught:
        consumer.commit()
    assert caught.value.retriable
    assert values(take(consumer, n_messages)) == [b"new %d" % n for n in range(n_messages)]
    consumer.commit()
    assert consumer.at_end()
    assert bus.committed(topic, [topic]) == {TopicPartition(topic, 0): n_messages}


def reader_of_a_topic_made_anew(bus: KafkaBus, topic: str) -> Consumer:
    """Return a reader at the end of a topic that was then deleted and made again, with 20 messages."""
    send(bus, topic, *(b"%d" % n for n in range(10)))
    consumer = bus.consumer([topic])
    take(consumer, 10)
    delete_topic(bus, topic)
    bus.create_topics([Topic(topic, "compact")])
    send(bus, topic, *(b"new %d" % n for n in range(20)))
    return consumer


@pytest.mark.servers
def test_a_reader_that_only_polls_notices_a_new_topic_too(
    bus: KafkaBus, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer = reader_of_a_topic_made_anew(bus, topic)
    monkeypatch.setattr("core.kafka.LOOK_SECONDS", 0)
    with pytest.raises(BackendError, match=f"{topic} was deleted and created again"):
        consumer.poll()
    assert len(drain(consumer)) == 20


@pytest.mark.servers
def test_a_reader_that_looks_ahead_notices_a_new_topic_at_once(bus: KafkaBus, topic: str) -> None:
    consumer = reader_of_a_topic_made_anew(bus, topic)
    with pytest.raises(MadeAnewError, match=f"{topic} was deleted and created again"):
        consumer.look_ahead()
    assert consumer.look_ahead() == {TopicPartition(topic, 0): 20}
    assert len(drain(consumer)) == 20


@pytest.mark.servers
def test_a_topic_that_is_deleted_while_it_is_read_and_written_stays_deleted(bus: KafkaBus, topic: str) -> None:
    """The driver would have the broker make it anew, with settings that are not those declared."""
    send(bus, topic, b"1")
    consumer, producer = bus.consumer([topic], group=topic), bus.producer()
    take(consumer, 1)
    producer.send(topic, b"k", b"2")
    producer.flush()
    delete_topic(bus, topic)
    for _ in range(3):
        consumer.poll(0.5)
    assert topic not in bus.topics()


# Fencing


@pytest.mark.servers
def test_groups_that_may_be_listed_but_not_looked_into_are_left_out(
    bus: KafkaBus, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer = bus.consumer([topic], group=topic)
    send(bus, topic, b"1")
    take(consumer, 1)
    consumer.commit()
    assert bus.groups(topic, [topic]).keys() == {topic}

    def refuse(*_: object) -> None:
        raise kafka.errors.GroupAuthorizationFailedError(topic)

    monkeypatch.setattr("kafka.KafkaAdminClient.list_group_offsets", refuse)
    assert bus.groups(topic, [topic]) == {}


@pytest.mark.servers
def test_a_fenced_producer_says_who_it_was_and_does_not_fence_back(bus: KafkaBus, topic: str) -> None:
    name = f"publisher.{uuid.uuid4().hex}"
    zombie, heir = bus.producer(name), bus.producer(name)
    for _ in range(3):
        with pytest.raises(FencedError, match=name), zombie.transaction():
            zombie.send(topic, b"k", b"zombie")
        with heir.transaction():
            heir.send(topic, b"k", b"heir")
    assert everything(bus, topic) == [b"heir"] * 3


@pytest.mark.servers
def test_a_transaction_that_its_producer_abandoned_holds_readers_up_only_until_an_heir_comes(
    bus: KafkaBus, topic: str
) -> None:
    name = f"publisher.{uuid.uuid4().hex}"
    producer = bus.producer(name)
    abandoned = producer.transaction()
    abandoned.__enter__()
    producer.send(topic, b"k", b"lost")
    producer.flush()
    send(bus, topic, b"behind it", key=b"other")
    assert everything(bus, topic) == []
    bus.producer(name)
    deadline = time.monotonic() + 20
    while not (read := values(list(read_to_end(bus, [topic])))) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert read == [b"behind it"]
