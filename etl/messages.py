"""The messages between `extract` and `load`: their topics, how they are written, how they are read."""

from __future__ import annotations

import re
from typing import Generic, NamedTuple, TypeVar

from core.bus import Bus, Message, Producer
from core.config import Config
from core.errors import RecordError
from core.names import Names, cloud_event
from core.records import Record, Track

R = TypeVar("R", bound=Record)


class Decoded(NamedTuple, Generic[R]):
    """A message as it was understood."""

    key: str
    rev: int
    record: R | None
    """None is a tombstone."""


def create_topics(bus: Bus, config: Config) -> Names:
    """Create the topics between `extract` and `load` where they are missing; return the names."""
    bus.create_topics(config.topics.of_tracks())
    return Names(config.topics.prefix)


def send(producer: Producer, topic: str, record: Record) -> None:
    """Send a record under its own key."""
    feature_set = record.feature_set if isinstance(record, Track) else ""
    headers = cloud_event(type(record).__name__, record.key, record.rev, feature_set)
    producer.send(topic, record.key.encode(), record.to_json(), headers)


def send_tombstone(producer: Producer, topic: str, kind: type[Record], key: str, rev: int) -> None:
    """Send the deletion of a key; its revision travels in the headers."""
    producer.send(topic, key.encode(), None, cloud_event(kind.__name__, key, rev))


def decode(kind: type[R], message: Message) -> Decoded[R]:
    """Read a message.

    Raises
    ------
    RecordError
        If the value is no such record, the key is not the record's own, or a tombstone has no revision.
    """
    try:
        key = (message.key or b"").decode()
    except UnicodeDecodeError as error:
        raise RecordError("the key is not UTF-8") from error
    if not key:
        raise RecordError("the message has no key")
    if message.value is None:
        rev = message.header("rev") or ""
        if not (re.fullmatch("[0-9]{1,19}", rev) and int(rev) < 2**63):
            raise RecordError(f"the tombstone of {key!r} has no rev header: its place among the updates is unknown")
        return Decoded(key, int(rev), None)
    record = kind.from_json(message.value)
    if record.key != key:
        raise RecordError(f"the key {key!r} is not the record's own, {record.key!r}")
    return Decoded(key, record.rev, record)
