"""Compacted topics read as what they are: the last value of each key, believed only after a look."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Generic, NamedTuple, TypeVar

from core.bus import Message
from core.errors import RecordError
from core.records import Value

V = TypeVar("V", bound=Value)

log = logging.getLogger(__name__)


class Change(NamedTuple, Generic[V]):
    """What one message says of its key."""

    key: str
    value: V | None
    """None: the key is gone."""
    rev: int
    """0 where the header is missing."""


def changes(messages: Iterable[Message], kind: type[V]) -> Iterator[Change[V]]:
    """Yield what each message says; one that does not fit `kind` is left out with a warning."""
    for message in messages:
        try:
            yield _change(message, kind)
        except (RecordError, ValueError) as error:
            place = f"{message.topic}, partition {message.partition}, offset {message.offset}"
            log.warning("%s: skipped: %s", place, " ".join(str(error).split()))


def fold(messages: Iterable[Message], kind: type[V]) -> dict[str, V]:
    """Return the last value of each key; tombstones leave nothing."""
    values: dict[str, V] = {}
    for change in changes(messages, kind):
        update(values, change)
    return values


def update(values: dict[str, V], change: Change[V]) -> None:
    """Bring a fold up to date with one more change, in place."""
    if change.value is None:
        values.pop(change.key, None)
    else:
        values[change.key] = change.value


def _change(message: Message, kind: type[V]) -> Change[V]:
    if message.key is None:
        raise RecordError("it has no key")
    value = None if message.value is None else kind.from_json(message.value)
    return Change(message.key.decode(), value, int(message.header("rev") or 0))
