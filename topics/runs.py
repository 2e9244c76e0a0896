"""The topic of the runs: which were sent, which one is in force, and which one the follower is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing

from core.bus import Bus, Message, Offsets
from core.names import CURRENT, Names, cloud_event
from core.records import PublishedRun, Run, RunInForce, Value, next_rev
from topics.fold import Latest


class RunsTopic:
    """What the topic said when it was last refreshed.

    Parameters
    ----------
    bus : Bus
        With the topic.
    names : Names
    """

    def __init__(self, bus: Bus, names: Names) -> None:
        self._bus, self._topic = bus, names.runs
        self._latest: Latest[Value] = Latest(bus, names.runs, _kind)
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
        """Read on to the end there is now; a broken connection is waited for, two minutes at most."""
        self._latest.refresh()

    def requested(self) -> list[PublishedRun]:
        """Return the runs that the follower is asked for, the latest request last."""
        return [run for run in self.runs.values() if run.requested]

    def is_in_force(self, run_id: str) -> bool:
        """Return whether a run was sent in full, and is the current one."""
        known = self.runs.get(run_id)
        return bool(known and known.published and self.in_force and self.in_force.run_id == run_id)

    def request(self, run: Run) -> None:
        """Ask the follower to put a run in force."""
        known = self.runs.get(run.run_id) or published(run)
        asked = known.model_copy(update={"requested": True, "refused": ""})
        headers = cloud_event(PublishedRun.__name__, run.run_id, next_rev(self.rev), run.feature_set)
        with closing(self._bus.producer()) as producer:
            producer.send(self._topic, run.run_id.encode(), asked.to_json(), headers)
            producer.flush()
        self.refresh()

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
    return RunInForce if message.key == CURRENT.encode() else PublishedRun
