"""Compacted topics read as what they are: the last value of each key, believed only after a look."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, NamedTuple, TypeVar

from core.bus import Bus, Message, Offsets
from core.errors import MadeAnewError, RecordError
from core.patience import patience
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
        values.pop(change.key, None)  # what changed last comes last
        values[change.key] = change.value


class Latest(Generic[V]):
    """What a compacted topic says at its end, of which one keeps up with the end.

    Parameters
    ----------
    bus : Bus
    topic : str
    kind : callable
        Tells what a message should be.
    until : callable, optional
        As `core.patience.patience` takes it.
    """

    def __init__(
        self, bus: Bus, topic: str, kind: Callable[[Message], type[V]], until: Callable[[], bool] | None = None
    ) -> None:
        self.values: dict[str, V] = {}
        """The last value of each key; another dict after each refresh."""
        self.ends: Offsets = {}
        """How far was read, at least."""
        self.rev = 0
        """The highest."""
        self._read: dict[str, V] = {}
        """As far as was read, be it not to the end."""
        self._kind = kind
        self._consumer = bus.consumer([topic])
        self._patiently = patience(self._consumer, until)

    def refresh(self) -> None:
        """Read on to the end there is now; from the beginning if the topic was deleted and made anew.

        A broken connection is waited for, two minutes at most without `until`; then it raises. Where it does, or
        `until` has come, the values stay as they were.
        """
        self._patiently(self._read_on)

    def close(self) -> None:
        """Close the connection."""
        self._consumer.close()

    def _read_on(self) -> None:
        try:
            self._consumer.rewind()
            ends = self._consumer.look_ahead()
            while not self._consumer.at_end():
                for message in self._consumer.poll():
                    for change in changes([message], self._kind(message)):
                        update(self._read, change)
                        self.rev = max(self.rev, change.rev)
                self._consumer.commit()
        except MadeAnewError:
            self._read = {}
            raise
        self.values, self.ends = dict(self._read), ends


def _change(message: Message, kind: type[V]) -> Change[V]:
    if message.key is None:
        raise RecordError("it has no key")
    value = None if message.value is None else kind.from_json(message.value)
    return Change(message.key.decode(), value, int(message.header("rev") or 0))
