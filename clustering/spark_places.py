"""All tracks of a library on every executor, as files mapped into memory; and what executors do with their parts of it.

A track's neighbours are sought in the whole library. The driver writes what they need to know of all tracks into a few
files, Spark hands these to each executor, and the processes of one share them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark import SparkContext, SparkFiles
from pyspark.sql import SparkSession

from clustering.assign import Labels
from clustering.library import Library
from clustering.neighbours import products
from clustering.place import place, store_assignments
from clustering.ranking import Points, neighbourhoods
from clustering.space import Matrix
from clustering.spark_source import Column
from core.jobs import Progress, Watch
from core.records import Run
from core.store import Store

Batches = Iterator[pa.RecordBatch]

PART = 2_000
"""Rows that a task takes."""


class Files(NamedTuple):
    """The names of the files; that of the neighbourhoods is empty until they are measured."""

    X: str
    P: str
    recordings: str
    tracks: str
    neighbourhoods: str = ""


def assign(
    session: SparkSession, store: Store, run: Run, library: Library, X: Matrix, directory: Path, progress: Watch
) -> int:
    """Have the executors write where a run puts each row; see `engine.Engine.assign`.

    Parameters
    ----------
    session : SparkSession
    store : Store
        The executors open it for themselves.
    run : Run
    library : Library
    X : ndarray, shape (n, d)
    directory : Path
        For the files.
    progress : callable
    """
    n = len(X)
    share = partial(_share, session.sparkContext, directory)
    columns = pa.table({"track_id": library.track_ids, "rev": list(library.revs.values())})
    files = Files(share(X), share(products(X)), share(library.recordings), share(columns))
    progress(Progress("neighbours", 0, n))
    measured = _collected(session, n, partial(measure, files))
    radii = np.concatenate([np.frombuffer(part, np.float64) for part in measured])
    progress(Progress("neighbours", n, n))
    progress(Progress("write", 0, n))
    written = _collected(session, n, partial(write, files._replace(neighbourhoods=share(radii)), store, run))
    progress(Progress("write", n, n))
    return sum(int.from_bytes(part) for part in written)


def measure(files: Files, size: int, batches: Batches) -> Batches:
    """Yield the neighbourhoods of each part of the rows, bytes of float64; runs on the executors."""
    points = _points(files)
    yield from _answers(batches, len(points.X), size, lambda rows: neighbourhoods(points, rows).tobytes())


def write(files: Files, store: Store, run: Run, size: int, batches: Batches) -> Batches:
    """Write the assignments of each part of the rows, and yield how many; runs on the executors.

    A part that is tried again, since its executor was lost, writes the same once more, which the store passes over.
    """
    points, tracks = _points(files), _tracks(files.tracks)
    ids, revs = Column(tracks["track_id"], str), tracks["rev"].to_numpy()

    def written(rows: Labels) -> bytes:
        return store_assignments(store, place(run, ids, revs, points, rows, rev=run.rev)).to_bytes(8)

    with closing(store):
        yield from _answers(batches, len(points.X), size, written)


def _collected(session: SparkSession, n: int, function: Callable[[int, Batches], Batches]) -> list[bytes]:
    """Have `PART` rows after the other done, and return the answers in their order."""
    firsts = session.range(0, n, PART, -(-n // PART))
    return [bytes(row.answer) for row in firsts.mapInArrow(partial(function, PART), "answer binary").collect()]


def _answers(batches: Batches, n: int, size: int, answer: Callable[[Labels], bytes]) -> Batches:
    for batch in batches:
        for first in batch.column("id").to_pylist():
            rows = np.arange(first, min(first + size, n))
            yield pa.record_batch([pa.array([answer(rows)], pa.binary())], ["answer"])


def _points(files: Files) -> Points:
    measured = _array(files.neighbourhoods) if files.neighbourhoods else np.empty(0)
    return Points(_array(files.X), _array(files.P), measured, _array(files.recordings))


def _share(context: SparkContext, directory: Path, values: npt.NDArray[Any] | pa.Table) -> str:
    """Write an array or a table into a file that every executor gets; return its name."""
    name = f"{uuid4()}.npy"
    if isinstance(values, pa.Table):
        with pa.OSFile(str(directory / name), "wb") as file, pa.ipc.new_file(file, values.schema) as writer:
            writer.write_table(values)
    else:
        np.save(directory / name, values)
    context.addFile(str(directory / name))
    return name


def _array(name: str) -> npt.NDArray[Any]:
    found: npt.NDArray[Any] = np.load(SparkFiles.get(name), mmap_mode="r")
    return np.asarray(found)


def _tracks(name: str) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(SparkFiles.get(name))).read_all()
