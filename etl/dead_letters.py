"""The dead letters: what `load` could not take. They can be read, sent back to where they were, and removed."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import NamedTuple

from core.bus import DEAD_LETTER_DAYS, Bus, Headers, Message, Offsets, Producer, TopicPartition, read_to_end
from core.config import Config
from core.errors import ConfigError, TooLargeError
from core.jobs import Report
from core.names import Names, utc

KNOWN = tuple(
    f"dlq_{name}" for name in ("reason", "class", "topic", "partition", "offset", "attempts", "first_seen", "version")
)
"""The last headers of a dead letter; those before them are the message's own."""
REPLAYED = ("murmur_replay_attempts", "murmur_replay_first_seen")
"""The last headers of a message that was sent back."""
MAX_ATTEMPTS = 5
"""So often a message is loaded in vain until it is not sent back any more."""


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


def bury(producer: Producer, topic: str, message: Message, reason: str, error: str = "RecordError") -> None:
    """Send a message to the dead letters: key, value and headers as they are, and behind them what is known."""
    headers, replayed = _split(message.headers, REPLAYED)
    known = (
        reason,
        error,
        message.topic,
        str(message.partition),
        str(message.offset),
        str(_number(replayed.get(REPLAYED[0]), 0) + 1),
        utc(_time(replayed.get(REPLAYED[1])) or datetime.now(UTC)),
        _version(),
    )
    marks = tuple((name, text.encode("utf-8", "replace")) for name, text in zip(KNOWN, known, strict=True))
    producer.send(topic, message.key, message.value, (*headers, *marks))


def dead_letters(config: Config, selection: Selection = EVERYTHING, *, bus: Bus) -> Generator[DeadLetter, None, None]:
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
    replaying and loading cannot go on for ever; so does what is larger than its topic takes, and what a later message
    of its key has superseded, so that no compacted topic keeps it instead of that one. Run twice, it sends nothing the
    second time.

    Returns
    -------
    Report
        `read` counts the dead letters that were meant, `unchanged` those of them that stay.
    """
    names = Names(config.topics.prefix)
    sources = {names.tracks, names.failed}

    started = time.monotonic()
    places = {letter.place: letter.key for letter in dead_letters(config, selection, bus=bus)}
    if not places:
        return Report(seconds=time.monotonic() - started)
    superseded = _superseded(bus, {place: key for place, key in places.items() if place.topic in sources})

    def send_back(producer: Producer, letter: DeadLetter) -> bool:
        is_elsewhere = letter.place.topic not in sources
        if letter.attempts >= MAX_ATTEMPTS or is_elsewhere or letter.place in superseded:
            return False
        known = (str(letter.attempts), utc(letter.first_seen))
        marks = tuple((name, text.encode()) for name, text in zip(REPLAYED, known, strict=True))
        try:
            producer.send(letter.place.topic, letter.key, letter.value, (*letter.headers, *marks))
        except TooLargeError:
            return False
        return True

    meant, sent = _take_off(config, selection, send_back, bus=bus)
    return Report(read=meant, sent=sent, unchanged=meant - sent, seconds=time.monotonic() - started)


def purge(config: Config, selection: Selection = EVERYTHING, *, bus: Bus) -> Report:
    """Remove dead letters for good; `read` counts those that were meant."""
    started = time.monotonic()
    meant = sum(1 for _ in dead_letters(config, selection, bus=bus))
    if meant:
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


def _superseded(bus: Bus, keys: Mapping[Place, bytes | None]) -> set[Place]:
    """Return the places behind which their topic has a later message of the same key."""
    first: Offsets = {}
    for topic, partition, offset in keys:
        at = TopicPartition(topic, partition)
        first[at] = min(first.get(at, offset), offset)
    wanted, last = set(keys.values()), {}
    if first:
        for message in read_to_end(bus, {at.topic for at in first}, {**bus.ends({at.topic for at in first}), **first}):
            if message.key in wanted:
                last[message.topic, message.partition, message.key] = message.offset
    return {place for place, key in keys.items() if last.get((place.topic, place.partition, key), -1) > place.offset}


def _read(message: Message) -> DeadLetter:
    """Read a message of the dead letters; one that somebody else put there is its own place."""
    headers, known = _split(message.headers, KNOWN)
    reason, error, topic, partition, offset, attempts, first_seen, version = (known.get(name) for name in KNOWN)
    return DeadLetter(
        place=Place(topic or message.topic, _number(partition, message.partition), _number(offset, message.offset)),
        key=message.key,
        value=message.value,
        headers=headers,
        reason=reason or "",
        error=error or "",
        attempts=_number(attempts, 0),
        first_seen=_time(first_seen) or datetime.fromtimestamp(message.timestamp / 1000, UTC),
        version=version or "",
    )


def _split(headers: Headers, names: tuple[str, ...]) -> tuple[Headers, dict[str, str]]:
    """Return a message's own headers, and those of these names that end them, if they do."""
    own, last = headers[: -len(names)], headers[-len(names) :]
    if tuple(name for name, _ in last) != names:
        return headers, {}
    return own, {name: value.decode("utf-8", "replace") for name, value in last}


def _number(text: str | None, otherwise: int) -> int:
    return int(text) if text and re.fullmatch("[0-9]{1,18}", text) else otherwise


def _time(text: str | None) -> datetime | None:
    with suppress(ValueError, OverflowError):
        return datetime.fromisoformat(text or "").astimezone(UTC)
    return None


def _is_expired(letter: DeadLetter) -> bool:
    """Return whether its time is over, which sending it anew does not prolong: it could bring back what is deleted."""
    return datetime.now(UTC) - letter.first_seen > timedelta(days=DEAD_LETTER_DAYS)


@cache
def _version() -> str:
    from importlib.metadata import version

    return version("murmuration")
