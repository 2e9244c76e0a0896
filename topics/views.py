"""A cluster as its subscribers have it: its members, kept up to date, and what became of it."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from core.bus import Bus, Offsets, open_bus
from core.names import UNCLUSTERED, Names
from core.records import Member, PublishedRun
from topics.fold import Latest
from topics.news import News, require_topic
from topics.runs import RunsTopic


def view(url: str, cluster: str, prefix: str = "") -> View:
    """Return the members of a cluster as they are now, to be kept up to date with `View.refresh`.

    Parameters
    ----------
    url : str
        Of the bus: ``kafka://host:9092`` or ``sqlite:///murmur.db``, as `core.open_bus` takes it.
    cluster : str
        Its id, such as ``c01``, or ``unclustered``.
    prefix : str
        What the installation puts before its topics (`topics.prefix`).

    Raises
    ------
    ConfigError
        If there is no such cluster; the text lists those there are. If the URL is malformed, or its file missing.
    BackendError
        If the bus cannot be reached.
    """
    with ExitStack() as undo:
        bus = open_bus(url, create=False)
        undo.callback(bus.close)
        found = View(bus, Names(prefix), cluster)
        undo.pop_all()
    return found


class View(Mapping[str, Member]):
    """The members of one cluster by `track_id`, as they were when it was last refreshed; `view` opens one.

    It is a mapping to read, and a context manager that closes its connection. It may be read in other threads than
    the one that refreshes it: `keys`, `values` and `items` are of one moment, and stay so after a refresh.
    """

    def __init__(self, bus: Bus, names: Names, cluster_id: str) -> None:
        self._bus = bus
        self._cluster_id = cluster_id
        self._topic = require_topic(bus, names, cluster_id)
        self._runs = RunsTopic(bus, names)
        self._latest = Latest(bus, self._topic, lambda _: Member)
        self._members: Mapping[str, Member] = {}
        self._read: tuple[Offsets, int] = ({}, 0)
        self._run: PublishedRun | None = None
        self.refresh()

    @property
    def run(self) -> PublishedRun | None:
        """The run in force, all of which the view has, and perhaps a part of the next, which is being sent.

        None before the first is in force, and while the topic, deleted and made anew, lacks what the run names.
        """
        return self._run

    @property
    def has_ended(self) -> bool:
        """Whether the cluster was in a run, and is no longer in the one in force; `unclustered` never ends.

        A cluster that is being born is in a later run, which is not published yet.
        """
        run = self._run
        if run is None or self._cluster_id == UNCLUSTERED or self._cluster_id in run.sizes:
            return False
        sent = (one for one in self._runs.runs.values() if one.published or one.run_id < run.run_id)
        return any(self._cluster_id in one.sizes for one in sent)

    @property
    def successors(self) -> list[str]:
        """The clusters that have now what this one had when it ended, the most of it first.

        None while it lives; none where all its members left the library, or the run in force is from before its birth.
        """
        return _heirs(self._cluster_id, self._lineage()) if self._run else []

    def refresh(self) -> list[News]:
        """Read on to the end there is now; return what is new of each track that joined, changed or left.

        A broken connection is waited for, two minutes at most. If the topic was deleted and made anew, the view
        begins again, empty.

        Raises
        ------
        BackendError
            If the bus fails; then the view stays as it was, and the next refresh goes on from there.
        """
        former, latest = self._members, self._latest
        self._runs.refresh()  # first: what the run in force names is below the end of what is read then
        latest.refresh()
        self._run = self._agreed()
        if self._read == (latest.ends, latest.rev):
            return []
        self._members, self._read = latest.values, (latest.ends, latest.rev)
        return _differences(former, self._members)

    def close(self) -> None:
        """Close the connection; the members stay readable."""
        self._bus.close()

    def __getitem__(self, track_id: str) -> Member:
        return self._members[track_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def keys(self) -> KeysView[str]:
        """Return the `track_id`s."""
        return self._members.keys()

    def values(self) -> ValuesView[Member]:
        """Return the members."""
        return self._members.values()

    def items(self) -> ItemsView[str, Member]:
        """Return the members, each with its `track_id`."""
        return self._members.items()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _agreed(self) -> PublishedRun | None:
        """Return the run in force if the topic was read as far as that names."""
        current = self._runs.in_force
        run = self._runs.runs.get(current.run_id) if current else None
        if run is None:
            return None
        offsets = run.offsets.get(self._topic, {})
        there = all(end >= offsets.get(str(at.partition), 0) for at, end in self._latest.ends.items())
        return run if there else None

    def _lineage(self) -> list[PublishedRun]:
        """Return the run in force and those that it goes back to, the earliest first."""
        line: list[PublishedRun] = []
        left, run = self._runs.runs, self._run
        while run:
            line.append(run)
            run = left.pop(run.former or "", None)
        return line[::-1]


def _differences(former: Mapping[str, Member], now: Mapping[str, Member]) -> list[News]:
    changed = (
        one
        for one in sorted(former.keys() | now.keys())
        if former.get(one) is not now.get(one) and former.get(one) != now.get(one)
    )
    return [News(track_id=one, member=now.get(one)) for one in changed]


def _heirs(cluster_id: str, lineage: list[PublishedRun]) -> list[str]:
    heirs = [cluster_id]
    for run in lineage:
        heirs = list(dict.fromkeys(heir for one in heirs for heir in run.successors.get(one, [one])))
    return [heir for heir in heirs if heir != cluster_id]
