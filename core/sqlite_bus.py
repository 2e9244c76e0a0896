"""The bus in one SQLite file: a topic has one partition, a group one active member at a time.

A transaction is kept in memory and written at its commit. A compacted topic drops the former
value of a key as the next one is written; what is too old goes as its topic is written to, or
declared. The other members of a group wait for a lease, which the system frees when its holder
dies.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import orjson

from core.bus import DEAD_LETTER_DAYS, TOMBSTONE_DAYS, Consumer, Headers, Message, Offsets, Topic, TopicPartition
from core.errors import BackendError, FencedError
from core.names import digest
from core.sqlite import Database

SCHEMA = {
    "topics": """CREATE TABLE topics (
        topic_id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, cleanup TEXT NOT NULL, next INTEGER NOT NULL)""",
    "messages": """CREATE TABLE messages (
        topic_id INTEGER NOT NULL, offset INTEGER NOT NULL, timestamp INTEGER NOT NULL,
        key BLOB, headers TEXT NOT NULL, value BLOB)""",
    "messages_offset": "CREATE UNIQUE INDEX messages_offset ON messages (topic_id, offset)",
    "messages_key": "CREATE INDEX messages_key ON messages (topic_id, key)",
    "messages_tombstones": "CREATE INDEX messages_tombstones ON messages (topic_id, timestamp) WHERE value IS NULL",
    "offsets": """CREATE TABLE offsets (
        group_id TEXT NOT NULL, topic_id INTEGER NOT NULL, next INTEGER NOT NULL, PRIMARY KEY (group_id, topic_id))""",
    "producers": "CREATE TABLE producers (transactional_id TEXT PRIMARY KEY, epoch INTEGER NOT NULL)",
}
BUFFER_BYTES = 8 << 20
"""What a producer holds before it writes by itself, outside a transaction."""
POLL_SECONDS = 0.02
DAY_MS = 24 * 3600 * 1000
EXPIRED = {
    "compact": (TOMBSTONE_DAYS, "DELETE FROM messages WHERE topic_id = ?1 AND value IS NULL AND timestamp < ?2"),
    "delete": (
        DEAD_LETTER_DAYS,
        """DELETE FROM messages WHERE topic_id = ?1 AND offset < ifnull(
            (SELECT offset FROM messages WHERE topic_id = ?1 AND timestamp >= ?2 ORDER BY offset LIMIT 1),
            (SELECT next FROM topics WHERE topic_id = ?1))""",
    ),
}
"""Cleanup → how many days the tombstones of a compacted topic, or all messages of another, are kept, and what removes
those that are older."""

log = logging.getLogger(__name__)

Unwritten = tuple[str, bytes | None, bytes | None, Headers, int]


class SQLiteBus:
    """`Bus` on SQLite; its promises are in `core.bus.Bus`."""

    def __init__(self, url: str, *, create: bool = True) -> None:
        self.url = url
        self._database = Database(url, SCHEMA, create=create)

    def create_topics(self, topics: Iterable[Topic]) -> None:
        """Create those that do not exist yet; in those that do, remove what is too old."""
        wanted = {topic.name: topic.cleanup for topic in topics}
        with self._database.write() as connection:
            found = connection.execute("SELECT name, cleanup, topic_id FROM topics").fetchall()
            for name, cleanup, topic_id in found:
                if wanted.get(name, cleanup) != cleanup:
                    raise BackendError(self._mismatch(name, cleanup, wanted[name]))
                if name in wanted:
                    _expire(connection, topic_id, cleanup, _now_ms())
            missing = wanted.items() - {(name, cleanup) for name, cleanup, _ in found}
            connection.executemany("INSERT INTO topics (name, cleanup, next) VALUES (?, ?, 0)", sorted(missing))
        self._database.shrink()

    def topics(self) -> list[str]:
        """Return the names of the existing topics, sorted."""
        return [name for (name,) in self._database.read("SELECT name FROM topics ORDER BY name")]

    def producer(self, transactional_id: str | None = None, *, commits: Consumer | None = None) -> SQLiteProducer:
        """Open a producer."""
        assert commits is None or isinstance(commits, SQLiteConsumer)
        return SQLiteProducer(self._database, transactional_id, commits)

    def consumer(
        self, topics: Iterable[str], *, group: str | None = None, start: Mapping[TopicPartition, int] | None = None
    ) -> SQLiteConsumer:
        """Open a consumer."""
        return SQLiteConsumer(self._database, list(topics), group, start or {})

    def committed(self, group: str, topics: Iterable[str]) -> Offsets:
        """Return the committed offsets of a group."""
        return _committed(self._database, group, topics)

    def groups(self, prefix: str, topics: Iterable[str]) -> dict[str, Offsets]:
        """Return what each group has committed."""
        wanted = list(topics)
        names = [name for (name,) in self._database.read("SELECT DISTINCT group_id FROM offsets ORDER BY group_id")]
        found = {name: self.committed(name, wanted) for name in names if name.startswith(prefix)}
        return {name: offsets for name, offsets in found.items() if offsets}

    def has_members(self, group: str) -> bool:
        """Return whether a consumer of the group is at work."""
        lease = self._database.lease(_lease_name(group))
        if lease is not None:
            os.close(lease)
        return lease is None

    def ends(self, topics: Iterable[str]) -> Offsets:
        """Return the end of each topic."""
        return {TopicPartition(name, 0): _topic(self._database, name)[2] for name in topics}

    def first(self, offsets: Offsets) -> dict[TopicPartition, Message]:
        """Return the first message at each of these offsets or beyond."""
        rows = {
            at: _rows(self._database, _topic(self._database, at.topic)[0], offset, 1) for at, offset in offsets.items()
        }
        return {at: _message(at.topic, *found[0]) for at, found in rows.items() if found}

    def size(self) -> int:
        """Return the bytes of the file."""
        return self._database.size()

    def trim(self, offsets: Offsets) -> None:
        """Remove what stands before these offsets."""
        rows = [(_topic(self._database, name)[0], offset) for (name, _), offset in offsets.items()]
        with self._database.write() as connection:
            connection.executemany("DELETE FROM messages WHERE topic_id = ? AND offset < ?", rows)
        self._database.shrink()

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _mismatch(self, name: str, found: str, declared: str) -> str:
        statement = f"UPDATE topics SET cleanup = '{declared}' WHERE name = '{name}'"
        return (
            f"{self._database.path}: {name} has cleanup={found}, not {declared}: choose another topics.prefix, "
            f'or `sqlite3 {self._database.path} "{statement}"` sets it'
        )


class SQLiteProducer:
    """`Producer` on SQLite."""

    def __init__(self, database: Database, transactional_id: str | None, commits: SQLiteConsumer | None) -> None:
        self._database = database
        self._id = transactional_id
        self._commits = commits
        self._cleanup: dict[str, str] = {}
        self._buffer: list[Unwritten] = []
        self._bytes = 0
        self._in_transaction = False
        self._epoch = self._take_over() if transactional_id else 0

    def send(self, topic: str, key: bytes | None, value: bytes | None, headers: Headers = ()) -> None:
        """Hand over a message."""
        if topic not in self._cleanup:
            self._cleanup[topic] = _topic(self._database, topic)[1]
        if key is None and self._cleanup[topic] == "compact":
            raise BackendError(f"{topic}: a compacted topic takes no message without a key")
        self._buffer.append((topic, key, value, headers, _now_ms()))
        self._bytes += len(value or b"")
        if self._bytes > BUFFER_BYTES and not self._in_transaction:
            self.flush()

    def flush(self) -> None:
        """Write what was sent, unless a transaction is open: its end writes it."""
        if self._in_transaction or not self._buffer:
            return
        messages = self._taken()
        with self._database.write() as connection:
            self._check_epoch(connection)
            for message in messages:
                _append(connection, *message)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Write all that is sent inside at its end, or nothing."""
        if self._id is None and self._commits is None:
            raise BackendError("a transaction needs a producer with a transactional_id")
        self.flush()
        self._in_transaction = True
        with ExitStack() as undo:
            undo.callback(self._taken)
            try:
                yield
            finally:
                self._in_transaction = False
            undo.pop_all()
        if self._commits:
            self._commits.commit_with(self._taken(), self._check_epoch)
        self.flush()

    def close(self) -> None:
        """Forget what was not flushed."""
        self._buffer = []

    def _taken(self) -> list[Unwritten]:
        messages, self._buffer, self._bytes = self._buffer, [], 0
        return messages

    def _take_over(self) -> int:
        with self._database.write() as connection:
            statement = """INSERT INTO producers VALUES (?, 1)
                ON CONFLICT DO UPDATE SET epoch = epoch + 1 RETURNING epoch"""
            return int(connection.execute(statement, (self._id,)).fetchone()[0])

    def _check_epoch(self, connection: sqlite3.Connection) -> None:
        if self._id is None:
            return
        statement = "SELECT epoch FROM producers WHERE transactional_id = ?"
        if connection.execute(statement, (self._id,)).fetchone()[0] != self._epoch:
            raise FencedError(f"{self._id}: another producer took over; this one stops")


class SQLiteConsumer:
    """`Consumer` on SQLite."""

    def __init__(
        self, database: Database, topics: list[str], group: str | None, start: Mapping[TopicPartition, int]
    ) -> None:
        self._database = database
        self._topics = {name: _topic(database, name)[0] for name in topics}
        self._group = group
        self._lease: int | None = None
        self._waits = False
        """Whether it was said that another member is active."""
        self._position: dict[str, int] | None = None
        self._committed: dict[str, int] = {}
        self._ends: dict[str, int] = {}
        if group is None:
            self._begin({TopicPartition(name, 0): start.get(TopicPartition(name, 0), 0) for name in topics})

    def poll(self, timeout: float = 1.0, max_records: int = 500) -> list[Message]:
        """Return the next messages, topic after topic."""
        deadline = time.monotonic() + timeout
        seen = -1
        while True:
            if self._is_active() and seen != (version := self._database.version()):
                seen = version
                if messages := self._next(max_records):
                    return messages
            if (left := deadline - time.monotonic()) <= 0:
                return []
            time.sleep(min(POLL_SECONDS, left))

    def commit(self) -> None:
        """Persist the position for the group."""
        if self._group is None:
            self._committed = dict(self._position or {})
        elif (self._position or {}) != self._committed:
            self.commit_with([])

    def commit_with(
        self, messages: Iterable[Unwritten], check: Callable[[sqlite3.Connection], None] = lambda _: None
    ) -> None:
        """Write messages and persist the position in one transaction, unless the check raises."""
        position = dict(self._position or {})
        rows = [(self._group, self._topics[name], offset) for name, offset in position.items()]
        with self._database.write() as connection:
            check(connection)
            for message in messages:
                _append(connection, *message)
            connection.executemany("INSERT OR REPLACE INTO offsets VALUES (?, ?, ?)", rows)
        self._committed = position

    def rewind(self, seconds: float = 0.0) -> None:
        """Go back to the last commit, and wait; the lease is kept."""
        if self._position is not None:
            self._position = dict(self._committed)
        time.sleep(seconds)

    def at_end(self) -> bool:
        """Return whether every position has reached the end seen when reading began, or by the last `look_ahead`."""
        position = self._position
        return position is not None and all(position[name] >= end for name, end in self._ends.items())

    def look_ahead(self) -> Offsets:
        """Let `at_end` go by the ends that there are now, and return these."""
        self._ends = {name: _topic(self._database, name)[2] for name in self._topics}
        return {TopicPartition(name, 0): end for name, end in self._ends.items()}

    def close(self) -> None:
        """Free the lease of the group."""
        if self._lease is not None:
            os.close(self._lease)
            self._lease = None
        self._position = None

    def _is_active(self) -> bool:
        if self._position is None and self._group is not None:
            self._lease = self._database.lease(_lease_name(self._group))
            if self._lease is not None:
                self._begin(_committed(self._database, self._group, self._topics))
            elif not self._waits:
                log.warning("%s: another process works for %s; this one waits for it", self._database.path, self._group)
                self._waits = True
        return self._position is not None

    def _begin(self, start: Offsets) -> None:
        self._position = {name: start.get(TopicPartition(name, 0), 0) for name in self._topics}
        self._committed = dict(self._position)
        self.look_ahead()

    def _next(self, max_records: int) -> list[Message]:
        position = self._position or {}
        messages: list[Message] = []
        for name, topic_id in self._topics.items():
            if len(messages) == max_records:
                break
            rows = _rows(self._database, topic_id, position[name], max_records - len(messages))
            messages += [_message(name, *row) for row in rows]
            # without rows the rest up to the end was trimmed
            position[name] = rows[-1][0] + 1 if rows else max(position[name], self._ends[name])
        return messages


def _lease_name(group: str) -> str:
    return f"group-{digest(group.encode())[:12]}"


def _append(
    connection: sqlite3.Connection, topic: str, key: bytes | None, value: bytes | None, headers: Headers, timestamp: int
) -> None:
    statement = "UPDATE topics SET next = next + 1 WHERE name = ? RETURNING topic_id, cleanup, next - 1"
    topic_id, cleanup, offset = connection.execute(statement, (topic,)).fetchone()
    if cleanup == "compact":
        connection.execute("DELETE FROM messages WHERE topic_id = ? AND key = ?", (topic_id, key))
    if cleanup == "delete" or value is None:
        _expire(connection, topic_id, cleanup, timestamp)
    texts = orjson.dumps([[name, data.decode("latin-1")] for name, data in headers]).decode()
    connection.execute(
        "INSERT INTO messages (topic_id, offset, timestamp, key, headers, value) VALUES (?, ?, ?, ?, ?, ?)",
        (topic_id, offset, timestamp, key, texts, value),
    )


def _rows(database: Database, topic_id: int, offset: int, n_rows: int) -> list[tuple[Any, ...]]:
    return database.read(
        """SELECT offset, key, value, headers, timestamp FROM messages
        WHERE topic_id = ? AND offset >= ? ORDER BY offset LIMIT ?""",
        (topic_id, offset, n_rows),
    )


def _expire(connection: sqlite3.Connection, topic_id: int, cleanup: str, now: int) -> None:
    days, statement = EXPIRED[cleanup]
    connection.execute(statement, (topic_id, now - days * DAY_MS))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _message(topic: str, offset: int, key: bytes | None, value: bytes | None, headers: str, timestamp: int) -> Message:
    pairs = tuple((name, text.encode("latin-1")) for name, text in orjson.loads(headers))
    return Message(topic, 0, offset, key, value, pairs, timestamp)


def _topic(database: Database, name: str) -> tuple[int, str, int]:
    rows = database.read("SELECT topic_id, cleanup, next FROM topics WHERE name = ?", (name,))
    if not rows:
        raise BackendError(f"{database.path}: no topic {name}")
    return rows[0][0], rows[0][1], rows[0][2]


def _committed(database: Database, group: str, topics: Iterable[str]) -> Offsets:
    rows = dict(
        database.read(
            "SELECT name, offsets.next FROM offsets JOIN topics USING (topic_id) WHERE group_id = ?", (group,)
        )
    )
    return {TopicPartition(name, 0): rows[name] for name in topics if name in rows}
