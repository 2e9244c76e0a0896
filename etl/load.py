"""The job `load`: tracks and failures from the bus → the store."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from contextlib import closing
from typing import Any, NamedTuple

from core.bus import Bus, Message, Producer, lag
from core.config import Config
from core.errors import RecordError
from core.jobs import Progress, Report, Watch, ignore
from core.names import Names, utc_now
from core.records import Failure, Record, Track
from core.store import Store
from etl.messages import Decoded, create_topics, decode

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
"""How long a poll waits for messages before it is asked again whether the end is reached."""


class Entry(NamedTuple):
    """A message and what it says."""

    message: Message
    decoded: Decoded[Any]


class DeadLetter(NamedTuple):
    """A message that cannot be loaded, and why."""

    message: Message
    reason: str


def run(config: Config, *, store: Store, bus: Bus, progress: Watch = ignore) -> Report:
    """Load what is on the bus into the store.

    Reads the topics of tracks and failures from the group's committed offsets to the end there was at the start, and
    writes the latest version of each key; a tombstone deletes. A message that is no record, or that the store refuses,
    goes to the dead letters as it is, and the rest go on. The order is always: write, dead letters, flush, commit; so a
    run that is stopped anywhere is repeated from its last commit, and repeating changes nothing.

    Parameters
    ----------
    config : Config
        `load.batch`, and section `topics`.
    store, bus
        From the bus, into the store; dead letters go to the bus.
    progress : callable
        Told how many messages were read.

    Returns
    -------
    Report
        `written` counts records, `unchanged` messages older than what is stored, `failed` dead letters.

    Raises
    ------
    BackendError
        If the store or the bus fails; nothing of the batch at hand is committed.
    """
    started = time.monotonic()
    names = create_topics(bus, config)
    topics: dict[str, type[Record]] = {names.tracks: Track, names.failed: Failure}
    total = lag(bus, names.load_group, topics)
    read = written = failed = 0
    with closing(bus.producer()) as producer, closing(bus.consumer(topics, group=names.load_group)) as consumer:
        while not consumer.at_end():
            messages = consumer.poll(POLL_SECONDS, config.load.batch)
            changed, dead = _write(messages, topics, store)
            _bury(dead, names, producer)
            consumer.commit()
            read, written, failed = read + len(messages), written + changed, failed + len(dead)
            if messages:
                log.info("loaded %d messages: %d records written, %d dead letters", len(messages), changed, len(dead))
                progress(Progress("load", read, max(total, read), failed))
    if read:
        progress(Progress("load", read, read, failed))
    seconds = time.monotonic() - started
    return Report(
        read=read, written=written, unchanged=read - written - failed, failed=failed, sent=failed, seconds=seconds
    )


def _write(
    messages: Iterable[Message], kinds: Mapping[str, type[Record]], store: Store
) -> tuple[int, list[DeadLetter]]:
    """Write what can be written; return how many records changed, and the rest."""
    entries: dict[str, list[Entry]] = {topic: [] for topic in kinds}
    dead = []
    for message in messages:
        try:
            entries[message.topic].append(Entry(message, decode(kinds[message.topic], message)))
        except RecordError as error:
            dead.append(DeadLetter(message, str(error)))
    written = 0
    for topic, batch in entries.items():
        while batch:  # a version that the store refuses makes way for the one before it
            latest = _latest(batch)
            changed, refused = _upsert(kinds[topic], latest.values(), store)
            written += changed
            dead += [DeadLetter(latest[key].message, reason) for key, reason in refused.items()]
            batch = [one for one in batch if one.decoded.key in refused and one is not latest[one.decoded.key]]
    return written, dead


def _latest(entries: Iterable[Entry]) -> dict[str, Entry]:
    """Return the entry of the highest revision of each key; of equal ones the first."""
    latest: dict[str, Entry] = {}
    for entry in entries:
        held = latest.setdefault(entry.decoded.key, entry)
        if entry.decoded.rev > held.decoded.rev:
            latest[entry.decoded.key] = entry
    return latest


def _upsert(kind: type[Record], entries: Iterable[Entry], store: Store) -> tuple[int, dict[str, str]]:
    """Write one version of each key; return how many changed, and why the store refuses others."""
    decoded = [entry.decoded for entry in entries]
    written, refused = store.upsert([one.record for one in decoded if one.record])
    return written + store.delete(kind, {one.key: one.rev for one in decoded if not one.record}), refused


def _bury(dead: Iterable[DeadLetter], names: Names, producer: Producer) -> None:
    """Send messages to the dead letters, key, value and headers as they are, and the reason behind them."""
    for message, reason in dead:
        log.warning("%s[%d]@%d: dead letter: %s", message.topic, message.partition, message.offset, reason)
        why = {
            "dlq_reason": reason,
            "dlq_class": RecordError.__name__,
            "dlq_topic": message.topic,
            "dlq_partition": str(message.partition),
            "dlq_offset": str(message.offset),
            "dlq_first_seen": utc_now(),
        }
        headers = (*message.headers, *((name, text.encode("utf-8", "replace")) for name, text in why.items()))
        producer.send(names.dead_letters, message.key, message.value, headers)
    producer.flush()
