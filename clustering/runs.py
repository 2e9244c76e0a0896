"""Stored runs: the latest, the one in force, and their ids."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from core.bus import Bus, read_to_end
from core.errors import ConfigError, MurmurError, RecordError
from core.names import CURRENT, REQUESTED, Names, digest
from core.records import Assignment, PublishedRun, Run, RunInForce
from core.store import Document, Store

STAMP = "%Y%m%dT%H%M%S"
SHOWN = 5


def latest_run(store: Store) -> Run | None:
    """Return the latest run whose assignments are all written, None if there is none."""
    run_ids = run_ids_of(store, complete=True)
    return store.get(Run, run_ids[-1]) if run_ids else None


def run_in_force(store: Store) -> Run | None:
    """Return the run that was published last, None if none was."""
    current = store.get(RunInForce, RunInForce.current)
    return store.get(Run, current.run_id) if current else None


def require_run_in_force(store: Store) -> Run:
    """Return the run that was published last; raise `ConfigError` if none was."""
    run = run_in_force(store)
    if run is None:
        todo = "`murmur publish`" if latest_run(store) else "`murmur run AUDIO_DIR`"
        raise ConfigError(f"{store.url}: no clusters are published yet; run {todo} first")
    return run


def require_run(store: Store, run_id: str) -> Run:
    """Return a complete run; raise `ConfigError`, which names the latest ones, if there is none of this id."""
    run = store.get(Run, run_id)
    if run is None or not run.complete:
        known = run_ids_of(store, complete=True)
        if not known:
            raise ConfigError(f"{store.url}: no run yet; run `murmur run AUDIO_DIR` first")
        more = f" and {len(known) - SHOWN} older ones" if len(known) > SHOWN else ""
        raise ConfigError(f"no run is named {run_id!r}; there are {', '.join(known[: -SHOWN - 1 : -1])}{more}")
    return run


def require_assignments(store: Store, run: Run, fields: Sequence[str]) -> dict[str, Document]:
    """Return what a run says of each track, by `track_id`; raise `MurmurError` if its assignments are not there."""
    found = store.scan(Assignment, fields=("track_id", *fields), prefix=f"{run.run_id}/")
    assigned = {one["track_id"]: one for one in found}
    if not assigned:
        raise MurmurError(f"{store.url}: {run.run_id} has no assignments; run `murmur publish` first")
    return assigned


def run_ids_of(store: Store, *, complete: bool) -> list[str]:
    """Return the ids of the complete or of the interrupted runs, oldest first."""
    return [run["run_id"] for run in store.scan(Run, fields=["run_id"], where={"complete": complete})]


def runs_on(bus: Bus, names: Names) -> Iterator[PublishedRun]:
    """Yield what the runs topic says of each run, former words included."""
    is_there = bus.size() != 0 and names.runs in bus.topics()  # a file that is not there is not to be made by a look
    for message in read_to_end(bus, [names.runs]) if is_there else ():
        if message.value is not None and message.key not in (CURRENT.encode(), REQUESTED.encode()):
            with suppress(RecordError):  # `publish` warns of it
                yield PublishedRun.from_json(message.value)


def require_published_runs(store: Store, bus: Bus, names: Names) -> None:
    """Raise `MurmurError`, which names both, if the bus knows a later run than the store.

    Then the store is an older backup, or a new one: what it says of clusters and tracks is the past.
    """
    published = max((run.run_id for run in runs_on(bus, names)), default="")
    if not published:
        return
    stored = max(run_ids_of(store, complete=True), default="")
    if published > stored:
        latest = f"the latest run of {store.url} is {stored}" if stored else f"{store.url} has no run"
        raise MurmurError(
            f"{bus.url} knows {published}, {latest}: an older backup? `murmur restore` takes from the bus what is "
            "missing; `murmur cluster --fresh` begins anew without it"
        )


def cluster_ids_on(bus: Bus, names: Names) -> set[str]:
    """Return the ids of clusters that have a topic, or had members in a run on the runs topic."""
    ids = {cluster_id for topic in bus.topics() if (cluster_id := names.cluster_of(topic))}
    for run in runs_on(bus, names):
        ids.update(run.sizes)
    return {cluster_id for cluster_id in ids if re.fullmatch(r"c\d+", cluster_id)}


def next_run_id(store: Store, bus: Bus, names: Names, content: str) -> tuple[str, datetime]:
    """Return a new id, which sorts after every one that the store or the bus knows, and the time in it.

    Parameters
    ----------
    store, bus, names
    content : str
        What sets the run apart from one that another process begins in the same second.
    """
    known = {run["run_id"] for run in store.scan(Run, fields=["run_id"])} | {run.run_id for run in runs_on(bus, names)}
    stamps = [found[1] for run_id in known if (found := re.match(r"run-(\d{8}T\d{6})-", run_id))]
    now = datetime.now(UTC)
    if stamps:
        now = max(now, datetime.strptime(max(stamps), STAMP).replace(tzinfo=UTC) + timedelta(seconds=1))
    return f"run-{now:{STAMP}}-{digest(f'{now} {content}'.encode())[:6]}", now


def purge_runs(store: Store, keep_runs: int) -> None:
    """Remove the assignments of all but the last `keep_runs` complete runs and the one in force.

    The runs themselves stay, since each can assign anew, and no cluster id of theirs may be given again;
    but of an interrupted run older than those that are kept nothing stays.
    """
    complete, current = run_ids_of(store, complete=True), store.get(RunInForce, RunInForce.current)
    oldest = complete[-keep_runs:][0]
    for run_id in complete:
        if run_id < oldest and not (current and current.run_id == run_id):
            store.purge(Assignment, f"{run_id}/")
    for run_id in run_ids_of(store, complete=False):
        if run_id < oldest:
            store.purge(Assignment, f"{run_id}/")
            store.purge(Run, run_id)
