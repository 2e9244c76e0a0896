"""The topic of the runs: which were sent, which one is in force, and which one the follower is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing

from core.bus import Bus, Message, Offsets
from core.names import CURRENT, REQUESTED, Names, cloud_event
from core.records import PublishedRun, Run, RunInForce, RunRequest, Value, next_rev
from topics.fold import Latest


class RunsTopic:
    """What the topic said when it was last refreshed.

    Parameters
    ----------
    bus : Bus
        With the topic.
    names : Names
    until : callable, optional
        As `core.patience.patience` takes it.
    """

    def __init__(self, bus: Bus, names: Names, until: Callable[[], bool] | None = None) -> None:
        self._bus, self._topic = bus, names.runs
        self._latest: Latest[Value] = Latest(bus, names.runs, _kind, until)
        self.refresh()

    @property
    def runs(self) -> dict[str, PublishedRun]:
        """By `run_id`; the one that was written last is the last."""
        return {key: run for key, run in self._latest.values.items() if isinstance(run, PublishedRun)}

    @property
    def in_force(self) -> RunInForce | None:
        """The run in force; None before the first is."""
        current = self._latest.values.get(CURRENT)
        return current if isinstance(current, RunInForce) else None

    @property
    def rev(self) -> int:
        """The highest that was read."""
        return self._latest.rev

    def refresh(self) -> None:
        """Read on to the end there is now; a broken connection is waited for."""
        self._latest.refresh()

    @property
    def request(self) -> RunRequest | None:
        """What the follower is asked for, and has not answered."""
        found = self._latest.values.get(REQUESTED)
        answered = self.in_force.answered if self.in_force else 0
        return found if isinstance(found, RunRequest) and found.rev > answered else None

    def is_in_force(self, run_id: str) -> bool:
        """Return whether a run was sent in full, and is the current one."""
        known = self.runs.get(run_id)
        return bool(known and known.published and self.in_force and self.in_force.run_id == run_id)

    def ask(self, run: Run) -> RunRequest:
        """Ask the follower to put a run in force, in the place of what else it was asked for."""
        asked = RunRequest(run_id=run.run_id, rev=next_rev(self.rev))
        headers = cloud_event(RunRequest.__name__, REQUESTED, asked.rev, run.feature_set)
        with closing(self._bus.producer()) as producer:
            producer.send(self._topic, REQUESTED.encode(), asked.to_json(), headers)
            producer.flush()
        self.refresh()
        return asked

    def close(self) -> None:
        """Close the connection."""
        self._latest.close()


def published(run: Run, sizes: Mapping[str, int] | None = None, ends: Offsets | None = None) -> PublishedRun:
    """Return what the topic says of a run: before its changes are sent, or with `sizes` and `ends` after that.

    Parameters
    ----------
    run : Run
    sizes : mapping of str to int, optional
        Cluster id → members.
    ends : Offsets, optional
        Up to where the cluster topics must be read for a consistent view.
    """
    planned = {cluster.cluster_id: cluster.size for cluster in run.clusters}
    return PublishedRun(
        **run.model_dump(
            include={"run_id", "created_at", "engine", "feature_set", "n_clusters", "n_tracks", "metrics"}
        ),
        **run.lineage.model_dump(include={"former", "births", "deaths", "successors"}),
        descriptions={one.cluster_id: one.description for one in run.clusters if one.description},
        sizes=planned if sizes is None else {**dict.fromkeys(planned, 0), **sizes},
        published=ends is not None,
        offsets=offsets_by_topic(ends or {}),
    )


def offsets_by_topic(offsets: Offsets) -> dict[str, dict[str, int]]:
    """Return offsets as the topic has them: topic → partition → offset."""
    found: dict[str, dict[str, int]] = {}
    for (topic, partition), offset in sorted(offsets.items()):
        found.setdefault(topic, {})[str(partition)] = offset
    return found


def _kind(message: Message) -> type[Value]:
    kinds: dict[bytes | None, type[Value]] = {CURRENT.encode(): RunInForce, REQUESTED.encode(): RunRequest}
    return kinds.get(message.key, PublishedRun)
