"""Reading a cluster topic: its members now, or what is new to a group of consumers."""

from __future__ import annotations

from collections.abc import Generator

from core.bus import Bus, read_to_end
from core.errors import ConfigError
from core.names import Names
from core.records import Member, Value
from topics.fold import changes, fold

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


def news(bus: Bus, names: Names, cluster_id: str, group: str) -> Generator[News, None, None]:
    """Yield what is new to a group, up to the end that is there when reading begins.

    A batch is committed when the caller has come back for more, so that what it has not finished
    is delivered again: each change at least once. A group that is new gets the whole topic. What
    another member of the group is reading meanwhile does not come here.

    Parameters
    ----------
    bus : Bus
    names : Names
    cluster_id : str
    group : str
        The topics' prefix is put before it.

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
    return _news(bus, topic, f"{names.prefix}{group}")


def _news(bus: Bus, topic: str, group: str) -> Generator[News, None, None]:
    consumer = bus.consumer([topic], group=group)
    try:
        while not consumer.at_end():
            for change in changes(consumer.poll(POLL_SECONDS), Member):
                yield News(track_id=change.key, member=change.value)
            consumer.commit()
    finally:
        consumer.close()


def _topic(bus: Bus, names: Names, cluster_id: str) -> str:
    there = sorted(found for topic in bus.topics() if (found := names.cluster_of(topic)))
    if cluster_id in there:
        return names.cluster(cluster_id)
    known = f"there are {', '.join(there)}" if there else "nothing is published yet: run `murmur publish` first"
    raise ConfigError(f"no cluster {cluster_id!r} on {bus.url}; {known}")
