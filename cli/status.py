"""The state of everything, in one look."""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from clustering.runs import latest_run, run_in_force
from core.bus import Bus, Offsets, behind
from core.config import Config
from core.names import Names, bare_url
from core.records import Failure, Run, Track
from core.store import Store
from etl.dead_letters import dead_letters

COUNTED = 10_000
"""Dead letters are not counted beyond: each must be read for it."""


@dataclass(frozen=True, slots=True)
class Lag:
    """What a group has not committed yet of a topic."""

    group: str
    topic: str
    messages: int
    """Those that compaction removed are counted too."""
    oldest_seconds: float | None
    """Since the first of them was sent, of the loader alone: each look takes a moment; None where there is none."""


def status(config: Config, *, store: Store, bus: Bus) -> dict[str, Any]:
    """Return counts, lag, failures, the runs and the size; writes nothing."""
    names = Names(config.topics.prefix)
    latest, in_force = latest_run(store), run_in_force(store)
    lags = lags_of_groups(bus, names)
    with closing(dead_letters(config, bus=bus)) as letters:
        n_letters = sum(1 for _ in islice(letters, COUNTED))
    return {
        "store": bare_url(config.store.url),
        "bus": bare_url(config.bus.url),
        "tracks": store.count(Track),
        "tracks_of_this_feature_set": store.count(Track, {"feature_set": config.feature_set}),
        "failures": store.count(Failure),
        "not_loaded_yet": sum(lag.messages for lag in lags if lag.group == names.load_group),
        "dead_letters": n_letters,
        "dead_letters_counted_up_to": COUNTED,
        "runs": store.count(Run, {"complete": True}),
        "latest_run": latest and latest.run_id,
        "run_in_force": in_force and in_force.run_id,
        "clusters_in_force": len(in_force.clusters) if in_force else 0,
        "store_bytes": store.size(),
        "bus_bytes": bus.size(),
        "lag": [asdict(lag) for lag in lags],
    }


def lags_of_groups(bus: Bus, names: Names) -> list[Lag]:
    """Return the lag of the loader, and of each group that has read a topic of ours."""
    loaded, there = {names.tracks, names.failed}, bus.topics()
    topics = [topic for topic in there if topic in loaded | {names.runs} or names.cluster_of(topic)]
    ends = bus.ends(topics)
    groups = {names.load_group: bus.committed(names.load_group, topics)} | bus.groups(names.prefix, topics)
    found = []
    for group, committed in groups.items():
        read = {topic for topic, _ in committed} | (loaded if group == names.load_group else set())
        of_group = {at: end for at, end in ends.items() if at.topic in read}
        ages = _ages(bus, committed, of_group) if group == names.load_group else {}
        found += [
            Lag(group, topic, messages, ages.get(topic)) for topic, messages in behind(committed, of_group).items()
        ]
    return found


def _ages(bus: Bus, committed: Offsets, ends: Offsets) -> dict[str, float]:
    """Return the seconds since the first message that is not committed was sent, topic by topic."""
    waiting = {at: committed.get(at, 0) for at, end in ends.items() if committed.get(at, 0) < end}
    now, sent = time.time(), defaultdict[str, list[float]](list)
    for at, message in bus.first(waiting).items():
        sent[at.topic].append(message.timestamp / 1000)
    return {topic: round(max(0.0, now - min(times)), 3) for topic, times in sent.items()}
