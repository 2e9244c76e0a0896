"""The state of everything, in one look."""

from __future__ import annotations

from typing import Any

from clustering.runs import latest_run, run_in_force
from core.bus import Bus, lag
from core.config import Config
from core.names import Names, bare_url
from core.records import Failure, Run, Track
from core.store import Store
from etl.dead_letters import dead_letters


def status(config: Config, *, store: Store, bus: Bus) -> dict[str, Any]:
    """Return counts, lag, failures, the runs and the size; writes nothing."""
    names = Names(config.topics.prefix)
    there = set(bus.topics())
    latest, in_force = latest_run(store), run_in_force(store)
    return {
        "store": bare_url(config.store.url),
        "bus": bare_url(config.bus.url),
        "tracks": store.count(Track),
        "tracks_of_this_feature_set": store.count(Track, {"feature_set": config.feature_set}),
        "failures": store.count(Failure),
        "not_loaded_yet": lag(bus, names.load_group, sorted({names.tracks, names.failed} & there)),
        "dead_letters": sum(1 for _ in dead_letters(config, bus=bus)),
        "runs": store.count(Run, {"complete": True}),
        "latest_run": latest and latest.run_id,
        "run_in_force": in_force and in_force.run_id,
        "clusters_in_force": len(in_force.clusters) if in_force else 0,
        "store_bytes": store.size(),
    }
