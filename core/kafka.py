"""The bus on Kafka: idempotent and transactional producers, consumers of committed messages only."""

from __future__ import annotations

import logging
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from threading import Thread
from typing import Any, NamedTuple, TypeVar
from uuid import UUID, uuid4

import kafka
from kafka import errors
from kafka.admin import ConfigResource, OffsetSpec
from kafka.cluster import ClusterMetadata
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.protocol.consumer import IsolationLevel
from kafka.record.default_records import DefaultRecordBatch
from kafka.structs import OffsetAndMetadata
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from core import bus as seam
from core.bus import DEAD_LETTER_DAYS, TOMBSTONE_DAYS, Headers, Message, Offsets, Topic, TopicPartition
from core.errors import BackendError, FencedError, MadeAnewError, TooLargeError
from core.kafka_connection import backend_error, driver_settings
from core.names import bare_url

TIMEOUT = 4.5
"""Seconds until a server that does not answer is given up: a first connection has 5."""
COMMIT_TIMEOUT_MS = 30_000
SESSION_TIMEOUT_MS = 10_000
"""Until a group goes on without a consumer that died."""
HEARTBEAT_MS = 1000
"""Until a member learns that another has come or gone."""
REQUEST_TIMEOUT_MS = 12_000
"""Longer than a session."""
DELIVERY_TIMEOUT_MS = 60_000
"""Until a message without an acknowledgement is an error; long enough for a broker to be restarted."""
NO_EPOCH_BUMP = (2, 4)
"""Protocol for transactions: from 2.5 on the driver meets a stale epoch by taking the id back from its successor."""
TRANSACTION_TIMEOUT_MS = 15_000
"""Until a transaction that its producer abandoned no longer holds up the readers."""
TOMBSTONE_RETENTION_MS = TOMBSTONE_DAYS * 24 * 3600 * 1000
DEAD_LETTER_RETENTION_MS = DEAD_LETTER_DAYS * 24 * 3600 * 1000
DEAD_LETTER_HEADROOM = 64 * 1024
"""Bytes that a dead letter's headers may add to the largest message."""
BATCH_BYTES = 128 * 1024
BUFFER_BYTES = 8 * 1024 * 1024
"""Sent without an acknowledgement: the driver itself takes messages until the memory ends."""
REQUEST_BYTES = 50 * 1024 * 1024
"""Half of what a broker accepts."""
FETCH_BYTES = 8 * 1024 * 1024
"""Fetched of a partition at once: the driver's 1 MB is less than a batch of tracks."""
SLICE = 0.1
"""Seconds after which a reader that is behind looks whether it is at the end: what is aborted is never returned."""
STAY = 0.2
"""Seconds of a poll that only keeps a member in its group."""
REFUSED_SECONDS = 30.0
"""For which a group may take no commit: it shares out its partitions as soon as each of its members polls."""
LOOK_SECONDS = 30.0
"""Between two looks whether a topic is still the one that it was."""
READER = {"isolation_level": "read_committed", "auto_offset_reset": "earliest", "enable_auto_commit": False}
"""Settings of every consumer."""

Positions = dict[TopicPartition, OffsetAndMetadata]
T = TypeVar("T")

log = logging.getLogger(__name__)


class Limits(NamedTuple):
    """What a topic takes."""

    message_bytes: int
    compacted: bool


class KafkaBus:
    """`Bus` on Kafka; its promises are in `core.bus.Bus`.

    Parameters
    ----------
    url : str
        As `core.kafka_connection.driver_settings` takes it.

    Raises
    ------
    ConfigError
        If the URL is malformed or has an unknown option.
    BackendError
        Within 5 s, if there is nobody there, the certificate is not trusted, or user and password are refused.
    """

    def __init__(self, url: str) -> None:
        self.url = bare_url(url)
        self._settings = driver_settings(url)
        self.opened: set[Producer | Consumer] = set()
        """What `close` has to close."""
        self._wanted: set[str] = set()
        self._begun, self._opening = time.time(), True
        with self.translated():
            self._admin = kafka.KafkaAdminClient(**self._connection)
        self._opening = False

    def create_topics(self, topics: Iterable[Topic]) -> None:
        """Create those that do not exist yet; raise if the settings of one that exists are others."""
        wanted = {topic.name: topic for topic in topics}
        self._wanted |= wanted.keys()
        for name in self._verified([(wanted[name], found) for name, found in self._describe(wanted).items()]):
            del wanted[name]
        if not wanted:
            return
        settings = {
            topic.name: {
                "num_partitions": topic.partitions,
                "replication_factor": topic.replication,
                "configs": _configs(topic),
            }
            for topic in wanted.values()
        }
        with self.translated(), suppress(errors.TopicAlreadyExistsError):
            self._ask(self._admin.create_topics, settings)
        with self.translated():
            self._admin.wait_for_topics(list(wanted))

    def topics(self) -> list[str]:
        """Return the names of the existing topics, those of the server left out."""
        with self.translated():
            return sorted(name for name in self._ask(self._admin.list_topics) if not name.startswith("__"))

    def producer(self, transactional_id: str | None = None, *, commits: seam.Consumer | None = None) -> Producer:
        """Open a producer."""
        assert commits is None or isinstance(commits, Consumer)
        return Producer(self, transactional_id, commits)

    def consumer(
        self, topics: Iterable[str], *, group: str | None = None, start: Mapping[TopicPartition, int] | None = None
    ) -> Consumer:
        """Open a consumer of existing topics."""
        return Consumer(self, sorted(topics), group, start or {})

    def committed(self, group: str, topics: Iterable[str]) -> Offsets:
        """Return the committed offsets of a group."""
        with self.translated():
            return _offsets(self._ask(self._admin.list_group_offsets, group)[group], set(topics))

    def groups(self, prefix: str, topics: Iterable[str]) -> dict[str, Offsets]:
        """Return what each group has committed; none if the user may list the groups but not look into them."""
        wanted = set(topics)
        found: dict[str, Offsets] = {}
        with self.translated(), suppress(errors.GroupAuthorizationFailedError):
            listed = self._ask(self._admin.list_groups)  # a share group, for one, has no such offsets
            names = [group["group_id"] for group in listed if group["protocol_type"] in ("consumer", "")]
            if names := sorted(name for name in names if name.startswith(prefix)):
                committed = self._ask(self._admin.list_group_offsets, names)
                found = {name: _offsets(committed[name], wanted) for name in names}
        return {name: offsets for name, offsets in found.items() if offsets}

    def has_members(self, group: str) -> bool:
        """Return whether a consumer of the group is at work."""

        def members() -> list[Any]:
            found = self._admin.describe_groups([group])[group]
            if error := re.match(r"\[Error (-?\d+)\]", found["error"] or ""):  # which the driver only writes down
                raise errors.for_code(int(error[1]))(group)
            return list(found["members"])

        with self.translated(), suppress(errors.GroupIdNotFoundError):
            return bool(self._ask(members))
        return False

    def ends(self, topics: Iterable[str]) -> Offsets:
        """Return the end of each partition, as a reader of committed transactions sees it."""
        return self.ends_of(self.partitions(topics))

    def first(self, offsets: Offsets) -> dict[TopicPartition, Message]:
        """Return the first message at each of these offsets or beyond, as far as they come in time."""
        ends = self.ends_of(offsets)
        behind = {kafka.TopicPartition(*at) for at, offset in offsets.items() if offset < ends[at]}
        found: dict[TopicPartition, Message] = {}
        if not behind:
            return found
        deadline = time.monotonic() + TIMEOUT
        with self.translated(), closing(self.connect(kafka.KafkaConsumer, **READER, retry_backoff_ms=10)) as driver:
            driver.assign(behind)
            for at in behind:
                driver.seek(at, offsets[at])
            while behind and time.monotonic() < deadline:
                polled = driver.poll(timeout_ms=int(1000 * SLICE), max_records=1)
                found |= {TopicPartition(*at): _message(records[0]) for at, records in polled.items()}
                done = {at for at in behind if at in found or (driver.position(at, timeout_ms=0) or 0) >= ends[at]}
                driver.pause(*done)
                behind -= done
        return found

    def size(self) -> None:
        """Return nothing: the brokers' disks are elsewhere."""

    def trim(self, offsets: Offsets) -> None:
        """Remove what stands before these offsets."""
        if offsets:
            ends = {kafka.TopicPartition(*partition): offset for partition, offset in offsets.items()}
            with self.translated():
                self._ask(self._admin.delete_records, ends)

    def close(self) -> None:
        """Close every connection, those of producers and consumers included."""
        for client in list(self.opened):
            client.close()
        with self.translated():
            self._admin.close()

    def ends_of(self, partitions: Iterable[TopicPartition]) -> Offsets:
        """Return the ends of some partitions."""
        latest = {kafka.TopicPartition(*partition): OffsetSpec.LATEST for partition in partitions}
        if not latest:
            return {}
        with self.translated():
            ends = self._ask(self._admin.list_partition_offsets, latest, isolation_level=IsolationLevel.READ_COMMITTED)
        return {TopicPartition(*partition): end.offset for partition, end in ends.items()}

    def partitions(self, topics: Iterable[str]) -> list[TopicPartition]:
        """Return the partitions of existing topics."""
        return [
            TopicPartition(name, partition["partition_index"])
            for name, topic in self._existing(topics).items()
            for partition in topic["partitions"]
        ]

    def topic_ids(self, topics: Iterable[str]) -> dict[str, UUID]:
        """Return the ids of existing topics; one that is deleted and created again has another."""
        return {name: topic["topic_id"] for name, topic in self._existing(topics).items()}

    def _existing(self, topics: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Return what the server knows of existing topics: the driver's clients would wait for a missing one."""
        names = set(topics)
        described = self._describe(names)
        if missing := sorted(names - described.keys()):
            raise _missing_topic(self.url, missing[0])
        return described

    def limits(self, topic: str, known: Mapping[str, Limits]) -> dict[str, Limits]:
        """Return what `topic` takes, and with it what every topic takes that was asked to be created."""
        described = self._settings_of({topic} | (self._wanted - known.keys()), "cleanup.policy", "max.message.bytes")
        if topic not in described:
            self.partitions([topic])  # raises where there is no such topic
            raise self._hidden(topic)
        return {
            name: Limits(int(found["max.message.bytes"]), "compact" in found["cleanup.policy"])
            for name, found in described.items()
        }

    def connect(self, client: Callable[..., T], **settings: Any) -> T:
        """Open one more client of the driver."""
        with self.translated():
            return client(**self._connection, **settings)

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Raise the driver's errors as `BackendError`."""
        try:
            yield
        except errors.KafkaError as error:
            raise backend_error(self.url, error, self._begun, opening=self._opening) from error

    @property
    def _connection(self) -> dict[str, Any]:
        return {
            **self._settings,
            "bootstrap_timeout_ms": int(TIMEOUT * 1000),
            "request_timeout_ms": REQUEST_TIMEOUT_MS,
            "reconnect_backoff_max_ms": 1000,
            "client_id": "murmuration",
        }

    def _ask(self, call: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Ask the server, again while it is still finding its feet: a fresh one has no coordinator yet."""
        again = retry_if_exception_type(errors.RetriableError)
        patience = Retrying(retry=again, stop=stop_after_delay(TIMEOUT), wait=wait_fixed(0.1), reraise=True)
        return patience(call, *arguments, **options)

    def _describe(self, names: Iterable[str]) -> dict[str, Any]:
        """Return what the server says of those topics that exist."""
        wanted = list(names)
        if not wanted:
            return {}

        def describe() -> dict[str, Any]:
            described = {topic["name"]: topic for topic in self._admin.describe_topics(wanted)}
            for name, topic in described.items():
                if topic["error_code"] not in (0, errors.UnknownTopicOrPartitionError.errno):
                    raise errors.for_code(topic["error_code"])(name)
            return {name: topic for name, topic in described.items() if not topic["error_code"]}

        with self.translated():
            return self._ask(describe)

    def _settings_of(self, names: Iterable[str], *keys: str) -> dict[str, dict[str, str]]:
        """Return some settings of those topics that exist, and whose settings may be read."""
        resources = [ConfigResource("topic", name, dict.fromkeys(keys)) for name in names]
        if not resources:
            return {}
        with self.translated():
            described = self._ask(self._admin.describe_configs, resources, config_filter="all")["topic"]
        return {name: {key: found[key]["value"] for key in keys} for name, found in described.items() if found}

    def _verified(self, topics: list[tuple[Topic, Any]]) -> list[str]:
        """Return the topics that are still there; raise if one is not as it was declared."""
        settings = self._settings_of([topic.name for topic, _ in topics], "cleanup.policy", "max.message.bytes")
        limits = {name: int(found["max.message.bytes"]) for name, found in settings.items()}
        largest = max((limits.get(topic.name, 0) for topic, _ in topics if topic.cleanup == "compact"), default=0)
        gone = {topic.name for topic, _ in topics} - settings.keys()
        for name in self._describe(gone):
            raise self._hidden(name)
        for topic, found in topics:
            if topic.name in gone:
                continue
            partitions = len(found["partitions"])
            replicas = {len(partition["replica_nodes"]) for partition in found["partitions"]}
            policy, server = settings[topic.name]["cleanup.policy"], self._settings["bootstrap_servers"][0]
            problem = _problem(topic, partitions, replicas, policy, server)
            if not problem and topic.cleanup == "delete":
                problem = _narrowness(topic, limits[topic.name], largest, server)
            if problem:
                raise BackendError(f"{self.url}: {topic.name} {problem}")
        return list(settings)

    def _hidden(self, what: str) -> BackendError:
        return BackendError(f"{self.url}: the user may not read the settings of {what}; allow DescribeConfigs on it")


class Sent(NamedTuple):
    """A message that the driver was given, and its acknowledgement to come."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers
    size: int
    future: Any


class Producer:
    """`core.bus.Producer` on Kafka.

    After an error the driver's producer sends nothing any more. So it is replaced, and what was not acknowledged is
    sent once more; in a transaction the error ends the transaction instead.
    """

    def __init__(self, bus: KafkaBus, transactional_id: str | None, commits: Consumer | None) -> None:
        self._bus = bus
        self._is_named = transactional_id is not None
        self._id = f"{commits.group}.{uuid4().hex}" if commits and not self._is_named else transactional_id
        self._commits = commits
        self._limits: dict[str, Limits] = {}
        self._sent: deque[Sent] = deque()
        """Without those at the front that were acknowledged."""
        self._buffered = 0
        self._last: Offsets = {}
        self._fenced = False
        self._driver: Any = self._open()
        bus.opened.add(self)
        if self._id is not None:
            with ExitStack() as undo:
                undo.callback(self.close)
                self._bounded(self._driver.init_transactions)
                undo.pop_all()

    def send(self, topic: str, key: bytes | None, value: bytes | None, headers: Headers = ()) -> None:
        """Hand over a message. What the topic would refuse is refused here: it would end the driver's producer."""
        size = self._size(topic, key, value, headers)
        self._let_go()
        if self._buffered + size > BUFFER_BYTES:
            self._make_room(size)
        self._hand_over(topic, key, value, headers, size)
        if self._sent[-1].future.failed():
            self.flush()

    def flush(self) -> None:
        """Wait for every acknowledgement; what is without one when this raises is the caller's to send again."""
        try:
            error = self._settle()
            if error and self._id is None:
                error = self._send_again(error)
            if error:
                with self._translated():
                    raise error
            self._let_go()
        finally:
            self._forget()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make what is sent inside readable as a whole, or never."""
        if self._id is None:
            raise BackendError(f"{self._bus.url}: a producer without a transactional_id has no transactions")
        if self._fenced:
            raise self._taken_over()
        self._last.clear()
        with self._translated():
            self._driver.begin_transaction()
        with ExitStack() as undo:
            undo.callback(self._abort)
            yield
            self.flush()
            offer = self._commits.offer() if self._commits else None
            if self._commits and offer:
                self._bounded(lambda: self._driver.send_offsets_to_transaction(*offer))
                self._commits.is_in_doubt = True  # until the answer: one that is lost says nothing of the commit
            self._bounded(self._driver.commit_transaction)
            undo.pop_all()
        if self._commits and offer:
            self._commits.settle(offer.positions)
        self._await_readers()

    def close(self) -> None:
        """Close the connection; what is not flushed is sent if the server takes it at once."""
        self._bus.opened.discard(self)
        if self._driver is None:
            return
        try:
            self._driver.close(timeout=TIMEOUT)
        except errors.KafkaTimeoutError:
            self._drop()

    def _open(self) -> Any:
        return self._bus.connect(
            kafka.KafkaProducer,
            acks="all",
            enable_idempotence=True,
            compression_type="zstd",
            batch_size=BATCH_BYTES,
            max_request_size=REQUEST_BYTES,
            max_block_ms=REQUEST_TIMEOUT_MS,
            retry_backoff_ms=10,
            delivery_timeout_ms=DELIVERY_TIMEOUT_MS if self._id is None else TRANSACTION_TIMEOUT_MS,
            transactional_id=self._id,
            api_version=NO_EPOCH_BUMP if self._is_named else None,  # an id of its own has no successor
            transaction_timeout_ms=TRANSACTION_TIMEOUT_MS,
        )

    def _size(self, topic: str, key: bytes | None, value: bytes | None, headers: Headers) -> int:
        """Return how many bytes a message takes at most; raise if the topic does not take it."""
        limits = self._limits.get(topic) or self._prepare(topic)
        if key is None and (limits.compacted or value is None):
            raise BackendError(f"{self._bus.url}: a message without a key does not fit into {topic}; give it one")
        size = _batch_size(key, value, headers)
        if size > (limit := min(limits.message_bytes, REQUEST_BYTES)):
            raise TooLargeError(
                f"{self._bus.url}: a message of {size} bytes exceeds the {limit} that {topic} takes; "
                "raise the topic's max.message.bytes"
            )
        return size

    def _hand_over(self, topic: str, key: bytes | None, value: bytes | None, headers: Headers, size: int) -> None:
        try:
            future = self._alive().send(topic, value, key, list(headers))
        except errors.KafkaError as error:
            future = kafka.future.Future().failure(error)
        self._sent.append(Sent(topic, key, value, headers, size, future))
        self._buffered += size

    def _make_room(self, size: int) -> None:
        """Wait for the oldest acknowledgements; not for all, so that there is always something under way."""
        while self._sent and self._buffered + size > BUFFER_BYTES:
            try:
                self._sent[0].future.get((DELIVERY_TIMEOUT_MS + REQUEST_TIMEOUT_MS) / 1000)
            except errors.KafkaError:
                self.flush()
            self._let_go()

    def _let_go(self) -> None:
        """Let go of the first messages that are acknowledged: nothing that was sent before them is left."""
        while self._sent and self._sent[0].future.succeeded():
            sent = self._sent.popleft()
            self._buffered -= sent.size
            if self._id:
                self._last[TopicPartition(sent.topic, sent.future.value.partition)] = sent.future.value.offset

    def _forget(self) -> None:
        self._sent.clear()
        self._buffered = 0

    def _settle(self) -> errors.KafkaError | None:
        """Wait for the acknowledgements; return the first error, which the driver's own flush does not mention."""
        if not self._sent:
            return None
        try:
            self._alive().flush((DELIVERY_TIMEOUT_MS + REQUEST_TIMEOUT_MS) / 1000)
        except errors.KafkaTimeoutError as error:
            return error
        lost = next((sent.future for sent in self._sent if not sent.future.succeeded()), None)
        return lost and (lost.exception or errors.KafkaTimeoutError("no acknowledgement"))

    def _send_again(self, error: errors.KafkaError) -> errors.KafkaError | None:
        """Send what was not acknowledged once more; return the first error of it."""
        again = _unacknowledged(self._sent)
        log.warning("%s: %d messages are sent again, by a new producer: %s", self._bus.url, len(again), error)
        self._drop()
        self._forget()
        for topic, key, value, headers, *_ in again:
            size = self._size(topic, key, value, headers)  # a limit that was lowered may be what was wrong
            self._hand_over(topic, key, value, headers, size)
        if second := self._settle():
            self._drop()
        return second

    def _alive(self) -> Any:
        """Return the driver's producer, a new one after a `_drop`."""
        if self._driver is None:
            self._driver = self._open()
        return self._driver

    def _drop(self) -> None:
        """Close the driver's producer at once; there is no public way.

        Its `close` first waits for what it cannot send, and where it gives up it leaves its thread running.
        """
        self._driver._sender.force_close()
        with suppress(errors.KafkaTimeoutError):
            self._driver.close(timeout=TIMEOUT)
        self._driver, self._limits = None, {}

    def _prepare(self, topic: str) -> Limits:
        """Learn what the topics take, and let the driver find them together: one by one takes it 0.1 s each."""
        found = self._bus.limits(topic, self._limits)
        with self._translated(), ThreadPoolExecutor(max_workers=64) as pool:
            list(pool.map(self._alive().partitions_for, found))
        self._limits |= found
        return self._limits[topic]

    def _await_readers(self) -> None:
        """Wait until readers see the transaction: the broker answers a commit a moment before they do."""
        deadline = time.monotonic() + TIMEOUT
        while not self._is_seen():
            if time.monotonic() > deadline:  # somebody else's open transaction holds the readers up
                return
            time.sleep(0.002)

    def _is_seen(self) -> bool:
        return all(end > self._last[partition] for partition, end in self._bus.ends_of(self._last).items()) and (
            self._commits is None or self._commits.is_committed()
        )

    def _abort(self) -> None:
        """Abort; where that fails too, the first error tells more, and the broker aborts after the timeout."""
        with suppress(BackendError):
            self._bounded(self._driver.abort_transaction)
        self._forget()

    def _bounded(self, call: Callable[[], None]) -> None:
        """Call the driver in a thread of its own: it waits without end for a server that is gone."""
        outcome: Future[None] = Future()

        def run() -> None:
            try:
                call()
                outcome.set_result(None)
            except errors.KafkaError as error:
                outcome.set_exception(error)

        Thread(target=run, daemon=True).start()
        with self._translated():
            try:
                outcome.result(TRANSACTION_TIMEOUT_MS / 1000)
            except TimeoutError as error:
                raise errors.KafkaTimeoutError("no answer") from error

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Raise the driver's errors as `BackendError`; only a message's own error says that this producer is fenced."""
        try:
            with self._bus.translated():
                yield
        except BackendError as error:
            causes = [error.__cause__, *(sent.future.exception for sent in self._sent)]
            if any(
                isinstance(cause, errors.ProducerFencedError | errors.InvalidProducerEpochError) for cause in causes
            ):
                self._fenced = True
                raise self._taken_over() from error.__cause__
            raise

    def _taken_over(self) -> BackendError:
        seconds = TRANSACTION_TIMEOUT_MS // 1000
        if not self._is_named:
            return BackendError(f"{self._bus.url}: a transaction took longer than {seconds} s; again", retriable=True)
        return FencedError(
            f"{self._bus.url}: another process took over {self._id}, or a transaction took longer than "
            f"{seconds} s; leave the work to the other, or start again"
        )


class Offer(NamedTuple):
    """How far a consumer has read, and as which member of its group."""

    positions: Positions
    member: Any


class Consumer:
    """`core.bus.Consumer` on Kafka."""

    def __init__(
        self, bus: KafkaBus, topics: list[str], group: str | None, start: Mapping[TopicPartition, int]
    ) -> None:
        self.group = group
        self._bus = bus
        self._ids = bus.topic_ids(topics)
        self._looked = time.monotonic()
        self._partitions = bus.partitions(topics)
        self._ahead: Offsets = {} if group else bus.ends_of(self._partitions)
        """The ends seen when reading began, until they are reached."""
        self._begun = set(self._ahead)
        self._unsure: Offsets = {}
        """Where what is not committed begins."""
        self._settled: Offsets = {}
        """The positions that were committed last."""
        self._refused: float | None = None
        """Since when the group has taken no commit."""
        self.is_in_doubt = False
        """Whether a transaction may have committed the position, or not."""
        self._member: Any = None
        self._listener = _Listener(self._forget)
        self._driver = bus.connect(
            kafka.KafkaConsumer,
            **READER,
            group_id=group,
            session_timeout_ms=SESSION_TIMEOUT_MS,
            heartbeat_interval_ms=HEARTBEAT_MS,
            max_partition_fetch_bytes=FETCH_BYTES,
            partition_assignment_strategy=[self._listener.assignor],
        )
        bus.opened.add(self)
        if group:
            with bus.translated():
                self._driver.subscribe(topics, listener=self._listener)
                self._driver.topics()  # a member that does not know its topics yet would join for nothing, then again
            return
        self._driver.assign([kafka.TopicPartition(*partition) for partition in self._partitions])
        for partition in start.keys() & set(self._partitions):
            self._driver.seek(kafka.TopicPartition(*partition), start[partition])

    def poll(self, timeout: float = 1.0, max_records: int = 500) -> list[Message]:
        """Return the next messages, [] also once the end is found to be reached; moves the position."""
        if time.monotonic() - self._looked > LOOK_SECONDS:
            self._look()
        if self.is_in_doubt:
            self._go_to_commit()
        behind, deadline = not self.at_end(), time.monotonic() + timeout
        while True:
            left = max(0.0, deadline - time.monotonic())
            found = self._receive(min(left, SLICE) if behind else left, max_records)
            for partition, records in found.items():
                self._unsure.setdefault(partition, records[0].offset)
            if found or (behind and self.at_end()):
                break
            if not left:
                if behind:  # the driver does not mention that its server is gone: ask
                    self._bus.ends_of(self._partitions[:1])
                break
        self._see_ends()
        self._member = self._driver.group_metadata()
        return [_message(record) for records in found.values() for record in records]

    def commit(self) -> None:
        """Persist the position, which is beyond the marks of transactions that follow the last message.

        While the group is sharing out its partitions, or has given them to another, nothing can be committed; what was
        read is delivered again. Raise if that lasts.
        """
        if self.group is None:
            self._unsure.clear()
            return
        positions = self._positions()
        if all(self._settled.get(partition) == position.offset for partition, position in positions.items()):
            self._refused = None
            return
        self._look()
        with self._bus.translated(), suppress(errors.RebalanceInProgressError, errors.CommitFailedError):
            self._driver.commit(positions, timeout_ms=COMMIT_TIMEOUT_MS)
            self.settle(positions)
            return
        now = time.monotonic()
        self._refused = self._refused or now
        if now - self._refused >= REFUSED_SECONDS:
            raise BackendError(
                f"{self._bus.url}: {self.group} has taken no commit for {REFUSED_SECONDS:.0f} s, so what was read is "
                "read again; look whether another process of that group hangs",
                retriable=True,
            )

    def offer(self) -> Offer | None:
        """Return what a transaction is to commit, None for nothing; raise if the group has expelled this member.

        It would commit as nobody, whom the broker lets commit whatever he likes.
        """
        self._look()
        positions = self._positions()
        if not positions:  # it has not joined yet, or shares in nothing
            return None
        if self._member.generation_id < 0:
            with self._bus.translated():
                raise errors.CommitFailedError
        return Offer(positions, self._member)

    def settle(self, positions: Positions) -> None:
        """Know that these positions are committed."""
        self._settled = {partition: position.offset for partition, position in positions.items()}
        self._refused = None
        self.is_in_doubt = False
        self._unsure.clear()

    def is_committed(self) -> bool:
        """Return whether the group's offsets are those that were committed last."""
        return self.group is None or self._settled.items() <= self._bus.committed(self.group, self._ids).items()

    def rewind(self, seconds: float = 0.0) -> None:
        """Go back to the last commit, and wait."""
        for partition in self._driver.assignment() & self._unsure.keys():
            self._driver.seek(partition, self._unsure[partition])
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._stay(min(left, STAY))
        self._driver.resume(*self._driver.paused())

    def at_end(self) -> bool:
        """Return whether every position has reached the end seen when reading began, or by the last `look_ahead`."""
        if self.group and not self._listener.joined:
            return False
        self._see_ends()
        self._ahead = {at: end for at, end in self._ahead.items() if not self._reached(at, end)}
        return not self._ahead

    def look_ahead(self) -> Offsets:
        """Let `at_end` go by the ends that there are now, and return these."""
        self._look()
        self._begun = set()
        self._see_ends()
        return dict(self._ahead)

    def close(self) -> None:
        """Leave the group, without a commit."""
        self._bus.opened.discard(self)
        with suppress(errors.KafkaError):
            self._driver.close(autocommit=False, timeout_ms=int(TIMEOUT * 1000))

    def _go_to_commit(self) -> None:
        """Go to the group's offsets, which the broker tells as soon as the transaction has ended."""
        assigned = self._driver.assignment()
        for partition in assigned:
            with self._bus.translated():
                offset = self._driver.committed(partition, timeout_ms=TRANSACTION_TIMEOUT_MS)
            if offset is None:
                self._driver.seek_to_beginning(partition)
            else:
                self._driver.seek(partition, offset)
        self._forget(assigned)
        self.is_in_doubt = False

    def _receive(self, seconds: float, max_records: int) -> dict[TopicPartition, list[Any]]:
        """Poll the driver, and let it finish a join that it has begun.

        One that outlasts a poll, and that new partitions were the reason for, it would forget: the group puts the
        member out, which reads on and can never commit again.
        """
        coordinator = self._driver._coordinator  # nothing public tells of a join, or asks for one
        if coordinator.rejoining:
            coordinator.request_rejoin()
        with self._bus.translated():
            found: dict[TopicPartition, list[Any]] = self._driver.poll(int(1000 * seconds), max_records)
        return found

    def _positions(self) -> Positions:
        with self._bus.translated():
            found = {at: self._driver.position(at, timeout_ms=0) for at in self._driver.assignment()}
        return {at: OffsetAndMetadata(offset, "", -1) for at, offset in found.items() if offset is not None}

    def _see_ends(self) -> None:
        """Remember where the partitions end that are new to this member."""
        assigned = self._driver.assignment()
        if unseen := assigned - self._begun:
            self._ahead |= self._bus.ends_of(unseen)
        self._ahead = {at: end for at, end in self._ahead.items() if at in assigned}
        self._begun = assigned

    def _reached(self, partition: TopicPartition, end: int) -> bool:
        with self._bus.translated():
            position = self._driver.position(kafka.TopicPartition(*partition), timeout_ms=int(TIMEOUT * 1000))
        return position is not None and position >= end

    def _stay(self, seconds: float) -> None:
        """Remain a member for so long without reading: polling is what keeps the group from going on without it."""
        self._driver.pause(*self._driver.assignment())
        try:
            found = self._receive(seconds, 1)
        except BackendError as error:
            if not error.retriable:
                raise
            time.sleep(seconds)
            return
        for partition, records in found.items():  # assigned during the poll, so not paused
            self._driver.seek(partition, records[0].offset)

    def _look(self) -> None:
        """Raise if a topic was deleted and created again, and begin it anew: the driver goes on at its old offset."""
        self._looked = time.monotonic()
        try:
            ids = self._bus.topic_ids(self._ids)
        except BackendError as error:  # what was deleted may come again
            raise BackendError(str(error), retriable=True) from error
        anew = [name for name, found in ids.items() if found != self._ids[name]]
        if not anew:
            return
        self._ids = ids
        again = {partition for partition in self._driver.assignment() if partition.topic in anew}
        self._forget(again)
        self._begun -= again
        for partition in again:
            self._driver.seek_to_beginning(partition)
        raise MadeAnewError(
            f"{self._bus.url}: {', '.join(anew)} was deleted and created again; it is read from its beginning now"
        )

    def _forget(self, partitions: Iterable[TopicPartition]) -> None:
        for partition in partitions:
            self._unsure.pop(partition, None)
            self._settled.pop(partition, None)


class _Listener(kafka.ConsumerRebalanceListener):  # type: ignore[misc]  # the driver has no types
    """Know whether the group has ever given this consumer partitions, and tell which ones it takes away.

    That happens in a poll alone, when all that was read before is committed, or will be delivered again.
    """

    def __init__(self, taken: Callable[[Iterable[TopicPartition]], None]) -> None:
        self.joined = False
        self.assignor = CooperativeStickyAssignor()
        self._taken = taken

    def on_partitions_assigned(self, assigned: object) -> None:
        self.joined = True

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        self._taken(revoked)

    def on_partitions_lost(self, lost: Iterable[TopicPartition]) -> None:
        """Own nothing any more, in the assignor's eyes too.

        The driver forgets to tell it: the member would claim in its next join what it has lost, the group would wait
        for it to give that back, and nobody would read it.
        """
        self.assignor.member_assignment = None
        self._taken(lost)


def _problem(topic: Topic, partitions: int, replicas: set[int], policy: str, server: str) -> str | None:
    """Return what of an existing topic is not as declared, and how it is mended.

    More partitions than declared are as wrong as fewer: what is created later would have the other number. None are
    added here: the keys would move to others and leave their former values behind.
    """
    tool = f"--bootstrap-server {server}"
    if partitions != topic.partitions:
        delete = f"; clusters.runs.v1 always has 1: `kafka-topics.sh {tool} --delete --topic {topic.name}`"
        return f"has {partitions} partitions, topics.partitions asks for {topic.partitions}: set it to {partitions}" + (
            delete if topic.partitions == 1 else ""
        )
    if topic.replication != -1 and replicas != {topic.replication}:
        found = max(replicas - {topic.replication})
        return (
            f"has {found} replicas, topics.replication asks for {topic.replication}: set it to {found}, "
            f"or move them with `kafka-reassign-partitions.sh {tool}`"
        )
    if set(policy.split(",")) != {topic.cleanup}:
        change = f"--entity-type topics --entity-name {topic.name} --add-config cleanup.policy={topic.cleanup}"
        return f"has cleanup.policy={policy}, not {topic.cleanup}: `kafka-configs.sh {tool} --alter {change}` sets it"
    return None


def _narrowness(topic: Topic, limit: int, largest: int, server: str) -> str | None:
    """Return what is wrong if dead letters do not fit into their topic, and how it is mended."""
    if limit >= min(largest + DEAD_LETTER_HEADROOM, REQUEST_BYTES):
        return None
    change = f"--entity-type topics --entity-name {topic.name} --add-config max.message.bytes={REQUEST_BYTES}"
    return (
        f"has max.message.bytes={limit}, but what it is for may have {largest}, and more when it is not compressed: "
        f"`kafka-configs.sh --bootstrap-server {server} --alter {change}` sets it"
    )


def _configs(topic: Topic) -> dict[str, str]:
    """Return the settings of a new topic: one that is not compacted holds dead letters."""
    wide = {"max.message.bytes": str(REQUEST_BYTES)}
    if topic.cleanup == "delete":
        return {"cleanup.policy": "delete", "retention.ms": str(DEAD_LETTER_RETENTION_MS), **wide}
    kept = {"cleanup.policy": "compact", "delete.retention.ms": str(TOMBSTONE_RETENTION_MS)}
    return kept | wide if topic.is_wide else kept


def _batch_size(key: bytes | None, value: bytes | None, headers: Headers) -> int:
    """Return the most bytes that a message takes on the broker: alone in a batch that zstd cannot compress."""
    parts = [key or b"", value or b"", *(part for name, text in headers for part in (name.encode(), text))]
    content = sum(map(len, parts))
    return content + 5 * len(parts) + content // 4096 + 128


def _unacknowledged(sent: Iterable[Sent]) -> list[Sent]:
    """Return what was not acknowledged, and what was sent after it under the same key, so that their order stays."""
    again, late = [], set()
    for one in sent:
        if not one.future.succeeded() or (one.topic, one.key) in late:
            again.append(one)
            if one.key is not None:
                late.add((one.topic, one.key))
    return again


class _Lenient(bytearray):
    """Bytes of which text is made that escapes what is not UTF-8."""

    def __getitem__(self, index: Any) -> Any:
        found: Any = super().__getitem__(index)
        return _Lenient(found) if isinstance(index, slice) else found

    def decode(self, encoding: str = "utf-8", errors: str = "backslashreplace") -> str:
        return super().decode(encoding, errors)


def _leniently(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return what reads the next message of a batch, though the name of a header is not UTF-8.

    The driver gives such a batch up with all that is in it, and its next poll never ends.
    """

    def read_leniently(batch: Any) -> Any:
        try:
            return read(batch)
        except UnicodeDecodeError:
            batch._buffer = _Lenient(batch._buffer)
            return read(batch)

    return read_leniently


DefaultRecordBatch._read_msg = _leniently(DefaultRecordBatch._read_msg)
# Or a reader would have the broker make a deleted topic anew, as it likes. As a client's own setting it has no effect.
ClusterMetadata.DEFAULT_CONFIG["allow_auto_create_topics"] = False


def _message(record: Any) -> Message:
    headers = tuple((name, text or b"") for name, text in record.headers)  # the driver could not send a null again
    return Message(record.topic, record.partition, record.offset, record.key, record.value, headers, record.timestamp)


def _offsets(committed: Mapping[Any, OffsetAndMetadata], topics: set[str]) -> Offsets:
    return {
        TopicPartition(*at): found.offset for at, found in committed.items() if at.topic in topics and found.offset >= 0
    }


def _missing_topic(url: str, topic: str) -> BackendError:
    return BackendError(f"{url}: there is no topic {topic}; `murmur extract` and `murmur publish` create theirs")
