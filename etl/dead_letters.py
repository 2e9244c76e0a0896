"""The dead letters: what `load` could not take. They can be read, sent back to where they were, and removed."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import NamedTuple

from core.bus import DEAD_LETTER_DAYS, Bus, Headers, Message, Producer, read_to_end
from core.config import Config
from core.errors import ConfigError
from core.jobs import Report
from core.names import Names, utc

MARK = "dlq_"
"""Begins the name of every header that is not the message's own."""
MAX_ATTEMPTS = 5
"""So often a message is loaded in vain until it is not sent back any more."""
REASON_LENGTH = 1000


class Place(NamedTuple):
    """Where a message was when it was loaded in vain."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"

    def is_in(self, text: str) -> bool:
        """Return whether it is this place, partition or topic."""
        return f"{self}/".startswith(f"{text}/")


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that could not be loaded, as it was, and what is known of it."""

    place: Place
    key: bytes | None
    value: bytes | None
    headers: Headers
    reason: str
    error: str
    """Class of the error."""
    attempts: int
    """How often it was loaded in vain."""
    first_seen: datetime
    """When it was loaded in vain for the first time."""
    version: str
    """Of the program that refused it."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which dead letters are meant: those that fit all of it."""

    places: tuple[str, ...] = ()
    """Each ``topic/partition/offset`` or the beginning of it; none: wherever they were."""
    reason: str = ""
    """A part of the reason."""
    since: datetime | None = None
    """Not first seen before."""

    def fits(self, letter: DeadLetter) -> bool:
        """Return whether a dead letter is meant."""
        return (
            (not self.places or any(letter.place.is_in(place) for place in self.places))
            and self.reason.casefold() in letter.reason.casefold()
            and (self.since is None or letter.first_seen >= self.since)
        )


EVERYTHING = Selection()


def bury(producer: Producer, topic: str, message: Message, reason: str) -> None:
    """Send a message to the dead letters: key, value and headers as they are, and behind them what is known."""
    known = {
        "reason": reason[:REASON_LENGTH],
        "class": "RecordError",
        "topic": message.topic,
        "partition": str(message.partition),
        "offset": str(message.offset),
        "attempts": str(_number(message, "attempts", 0) + 1),
        "first_seen": utc(_first_seen(message) or datetime.now(UTC)),
        "version": _version(),
    }
    headers = tuple((f"{MARK}{name}", text.encode("utf-8", "replace")) for name, text in known.items())
    producer.send(topic, message.key, message.value, (*message.headers, *headers))


def dead_letters(config: Config, selection: Selection = EVERYTHING, *, bus: Bus) -> Iterator[DeadLetter]:
    """Yield the dead letters, the oldest of each partition first.

    Raises
    ------
    ConfigError
        If a place is named where there is none.
    """
    names = Names(config.topics.prefix)
    topic, missing = names.dead_letters, set(selection.places)
    if topic in bus.topics():
        for message in read_to_end(bus, [topic], bus.committed(names.dead_letter_group, [topic])):
            letter = _read(message)
            missing -= {place for place in missing if letter.place.is_in(place)}
            if selection.fits(letter) and not _is_expired(letter):
                yield letter
    if missing:
        raise ConfigError(f"{min(missing)}: no dead letter from there; `murmur dlq` lists them")


def replay(config: Config, selection: Selection = EVERYTHING, *, bus: Bus) -> Report:
    """Send dead letters back to the topics they came from; the next `load` tries them again.

    Each is taken off the dead letters in the transaction that sends it. What was tried too often stays, so that
    replaying and loading cannot go on for ever. Run twice, it sends nothing the second time.

    Returns
    -------
    Report
        `read` counts the dead letters that were meant, `unchanged` those of them that stay.
    """
    names = Names(config.topics.prefix)
    sources = {names.tracks, names.failed}

    def send_back(producer: Producer, letter: DeadLetter) -> bool:
        if letter.attempts >= MAX_ATTEMPTS or letter.place.topic not in sources:
            return False
        marks = {"attempts": str(letter.attempts), "first_seen": utc(letter.first_seen)}
        headers = tuple((f"{MARK}{name}", text.encode()) for name, text in marks.items())
        producer.send(letter.place.topic, letter.key, letter.value, (*letter.headers, *headers))
        return True

    started = time.monotonic()
    meant, sent = _take_off(config, selection, send_back, bus=bus)
    return Report(read=meant, sent=sent, unchanged=meant - sent, seconds=time.monotonic() - started)


def purge(config: Config, selection: Selection = EVERYTHING, *, bus: Bus) -> Report:
    """Remove dead letters for good; `read` counts those that were meant."""
    started = time.monotonic()
    meant, _ = _take_off(config, selection, lambda *_: True, bus=bus)
    return Report(read=meant, seconds=time.monotonic() - started)


def _take_off(
    config: Config, selection: Selection, settle: Callable[[Producer, DeadLetter], bool], *, bus: Bus
) -> tuple[int, int]:
    """Take dead letters off their topic where `settle` says so; return how many were meant, and settled.

    A topic can be shortened from its beginning alone, so what stays is sent once more, as it is, in the transaction
    that commits how far was read. What stands before that position is no dead letter any more, removed or not.
    """
    names = Names(config.topics.prefix)
    topic, group = names.dead_letters, names.dead_letter_group
    if not sum(1 for _ in dead_letters(config, selection, bus=bus)):
        return 0, 0
    meant = settled = 0
    with (
        closing(bus.consumer([topic], group=group)) as consumer,
        closing(bus.producer(commits=consumer)) as producer,
    ):
        while not consumer.at_end():
            messages = consumer.poll()
            with producer.transaction():
                for message in messages:
                    letter = _read(message)
                    if _is_expired(letter):
                        continue
                    is_meant = selection.fits(letter)
                    is_settled = is_meant and settle(producer, letter)
                    meant, settled = meant + is_meant, settled + is_settled
                    if not is_settled:
                        producer.send(topic, message.key, message.value, message.headers)
    bus.trim(bus.committed(group, [topic]))
    return meant, settled


def _read(message: Message) -> DeadLetter:
    """Read a message of the dead letters; one that somebody else put there is its own place."""
    return DeadLetter(
        place=Place(
            message.header(f"{MARK}topic") or message.topic,
            _number(message, "partition", message.partition),
            _number(message, "offset", message.offset),
        ),
        key=message.key,
        value=message.value,
        headers=tuple((name, text) for name, text in message.headers if not name.startswith(MARK)),
        reason=message.header(f"{MARK}reason") or "",
        error=message.header(f"{MARK}class") or "",
        attempts=_number(message, "attempts", 0),
        first_seen=_first_seen(message) or datetime.fromtimestamp(message.timestamp / 1000, UTC),
        version=message.header(f"{MARK}version") or "",
    )


def _number(message: Message, name: str, otherwise: int) -> int:
    text = message.header(f"{MARK}{name}") or ""
    return int(text) if re.fullmatch("[0-9]{1,19}", text) else otherwise


def _first_seen(message: Message) -> datetime | None:
    with suppress(ValueError):
        return datetime.fromisoformat(message.header(f"{MARK}first_seen") or "").astimezone(UTC)
    return None


def _is_expired(letter: DeadLetter) -> bool:
    """Return whether its time is over, which sending it anew does not prolong: it could bring back what is deleted."""
    return datetime.now(UTC) - letter.first_seen > timedelta(days=DEAD_LETTER_DAYS)


@cache
def _version() -> str:
    from importlib.metadata import version

    return version("murmuration")
