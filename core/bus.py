"""The `Bus` seam: topics, producers with transactions, consumer groups, on SQLite or Kafka."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from core.errors import ConfigError
from core.names import bare_url

DEAD_LETTER_DAYS = 14
"""How long a dead letter is kept: shorter than the marks of what was deleted, so that none can bring it back."""
TOMBSTONE_DAYS = 7
"""How long a compacted topic tells of a deletion; a reader that was away for longer never hears of it."""

Headers = tuple[tuple[str, bytes], ...]


class TopicPartition(NamedTuple):
    """One partition of a topic."""

    topic: str
    partition: int


Offsets = dict[TopicPartition, int]
"""The next offset to read of each partition."""


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as it is to be created."""

    name: str
    cleanup: Literal["compact", "delete"]
    partitions: int = 1
    replication: int = -1
    """-1: the broker's default."""
    is_wide: bool = False
    """Whether it is to take messages of many megabytes; one of dead letters always is."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message as it was read: bytes, not yet believed."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    """None is a tombstone."""
    headers: Headers
    timestamp: int
    """ms since the epoch."""

    def header(self, name: str) -> str | None:
        """Return the last header of that name as text, None where there is none."""
        found = [value for key, value in self.headers if key == name]
        return found[-1].decode("utf-8", "replace") if found else None


class Producer(Protocol):
    """Sends messages. Every method raises `BackendError`, and `FencedError` once taken over."""

    def send(self, topic: str, key: bytes | None, value: bytes | None, headers: Headers = ()) -> None:
        """Hand over a message; messages of one key keep their order."""

    def flush(self) -> None:
        """Return once every message sent so far is acknowledged and durable.

        Raise if one is not: then those sent since the last flush are the caller's to send again.
        """

    def transaction(self) -> AbstractContextManager[None]:
        """All that is sent inside becomes readable as a whole at its end, or never if it raises.

        Only for a producer with a `transactional_id` or that `commits` for a consumer.
        """

    def close(self) -> None:
        """Let go of the connection; what is not flushed may be lost."""


class Consumer(Protocol):
    """Reads topics in order per key; sees committed transactions only. Raises `BackendError`."""

    def poll(self, timeout: float = 1.0, max_records: int = 500) -> list[Message]:
        """Return the next messages, [] if none came within `timeout` seconds; moves the position."""

    def commit(self) -> None:
        """Persist the position for the group; what is not committed is delivered again.

        Without a group nothing is persisted, and only `rewind` knows of it.
        """

    def rewind(self, seconds: float = 0.0) -> None:
        """Go back to the last commit, so that what came after it is delivered again.

        For so many seconds nothing is read, and the consumer stays a member of its group.
        """

    def at_end(self) -> bool:
        """Return whether every position has reached the end seen when reading began, or by the last `look_ahead`."""

    def look_ahead(self) -> Offsets:
        """Let `at_end` go by the ends that there are now, and return these.

        Raise `MadeAnewError` if a topic was deleted and created again; then it is read from its beginning.
        """

    def close(self) -> None:
        """Leave the group, without a commit."""


class Bus(Protocol):
    """Topics. Every method raises `BackendError`."""

    url: str
    """Without user info and options: safe to print."""

    def create_topics(self, topics: Iterable[Topic]) -> None:
        """Create those that do not exist yet; raise if one that exists is not as declared."""

    def topics(self) -> list[str]:
        """Return the names of the existing topics, sorted."""

    def producer(self, transactional_id: str | None = None, *, commits: Consumer | None = None) -> Producer:
        """Open a producer.

        With an id, it fences the former producer of that id. One that `commits` for a consumer of a group persists
        its position with each transaction: both, or neither if it raises. It raises too if the group has meanwhile
        given the consumer's partitions to another. A producer may do both.
        """

    def consumer(
        self, topics: Iterable[str], *, group: str | None = None, start: Mapping[TopicPartition, int] | None = None
    ) -> Consumer:
        """Open a consumer of existing topics.

        With a `group` it goes on from the group's committed offsets, a new group from the
        beginning. Without one it reads from `start`, and from the beginning where `start` is silent.
        """

    def committed(self, group: str, topics: Iterable[str]) -> Offsets:
        """Return the committed offsets of a group; partitions without one are left out."""

    def groups(self, prefix: str, topics: Iterable[str]) -> dict[str, Offsets]:
        """Return what each group whose name begins so has committed of these topics; groups without it are left out."""

    def has_members(self, group: str) -> bool:
        """Return whether a consumer of the group is at work; of one that was killed, for as long as a session lasts."""

    def ends(self, topics: Iterable[str]) -> Offsets:
        """Return the end of each partition, as a reader of committed transactions sees it."""

    def first(self, offsets: Offsets) -> dict[TopicPartition, Message]:
        """Return the first message at each of these offsets or beyond; left out where none is, or none comes."""

    def size(self) -> int | None:
        """Return the bytes that the bus takes on this machine, None where it is elsewhere."""

    def trim(self, offsets: Offsets) -> None:
        """Remove what stands before these offsets, in topics that are not compacted."""

    def close(self) -> None:
        """Let go of files and connections."""


def open_bus(url: str, *, create: bool = True) -> Bus:
    """Open the bus that `url` names.

    Parameters
    ----------
    url : str
        ``sqlite:///relative.db``, ``sqlite:////absolute.db``, ``kafka://host:9092,host2:9092`` or
        ``kafka://user:password@host:9093?option=value&…``, with the options of `core.kafka_connection.OPTIONS`.
    create : bool
        Whether a SQLite file that is missing may be made; a command that only reads passes False.

    Raises
    ------
    ConfigError
        If the URL is of no known kind, malformed, or the file is missing and may not be made.
    BackendError
        Within 5 s, if there is nobody there, the certificate is not trusted, or user and password are refused.
    """
    scheme = url.partition("://")[0]
    if scheme == "sqlite":
        from core.sqlite_bus import SQLiteBus

        return SQLiteBus(url, create=create)
    if scheme == "kafka":
        from core.kafka import KafkaBus

        return KafkaBus(url)
    raise ConfigError(f"bus.url: {bare_url(url)!r} is no bus; use sqlite:///murmur.db or kafka://host:9092")


def read_to_end(
    bus: Bus, topics: Iterable[str], start: Mapping[TopicPartition, int] | None = None
) -> Iterator[Message]:
    """Yield the messages from `start` (default: the beginning) to the end that is there now."""
    consumer = bus.consumer(topics, start=start)
    try:
        while not consumer.at_end():
            yield from consumer.poll()
    finally:
        consumer.close()


def lag(bus: Bus, group: str, topics: Iterable[str]) -> int:
    """Return how many messages a group has not committed yet (compacted ones counted too)."""
    return sum(lags(bus, group, topics).values())


def lags(bus: Bus, group: str, topics: Iterable[str]) -> dict[str, int]:
    """Return the same of each topic."""
    topics = list(topics)
    return behind(bus.committed(group, topics), bus.ends(topics))


def behind(committed: Offsets, ends: Offsets) -> dict[str, int]:
    """Return how many messages there are from offsets to the ends, of each topic that has an end."""
    found = dict.fromkeys((topic for topic, _ in ends), 0)
    for partition, end in ends.items():
        found[partition.topic] += end - committed.get(partition, 0)
    return found
