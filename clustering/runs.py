"""Stored runs: the latest, the one in force, and their ids."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from core.errors import ConfigError
from core.names import digest
from core.records import Assignment, Run, RunInForce
from core.store import Store

STAMP = "%Y%m%dT%H%M%S"


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


def run_ids_of(store: Store, *, complete: bool) -> list[str]:
    """Return the ids of the complete or of the interrupted runs, oldest first."""
    return [run["run_id"] for run in store.scan(Run, fields=["run_id"], where={"complete": complete})]


def next_run_id(store: Store, content: str) -> tuple[str, datetime]:
    """Return a new id, which sorts after every stored one, and the time in it.

    Parameters
    ----------
    store : Store
    content : str
        What sets the run apart from one that another process begins in the same second.
    """
    last = max((run["run_id"] for run in store.scan(Run, fields=["run_id"])), default="")
    now = datetime.now(UTC)
    if last:
        now = max(now, datetime.strptime(last.split("-")[1], STAMP).replace(tzinfo=UTC) + timedelta(seconds=1))
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
