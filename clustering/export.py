"""The job `export assignments`: where the run in force put each track → one table for other programs."""

from __future__ import annotations

import time
from pathlib import Path

from clustering.runs import require_assignments, require_run_in_force
from core.config import Config
from core.files import check_table, replacing
from core.jobs import Progress, Report, Watch, ignore
from core.records import Track
from core.store import Document, Store

COLUMNS = ("track_id", "cluster_id", "score", "path", "title", "artist", "genre")


def run(_: Config, out: Path, *, store: Store, progress: Watch = ignore) -> Report:
    """Write a row for each track that the run in force assigned, in order of the `track_id`.

    Reads the assignments and the tracks, without features; writes beside `out`, and renames at the end: twice is the
    same as once. A track that is too far from every centre stands with the nearest one, as in `overview`; one that was
    deleted since is left out.

    Parameters
    ----------
    _ : Config
        Not needed: the run has its settings with it.
    out : Path
        ``.parquet``, or ``.csv`` in UTF-8, where a missing value is empty.
    store : Store
    progress : callable

    Raises
    ------
    ConfigError
        If `out` has another suffix, there is no such folder, or no run is in force.
    MurmurError
        If the run has no assignments, or the file cannot be written.
    BackendError
        If the store fails.
    """
    started = time.monotonic()
    suffix = check_table(out)
    rows = _rows(store)
    progress(Progress("export", 0, len(rows)))
    import pandas as pd

    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    frame = frame.astype({name: "float64" if name == "score" else "string" for name in COLUMNS})
    with replacing(out) as part:
        if suffix == ".csv":
            frame.to_csv(part, index=False, encoding="utf-8")
        else:
            frame.to_parquet(part, index=False)
    progress(Progress("export", len(rows), len(rows)))
    return Report(read=len(rows), written=len(rows), seconds=time.monotonic() - started)


def _rows(store: Store) -> list[Document]:
    run = require_run_in_force(store)
    assigned = require_assignments(store, run, ("cluster_id", "score"))
    tracks = store.scan(Track, fields=("track_id", "source", "title", "artist", "genre"))
    return [
        track | assigned[track["track_id"]] | {"path": track["source"]["path"]}
        for track in tracks
        if track["track_id"] in assigned
    ]
