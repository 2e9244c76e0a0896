"""Reading a cluster topic: its members now, what is new to a group of consumers, and what comes after that."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing

from core.bus import Bus, Consumer, Message, open_bus, read_to_end
from core.errors import ConfigError
from core.metrics import count_batch, lag_watch
from core.names import Names
from core.patience import patience
from core.records import Member, Value
from topics.fold import Change, changes, fold, update

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
BATCH = 500


class News(Value):
    """What is new of one track."""

    track_id: str
    member: Member | None
    """As it joined or changed; None: it left the cluster."""


def members(bus: Bus, names: Names, cluster_id: str) -> dict[str, Member]:
    """Return the members of a cluster as its topic has them now.

    Returns
    -------
    dict of str to Member
        By `track_id`. A value that is no `Member` is left out with a warning.

    Raises
    ------
    ConfigError
        If there is no such cluster; the text lists those there are.
    """
    return fold(read_to_end(bus, [require_topic(bus, names, cluster_id)]), Member)


def subscribe(
    url: str, cluster: str, group: str | None = None, *, follow: bool = False, batch: int = BATCH, prefix: str = ""
) -> Generator[list[News], None, None]:
    """Yield what is new of a cluster to a group, batch after batch; without a group, its members.

    A batch is committed when the next one is asked for: what your program had not finished when it
    died comes again, so that each change comes at least once. A group that is new gets the whole
    topic; it ends at the end that is there when reading begins, or follows. Another member of the
    group gets what this one does not. Without a group the members there are now come first, the
    most typical at the top.

    A broken connection is waited for, two minutes at most, or without end when following.

    Parameters
    ----------
    url : str
        Of the bus: ``kafka://host:9092`` or ``sqlite:///murmur.db``, as `core.open_bus` takes it.
    cluster : str
        Its id, such as ``c01``, or ``unclustered``.
    group : str, optional
        The prefix is put before it.
    follow : bool
        Whether to wait for more at the end, until the caller asks no more.
    batch : int
        How many changes a batch has at most.
    prefix : str
        What the installation puts before its topics (`topics.prefix`).

    Yields
    ------
    list of News
        One or more, in the order of the topic; of a track that left before the group read that it
        had joined, perhaps only that it left.

    Raises
    ------
    ConfigError
        If there is no such cluster; the text lists those there are. If the URL is malformed, its file missing,
        or `batch` below 1.
    BackendError
        If the bus cannot be reached, or fails.
    """
    if batch < 1:
        raise ConfigError(f"batch: {batch} is no size of a batch; give 1 or more")
    with closing(open_bus(url, create=False)) as bus:
        yield from batches(bus, Names(prefix), cluster, group, (lambda: False) if follow else None, batch)


def batches(
    bus: Bus,
    names: Names,
    cluster_id: str,
    group: str | None,
    until: Callable[[], bool] | None = None,
    size: int = BATCH,
) -> Generator[list[News], None, None]:
    """Yield what `subscribe` does, of an open bus; follow it until something is true, after the batch at hand.

    Raises
    ------
    ConfigError
        If there is no such cluster; the text lists those there are. Raised at the call.
    """
    topic = require_topic(bus, names, cluster_id)
    return _batches(bus, topic, group and f"{names.prefix}{group}", until, size)


def require_topic(bus: Bus, names: Names, cluster_id: str) -> str:
    """Return the topic of a cluster that exists.

    Raises
    ------
    ConfigError
        If it does not; the text lists those that do.
    """
    there = sorted(found for topic in bus.topics() if (found := names.cluster_of(topic)))
    if cluster_id in there:
        return names.cluster(cluster_id)
    known = f"there are {', '.join(there)}" if there else "nothing is published yet: run `murmur publish` first"
    raise ConfigError(f"no cluster {cluster_id!r} on {bus.url}; {known}")


def _batches(
    bus: Bus, topic: str, group: str | None, until: Callable[[], bool] | None, size: int
) -> Generator[list[News], None, None]:
    with closing(bus.consumer([topic], group=group)) as consumer:
        look = lag_watch(bus, group, [topic]) if group else None
        if group is None:
            members: dict[str, Member] = {}
            for polled in _polled(consumer, lambda: bool(until and until()) or consumer.at_end(), until, look, BATCH):
                for change in polled:
                    update(members, change)
            if not (until and until()):
                joined = _joined(members.values())
                yield from (joined[first : first + size] for first in range(0, len(joined), size))
        for polled in _polled(consumer, until or consumer.at_end, until, look, size):
            if batch := [News(track_id=change.key, member=change.value) for change in polled]:
                yield batch


def _polled(
    consumer: Consumer,
    has_ended: Callable[[], bool],
    until: Callable[[], bool] | None,
    look_at_lag: Callable[[], None] | None,
    size: int,
) -> Iterator[Iterator[Change[Member]]]:
    """Yield what each poll brings, and commit it when the caller comes back for more."""
    patiently = patience(consumer, until)

    def read() -> list[Message] | None:
        if has_ended():
            return None
        if look_at_lag:
            look_at_lag()
        return consumer.poll(POLL_SECONDS, size)

    while (messages := patiently(read)) is not None:
        started = time.monotonic()
        yield changes(messages, Member)
        patiently(consumer.commit)
        if messages:
            seconds = time.monotonic() - started
            log.info("read %d messages (%.2f s)", len(messages), seconds)
            count_batch(len(messages), 0, 0, seconds)


def _joined(members: Iterable[Member]) -> list[News]:
    ordered = sorted(members, key=lambda member: (-member.score, member.track_id))
    return [News(track_id=member.track_id, member=member) for member in ordered]
