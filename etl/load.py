"""The job `load`: tracks and failures from the bus → the store."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from typing import Any, NamedTuple

from core.bus import Bus, Consumer, Message, Producer, lag
from core.config import Config
from core.errors import BackendError, RecordError
from core.jobs import Progress, Report, Watch, ignore
from core.metrics import count_batch, lag_watch
from core.names import Names, printable
from core.patience import patience
from core.records import Failure, Record, Track
from core.store import Store
from etl.dead_letters import Place, bury
from etl.messages import Decoded, create_topics, decode

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
"""How long a poll waits for messages before it is asked again whether the end is reached."""
REASON_LENGTH = 1000
WINDOW = 1000
"""The last messages, of which no more than `load.max_bad_share` may be bad."""
FEWEST = 100
"""So many messages are needed to speak of a share."""
SWEEP_SECONDS = 24 * 3600.0
"""Between two sweeps, if the bus is followed."""


class Entry(NamedTuple):
    """A message and what it says."""

    message: Message
    decoded: Decoded[Any]


class Dead(NamedTuple):
    """A message that cannot be loaded, and why."""

    message: Message
    reason: str
    error: str
    """Its class: ``RecordError``, or ``Refused`` by the store."""


Versions = dict[bytes | None, list[Message]]
"""The messages of each key, in their order."""


class Batch(NamedTuple):
    """What became of the messages of one poll."""

    read: int
    written: int
    failed: int
    seconds: float


def run(
    config: Config, *, store: Store, bus: Bus, progress: Watch = ignore, until: Callable[[], bool] | None = None
) -> Report:
    """Load what is on the bus into the store.

    Reads the topics of tracks and failures from the group's committed offsets to the end there was at the start, and
    writes the latest version of each key; a tombstone deletes. A message that is no record, or that the store refuses,
    goes to the dead letters as it is, and the rest go on. The order is always: write, dead letters, flush, commit; so a
    run that is stopped anywhere is repeated from its last commit, and repeating changes nothing. Several runs at once
    share the work, and each ends when all of it is done.

    A broken connection to the store or the bus is waited for, two minutes at most; nothing is lost meanwhile. At the
    end the marks of what was deleted are swept that are older than `store.deleted_retention`.

    Parameters
    ----------
    config : Config
        Sections `load` and `topics`, and `store.deleted_retention`.
    store, bus
        From the bus, into the store; dead letters go to the bus.
    progress : callable
        Told how many messages were read.
    until : callable, optional
        Follow the bus until this is true, after the batch at hand; then a broken connection is waited for without end,
        and marks are swept daily.

    Returns
    -------
    Report
        `written` counts records, `unchanged` messages older than what is stored, `failed` dead letters.

    Raises
    ------
    RecordError
        If too many of the last messages are bad; nothing of the batch at hand is committed.
    BackendError
        If the store or the bus fails; nothing of the batch at hand is committed.
    """
    started = time.monotonic()
    names = create_topics(bus, config)
    total = lag(bus, names.load_group, [names.tracks, names.failed])
    read = written = failed = 0
    with closing(Loader(config, names, store=store, bus=bus)) as loader:
        patiently = patience(loader.consumer, until)
        has_ended = until or loader.has_caught_up

        def next_batch() -> Batch | None:
            return None if has_ended() else loader.load()

        while batch := patiently(next_batch):
            read, written, failed = read + batch.read, written + batch.written, failed + batch.failed
            if batch.read:
                log.info("loaded %d messages: %d records written, %d dead letters (%.2f s)", *batch)
                count_batch(*batch)
                progress(Progress("load", read, None if until else max(total, read), failed))
        if until is None:
            patiently(loader.sweep)
    if read < total:  # it counts what marks the end of a transaction, too
        progress(Progress("load", read, read, failed))
    seconds = time.monotonic() - started
    return Report(
        read=read, written=written, unchanged=read - written - failed, failed=failed, sent=failed, seconds=seconds
    )


class Loader:
    """A member of the group that loads.

    Parameters
    ----------
    config : Config
    names : Names
        Of the topics, which exist.
    store, bus
    """

    def __init__(self, config: Config, names: Names, *, store: Store, bus: Bus) -> None:
        self._config, self._names, self._store, self._bus = config, names, store, bus
        self._kinds: dict[str, type[Record]] = {names.tracks: Track, names.failed: Failure}
        self._ends = bus.ends(self._kinds)
        self._is_idle = True
        self._recent: deque[bool] = deque(maxlen=WINDOW)
        """Which of the last messages were bad."""
        self._producer: Producer | None = None
        self._sweep_at = 0.0
        self._look_at_lag = lag_watch(bus, names.load_group, list(self._kinds))
        self.consumer: Consumer = bus.consumer(self._kinds, group=names.load_group)

    def load(self) -> Batch:
        """Load what one poll brings, and commit it; raise without a commit."""
        self._look_at_lag()
        messages = self.consumer.poll(POLL_SECONDS, self._config.load.batch)
        started = time.monotonic()
        written, dead = write(messages, self._kinds, self._store)
        recent = self._checked(messages, dead)
        if dead:
            self._bury(dead)
        else:
            self.consumer.commit()
        self._recent.extend(recent)
        self._is_idle = not messages
        if self._is_idle:
            self.sweep()
        return Batch(len(messages), written, len(dead), time.monotonic() - started)

    def has_caught_up(self) -> bool:
        """Return whether the group, this member or another, has committed all that there was when this one began."""
        if not self._is_idle and not self.consumer.at_end():
            return False
        committed, ends = self._bus.committed(self._names.load_group, self._kinds), self._bus.ends(self._kinds)
        return all(committed.get(at, 0) >= min(end, ends.get(at, 0)) for at, end in self._ends.items())

    def sweep(self) -> None:
        """Remove old marks of what was deleted, not more often than once a day."""
        if time.monotonic() < self._sweep_at:
            return
        older_than = self._config.store.deleted_retention * 24 * 3600
        swept = sum(self._store.sweep(kind, older_than) for kind in self._kinds.values())
        log.info("swept %d marks of what was deleted", swept)
        self._sweep_at = time.monotonic() + SWEEP_SECONDS

    def close(self) -> None:
        """Leave the group."""
        self.consumer.close()
        if self._producer:
            self._producer.close()

    def _checked(self, messages: Iterable[Message], dead: Iterable[Dead]) -> list[bool]:
        """Return which messages are bad; raise if with them too many are: a wrong topic is no heap of dead letters."""
        bad = {_place(message): reason for message, reason, _ in dead}
        are_bad = [_place(message) in bad for message in messages]
        recent = [*self._recent, *are_bad][-max(WINDOW, len(are_bad)) :]
        allowed = self._config.load.max_bad_share
        if bad and len(recent) >= FEWEST and sum(recent) > allowed * len(recent):
            place, reason = next(iter(bad.items()))
            raise RecordError(
                f"{sum(recent)} of the last {len(recent)} messages cannot be loaded, more than load.max_bad_share "
                f"({allowed:.0%}) allows, such as {place}: {reason}; they stay where they are: see that topics.prefix "
                "is right, mend what sends them, or raise the share"
            )
        return are_bad

    def _bury(self, dead: Iterable[Dead]) -> None:
        """Send dead letters and commit, both or neither: so each of them is there once."""
        if self._producer is None:
            self._producer = self._bus.producer(commits=self.consumer)
        try:
            with self._producer.transaction():
                for one in dead:
                    bury(self._producer, self._names.dead_letters, *one)
        except BackendError:
            self._producer.close()
            self._producer = None
            raise
        for message, reason, _ in dead:
            log.warning("%s: dead letter: %s", _place(message), reason)


def _place(message: Message) -> Place:
    return Place(message.topic, message.partition, message.offset)


def _reason(text: str) -> str:
    """Return why a message is bad; what it quotes of the message may be long and strange."""
    return printable(text[:REASON_LENGTH])


def write(messages: Iterable[Message], kinds: Mapping[str, type[Record]], store: Store) -> tuple[int, list[Dead]]:
    """Write what can be written; return how many records changed, and the rest."""
    written = 0
    dead: list[Dead] = []
    versions: dict[str, Versions] = {topic: {} for topic in kinds}
    for message in messages:
        versions[message.topic].setdefault(message.key, []).append(message)
    for topic, left in versions.items():
        while left:  # a version that the store refuses makes way for the one before it
            changed, refused = _upsert(kinds[topic], left, dead, store)
            written += changed
            left = {key: left[key] for key in refused if left[key]}
    return written, dead


def _upsert(kind: type[Record], versions: Versions, dead: list[Dead], store: Store) -> tuple[int, list[bytes | None]]:
    """Write one version of each key, and take it away; return how many changed, and the keys that the store refuses.

    Each record is decoded as the store asks for it: a batch of them would take ten times the memory of its messages.
    """
    taken: dict[str, Message] = {}
    revs: dict[str, int] = {}

    def latest() -> Iterator[Record]:
        for of_key in versions.values():
            if entry := _take_latest(kind, of_key, dead):
                message, (key, rev, record) = entry
                taken[key] = message
                if record:
                    yield record
                else:
                    revs[key] = rev

    upserted = store.upsert(latest())
    deleted = store.delete(kind, revs)
    refused = {**upserted.refused, **deleted.refused}
    dead += [Dead(taken[key], _reason(reason), "Refused") for key, reason in refused.items()]
    return upserted.written + deleted.written, [taken[key].key for key in refused]


def _take_latest(kind: type[Record], versions: list[Message], dead: list[Dead]) -> Entry | None:
    """Take away the message of the highest revision, of equal ones the first, and those that are no records."""
    entries = []
    for message in versions:
        try:
            entries.append(Entry(message, decode(kind, message)))
        except RecordError as error:
            dead.append(Dead(message, _reason(str(error)), "RecordError"))
    latest = max(entries, key=lambda entry: entry.decoded.rev, default=None)
    versions[:] = [entry.message for entry in entries if entry is not latest]
    return latest
