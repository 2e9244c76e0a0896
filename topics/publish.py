"""The job `publish`: the cluster topics are made to say what a run says, by sending only what differs."""

from __future__ import annotations

import logging
import time
from collections import Counter

from clustering.runs import latest_run, require_run
from core.bus import Bus
from core.config import Config
from core.errors import MurmurError
from core.jobs import Report, Watch, ignore
from core.records import Run
from core.store import Store
from topics.publisher import opened_publisher

log = logging.getLogger(__name__)


def run(config: Config, *, store: Store, bus: Bus, run_id: str | None = None, progress: Watch = ignore) -> Report:
    """Send what a complete run changes, and put that run in force.

    Reads the run, its assignments and the tracks' metadata from the store, the ledger and the runs
    from the bus. Tracks that the run has not assigned, or not as they are now, are assigned first.
    Writes these assignments, the cluster topics, the ledger, the runs topic, and at the end the store's
    mirror of the run in force. Run twice, it sends nothing the second time; run after a job that
    died, it sends what is missing; a job that is still alive elsewhere is fenced, and stops.

    Parameters
    ----------
    config : Config
    store, bus
    run_id : str, optional
        Default: the latest.
    progress : callable

    Returns
    -------
    Report
        `read` counts tracks in clusters, `unchanged` those that the topics had already, `sent` messages.

    Raises
    ------
    ConfigError
        If there is no such run.
    MurmurError
        If no run is complete, or the store cannot make up for lost assignments of the run.
    FencedError
        If another publisher has taken over.
    """
    started = time.monotonic()
    chosen = latest_or_named(store, run_id)
    with opened_publisher(config, store=store, bus=bus) as publisher:
        tally = publisher.publish(chosen, progress)
    tell(chosen, publisher.sent, tally)
    return Report(
        read=len(publisher.ledger),
        written=publisher.written,
        unchanged=tally["stayed"],
        sent=publisher.sent,
        seconds=time.monotonic() - started,
    )


def latest_or_named(store: Store, run_id: str | None) -> Run:
    """Return a complete run, by default the latest; raise where there is none."""
    if run_id:
        return require_run(store, run_id)
    latest = latest_run(store)
    if latest is None:
        raise MurmurError(f"{store.url} holds no complete run; run `murmur cluster` first")
    return latest


def tell(run: Run, sent: int, tally: Counter[str]) -> None:
    """Say what was sent of a run."""
    if not sent:
        log.info("run %s is published and in force: nothing to send", run.run_id)
        return
    counts = ", ".join(f"{tally[what]} {what}" for what in ("joined", "moved", "changed", "left"))
    log.info("run %s is in force: %s; %d messages sent", run.run_id, counts, sent)
