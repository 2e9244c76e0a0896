"""The topic of the runs: which were sent, which one is in force, and which one the follower is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import closing
from types import TracebackType
from typing import Self

from core.bus import Bus, Message, Offsets
from core.names import CURRENT, Names, cloud_event
from core.records import PublishedRun, Run, RunInForce, next_rev
from topics.fold import changes, update


class RunsTopic:
    """What the topic says, as far as it was read.

    Parameters
    ----------
    bus : Bus
        With the topic.
    names : Names
    """

    def __init__(self, bus: Bus, names: Names) -> None:
        self.runs: dict[str, PublishedRun] = {}
        self.in_force: RunInForce | None = None
        self.rev = 0
        """The highest."""
        self._bus, self._names = bus, names
        self._consumer = bus.consumer([names.runs])
        while not self._consumer.at_end():
            self.refresh(1.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._consumer.close()

    def refresh(self, seconds: float = 0.0) -> None:
        """Read on; wait so long for something new."""
        self._take(self._consumer.poll(seconds))

    def request(self, run: Run) -> None:
        """Ask the follower to put a run in force."""
        known = self.runs.get(run.run_id) or published(run)
        asked = known.model_copy(update={"requested": True, "refused": ""})
        self.rev = next_rev(self.rev)
        with closing(self._bus.producer()) as producer:
            headers = cloud_event(PublishedRun.__name__, run.run_id, self.rev, run.feature_set)
            producer.send(self._names.runs, run.run_id.encode(), asked.to_json(), headers)
            producer.flush()
        self.runs[run.run_id] = asked

    def requested(self) -> list[PublishedRun]:
        """Return the runs that the follower is asked for, the latest request last."""
        return [run for run in self.runs.values() if run.requested]

    def is_in_force(self, run_id: str) -> bool:
        """Return whether a run was sent in full, and is the current one."""
        known = self.runs.get(run_id)
        return bool(known and known.published and self.in_force and self.in_force.run_id == run_id)

    def _take(self, messages: Iterable[Message]) -> None:
        for message in messages:
            if message.key == CURRENT.encode():
                for current in changes([message], RunInForce):
                    self.in_force, self.rev = current.value, max(self.rev, current.rev)
            else:
                for run in changes([message], PublishedRun):
                    self.runs.pop(run.key, None)  # the last word comes last
                    update(self.runs, run)
                    self.rev = max(self.rev, run.rev)


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
