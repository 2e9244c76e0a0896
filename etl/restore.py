"""The job `restore`: a store that is older than the bus takes back what was sent since its backup."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from itertools import islice

from core.bus import Bus, Message, read_to_end
from core.config import Config
from core.jobs import Progress, Report, Watch, ignore
from core.names import CURRENT, Names
from core.records import Failure, Record, Run, RunInForce, Track
from core.store import Store
from etl.load import write

log = logging.getLogger(__name__)


def run(config: Config, *, store: Store, bus: Bus, progress: Watch = ignore) -> Report:
    """Bring a store up to what the bus has.

    Reads from their beginning the topics of tracks, failures and runs, whatever any group has committed, and writes the
    latest version of each key where it is newer than what is stored; a tombstone deletes. Writes nothing to the bus,
    and commits nothing. Run twice, it writes nothing the second time; stopped anywhere, the next one does it all.

    What was never sent does not come back: runs that were not published, and assignments, which `publish` makes anew.
    Nor is there a word of what was deleted so long ago that its tombstone is gone.

    Parameters
    ----------
    config : Config
        Sections `load` and `topics`.
    store, bus
    progress : callable

    Returns
    -------
    Report
        `read` counts messages, `unchanged` those no newer than what is stored, `failed` those that are no records or
        that the store refuses, each of which the log names.

    Raises
    ------
    BackendError
        If the store or the bus fails.
    """
    started = time.monotonic()
    names = Names(config.topics.prefix)
    kinds: dict[str, type[Record]] = {
        names.tracks: Track, names.failed: Failure, names.spaces: Run, names.runs: RunInForce
    }  # fmt: skip
    there = set(bus.topics())
    read = written = failed = 0
    for topic in (topic for topic in kinds if topic in there):
        messages = _records_on(bus, topic, names)
        while batch := list(islice(messages, config.load.batch)):
            changed, dead = write(batch, kinds, store)
            for message, reason, _ in dead:
                log.warning(
                    "%s, partition %d, offset %d: skipped: %s", topic, message.partition, message.offset, reason
                )
            read, written, failed = read + len(batch), written + changed, failed + len(dead)
            progress(Progress("restore", read, None, failed))
    progress(Progress("restore", read, read, failed))
    seconds = time.monotonic() - started
    return Report(read=read, written=written, unchanged=read - written - failed, failed=failed, seconds=seconds)


def _records_on(bus: Bus, topic: str, names: Names) -> Iterator[Message]:
    """Yield the messages of a topic that are records of a store: of the runs, only the name of the one in force."""
    for message in read_to_end(bus, [topic]):
        if topic != names.runs or message.key == CURRENT.encode():
            yield message
