"""Reading a cluster topic: its members now, what is new to a group of consumers, and what comes after that."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing

from core.bus import Bus, Consumer, Message, read_to_end
from core.errors import ConfigError
from core.metrics import count_batch, lag_watch
from core.names import Names
from core.patience import patience
from core.records import Member, Value
from topics.fold import Change, changes, fold, update

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2


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
    return fold(read_to_end(bus, [_topic(bus, names, cluster_id)]), Member)


def news(
    bus: Bus, names: Names, cluster_id: str, group: str | None, until: Callable[[], bool] | None = None
) -> Generator[News, None, None]:
    """Yield what is new to a group, up to the end that is there when reading begins; or follow the topic.

    A batch is committed when the caller has come back for more, so that what it has not finished
    is delivered again: each change at least once. A group that is new gets the whole topic. What
    another member of the group is reading meanwhile does not come here. Without a group the members
    there are now come first, the most typical at the top.

    A broken connection to the bus is waited for, two minutes at most.

    Parameters
    ----------
    bus : Bus
    names : Names
    cluster_id : str
    group : str, optional
        The topics' prefix is put before it.
    until : callable, optional
        Follow the topic until this is true, after the batch at hand; then a broken connection is
        waited for without end.

    Yields
    ------
    News
        Of one track after the other, in the order of the topic; of one that left before the group read
        that it had joined, perhaps only that it left.

    Raises
    ------
    ConfigError
        If there is no such cluster; the text lists those there are. Raised at the call.
    """
    topic = _topic(bus, names, cluster_id)
    return _news(bus, topic, group and f"{names.prefix}{group}", until)


def _news(bus: Bus, topic: str, group: str | None, until: Callable[[], bool] | None) -> Generator[News, None, None]:
    with closing(bus.consumer([topic], group=group)) as consumer:
        look = lag_watch(bus, group, [topic]) if group else None
        if group is None:
            members: dict[str, Member] = {}
            for batch in _batches(consumer, lambda: bool(until and until()) or consumer.at_end(), until, look):
                for change in batch:
                    update(members, change)
            if not (until and until()):
                yield from _joined(members.values())
        for batch in _batches(consumer, until or consumer.at_end, until, look):
            for change in batch:
                yield News(track_id=change.key, member=change.value)


def _batches(
    consumer: Consumer,
    has_ended: Callable[[], bool],
    until: Callable[[], bool] | None,
    look_at_lag: Callable[[], None] | None,
) -> Iterator[Iterator[Change[Member]]]:
    """Yield what each poll brings, and commit it when the caller comes back for more."""
    patiently = patience(consumer, until)

    def read() -> list[Message] | None:
        if has_ended():
            return None
        if look_at_lag:
            look_at_lag()
        return consumer.poll(POLL_SECONDS)

    while (messages := patiently(read)) is not None:
        started = time.monotonic()
        yield changes(messages, Member)
        patiently(consumer.commit)
        if messages:
            seconds = time.monotonic() - started
            log.info("read %d messages (%.2f s)", len(messages), seconds)
            count_batch(len(messages), 0, 0, seconds)


def _joined(members: Iterable[Member]) -> Iterator[News]:
    for member in sorted(members, key=lambda member: (-member.score, member.track_id)):
        yield News(track_id=member.track_id, member=member)


def _topic(bus: Bus, names: Names, cluster_id: str) -> str:
    there = sorted(found for topic in bus.topics() if (found := names.cluster_of(topic)))
    if cluster_id in there:
        return names.cluster(cluster_id)
    known = f"there are {', '.join(there)}" if there else "nothing is published yet: run `murmur publish` first"
    raise ConfigError(f"no cluster {cluster_id!r} on {bus.url}; {known}")
