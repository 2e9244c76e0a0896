"""The job `export`: the feature matrix of the store → one file for pandas and its like."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from core.config import Config
from core.errors import MurmurError
from core.files import check_table, replacing
from core.jobs import Progress, Report, Watch, ignore
from core.records import Track
from core.store import Store

if TYPE_CHECKING:
    import pandas as pd

BATCH = 2000
"""Tracks that are held in memory at a time, and in a row group of Parquet."""


@dataclass(frozen=True, slots=True)
class ExportReport(Report):
    """What an export did: `written` counts the rows of the file."""

    other_feature_sets: int = 0
    """Tracks left out because their features were computed with other settings."""


def run(config: Config, out: Path, *, store: Store, progress: Watch = ignore) -> ExportReport:
    """Write the features of every track of the configured feature set, as `features.matrix.frame` lays them out.

    Reads the tracks as a stream, in order of the `track_id`; writes beside `out`, and renames at the end: a run that is
    stopped leaves what was there before. Values are float32.

    Parameters
    ----------
    config : Config
        Its `feature_set`.
    out : Path
        ``.parquet``, for ``pandas.read_parquet(out)``, or ``.csv`` with FMA's header rows, for
        ``pandas.read_csv(out, index_col=0, header=[0, 1, 2])``.
    store : Store
    progress : callable
        Told how many tracks were written.

    Raises
    ------
    ConfigError
        If `out` has another suffix, or there is no such folder.
    MurmurError
        If there is no track of this feature set, or the file cannot be written.
    BackendError
        If the store fails.
    """
    started = time.monotonic()
    write = {".parquet": _write_parquet, ".csv": _write_csv}[check_table(out)]
    total, everywhere = store.count(Track, {"feature_set": config.feature_set}), store.count(Track)
    if not total:
        raise MurmurError(_nothing(store.url, everywhere))
    with replacing(out) as part:
        rows = write(_frames(config.feature_set, total, store, progress), part)
    return ExportReport(
        read=rows, written=rows, seconds=time.monotonic() - started, other_feature_sets=everywhere - total
    )


def _frames(feature_set: str, total: int, store: Store, progress: Watch) -> Iterator[pd.DataFrame]:
    from features.matrix import frame

    tracks = map(Track.from_document, store.scan(Track, where={"feature_set": feature_set}))
    done = 0
    while batch := list(islice(tracks, BATCH)):
        yield frame(batch)
        done += len(batch)
        progress(Progress("export", done, max(done, total)))


def _write_parquet(frames: Iterator[pd.DataFrame], file: Path) -> int:
    """Write a row group for each frame; return the number of rows."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    tables = map(pa.Table.from_pandas, frames)
    first = next(tables)
    rows = 0
    with ParquetWriter(file, first.schema) as writer:
        for table in chain([first], tables):
            writer.write_table(table)
            rows += table.num_rows
    return rows


def _write_csv(frames: Iterator[pd.DataFrame], file: Path) -> int:
    """Write the header rows with the first frame; return the number of rows."""
    rows = 0
    with file.open("w", encoding="utf-8", newline="") as text:
        for frame in frames:
            frame.to_csv(text, header=not rows)
            rows += len(frame)
    return rows


def _nothing(url: str, others: int) -> str:
    if others:
        return f"{url}: all {others:,} tracks have features of other settings; run `murmur run AUDIO_DIR` first"
    return f"{url}: no track to export; run `murmur run AUDIO_DIR` first"
