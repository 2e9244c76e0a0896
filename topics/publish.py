"""The job `publish`: the cluster topics are made to say what a run says, by sending only what differs."""

from __future__ import annotations

import logging
import time
from collections import Counter
from contextlib import closing

from clustering.runs import latest_run, require_published_runs, require_run
from core.bus import Bus
from core.config import Config
from core.errors import FencedError, MurmurError
from core.jobs import Progress, Report, Watch, ignore
from core.names import Names
from core.records import Run
from core.store import Store
from topics.publisher import opened_publisher
from topics.runs import RunsTopic

POLL_SECONDS = 0.2
LOOK_SECONDS = 2.0
"""Between two looks whether the follower is alive."""

log = logging.getLogger(__name__)


def run(config: Config, *, store: Store, bus: Bus, run_id: str | None = None, progress: Watch = ignore) -> Report:
    """Send what a complete run changes, and put that run in force.

    Reads the run, its assignments and the tracks' metadata from the store, the ledger and the runs
    from the bus. Tracks that the run has not assigned, or not as they are now, are assigned first.
    Writes these assignments, the cluster topics, the ledger, the runs topic, and at the end the store's
    mirror of the run in force. Run twice, it sends nothing the second time; run after a job that
    died, it sends what is missing; a job that is still alive elsewhere is fenced, and stops. A follower that is
    alive is asked for all that instead, and waited for.

    Parameters
    ----------
    config : Config
    store, bus
    run_id : str, optional
        Default: the latest.
    progress : callable
        Where a follower does the work, told how long it takes.

    Returns
    -------
    Report
        `read` counts tracks in clusters, `unchanged` those that the topics had already, `sent` messages on
        cluster topics.

    Raises
    ------
    ConfigError
        If there is no such run.
    MurmurError
        If no run is complete, the bus knows a later one than the store, the store cannot make up for lost assignments
        of the run, or a follower that was asked for it was asked for another after that.
    FencedError
        If another publisher has taken over.
    """
    names = Names(config.topics.prefix)
    require_published_runs(store, bus, names)
    chosen, follow_group = latest_or_named(store, run_id), names.follow_group
    while True:
        if bus.has_members(follow_group) and (report := ask(config, chosen, store=store, bus=bus, progress=progress)):
            return report
        try:
            return publish_all(config, chosen, store=store, bus=bus, progress=progress)
        except FencedError:
            if not bus.has_members(follow_group):
                raise


def publish_all(config: Config, run: Run, *, store: Store, bus: Bus, progress: Watch) -> Report:
    """Do the work here; every other publisher is fenced."""
    started = time.monotonic()
    with opened_publisher(config, store=store, bus=bus) as publisher:
        tally = publisher.publish(run, progress)
    tell(run, publisher.sent, tally)
    return Report(
        read=tally.total() - tally["left"],
        written=publisher.written,
        unchanged=tally["stayed"],
        sent=publisher.sent,
        seconds=time.monotonic() - started,
    )


def ask(config: Config, run: Run, *, store: Store, bus: Bus, progress: Watch) -> Report | None:
    """Ask the follower to put a run in force, and wait until it has; None if it is gone before."""
    started = time.monotonic()
    names = Names(config.topics.prefix)
    with closing(RunsTopic(bus, names)) as topic:
        asked = topic.ask(run)
        looked = 0.0
        while topic.in_force is None or topic.in_force.answered < asked.rev:
            if time.monotonic() - looked > LOOK_SECONDS:
                if not bus.has_members(names.follow_group):
                    return None
                looked = time.monotonic()
                progress(Progress("seconds that `murmur publish --follow` takes:", round(looked - started), None))
            time.sleep(POLL_SECONDS)
            topic.refresh()
        if topic.in_force.refused:
            raise MurmurError(topic.in_force.refused)
        if not topic.is_in_force(run.run_id):
            raise MurmurError(f"{bus.url}: another run was asked for after {run.run_id}, and is in force instead")
        written = store.upsert([topic.in_force]).written
        answer = topic.runs[run.run_id]
    changed, members = Counter(answer.changes), sum(answer.sizes.values())
    sent = changed.total() + changed["moved"]
    tell(run, sent, changed)
    stayed = members - changed["joined"] - changed["moved"] - changed["changed"]
    return Report(read=members, written=written, unchanged=stayed, sent=sent, seconds=time.monotonic() - started)


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
