"""The whole line in one process: extract → load → cluster → publish."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clustering.overview import Overview, overview
from core.jobs import Report, Watch, ignore
from core.names import Names

if TYPE_CHECKING:
    from core.bus import Bus
    from core.config import Config
    from core.store import Store
    from etl.extract import ExtractReport


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the jobs did, in their order, and the clusters in force after them."""

    extract: ExtractReport
    reports: dict[str, Report]
    clusters: list[Overview]


def run_all(
    config: Config, audio_dir: Path, metadata: Path | None, *, store: Store, bus: Bus, progress: Watch = ignore
) -> Outcome:
    """Run the four jobs one after the other.

    Reads the audio folder and the catalogue; writes what each job writes. Run twice, the second
    run computes, writes and sends nothing new.
    """
    from clustering import cluster
    from clustering.runs import require_published_runs
    from etl import extract, load
    from topics import publish

    cluster.check(config)  # hours of extraction should not end at blocks that are missing, nor at a store that is old
    require_published_runs(store, bus, Names(config.topics.prefix))
    extracted = extract.run(config, audio_dir, metadata=metadata, store=store, bus=bus, progress=progress)
    reports: dict[str, Report] = {
        "extract": extracted,
        "load": load.run(config, store=store, bus=bus, progress=progress),
        "cluster": cluster.run(config, store=store, bus=bus, progress=progress),
        "publish": publish.run(config, store=store, bus=bus, progress=progress),
    }
    return Outcome(extracted, reports, overview(store, Names(config.topics.prefix)))
