"""The engine on Spark: executors read the tracks and keep their vectors, MLlib's KMeans runs where they are."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from pyspark import StorageLevel
from pyspark.ml.feature import VectorAssembler
from pyspark.ml.functions import array_to_vector
from pyspark.mllib.clustering import KMeans, KMeansModel
from pyspark.sql import DataFrame
from pyspark.sql.functions import col

from clustering import spark_places
from clustering.centres import EPSILON, MAX_ITERATIONS
from clustering.library import Library, digest_of, nothing_fits
from clustering.recordings import RECORDING
from clustering.space import (
    Declared,
    Matrix,
    Moments,
    coordinates,
    fit_group,
    layouts,
    merged,
    moments,
    present,
    transform,
)
from clustering.spark_source import KNOWN, Column, read_tracks
from core.config import Config
from core.errors import BackendError, ConfigError
from core.jobs import Progress, Watch
from core.records import Group, Run
from core.spark import is_local, open_spark
from core.store import Document, Store

log = logging.getLogger(__name__)

Batches = Iterator[pa.RecordBatch]

CHANGED = "Spark lost some of the tracks it had read, and they have changed meanwhile; run `murmur cluster` again"
KEPT = StorageLevel.MEMORY_AND_DISK
PACKED = "n long, rows_digest string, coordinates binary"
MOMENTS = "n long, mean array<double>, scatter array<double>"


class SparkEngine:
    """Fits the space and the clusters of vectors that are with the executors.

    Parameters
    ----------
    frame : DataFrame
        A row per track: its `track_id` and `rev`, and a column of float arrays per group.
    revs : mapping of str to int
        Track id → revision of the rows as they were first read, in their order.
    groups : sequence of Declared
    directory : Path
        Where the coordinates are kept on the driver.
    """

    def __init__(self, frame: DataFrame, revs: Mapping[str, int], groups: Sequence[Declared], directory: Path) -> None:
        self.frame, self._revs, self._groups, self._directory = frame, revs, groups, directory

    def fit_space(self) -> list[Group]:
        """Fit every group from moments gathered partition by partition; see `engine.Engine`."""
        return [fit_group(group, partial(gather, self.frame, group.name)) for group in self._groups]

    def place(self, space: list[Group]) -> Matrix:
        """Have the executors place the rows; the driver maps a file of the coordinates. See `engine.Engine`.

        Raises
        ------
        BackendError
            If a part of them was lost and, read again, is not what it was.
        """
        n_dimensions = sum(len(group.components) for group in space)
        if n_dimensions == 0:
            return np.empty((len(self._revs), 0))
        blocks = self.frame.mapInArrow(partial(pack, space), PACKED).persist(KEPT)
        blocks.count()  # places all partitions side by side, before they come here one after the other
        expected = iter(self._revs.items())
        with NamedTemporaryFile(dir=self._directory, delete=False) as file:
            for block in blocks.toLocalIterator(prefetchPartitions=True):
                if block.rows_digest != digest_of(dict(islice(expected, block.n))):
                    raise BackendError(CHANGED)
                file.write(block.coordinates)
        blocks.unpersist()
        if next(expected, None):
            raise BackendError(CHANGED)
        return np.asarray(np.memmap(file.name, np.float64, "r")).reshape(-1, n_dimensions)

    def fit_centres(self, space: list[Group], start: Matrix) -> Matrix:
        """Run MLlib's KMeans from the given centres; see `engine.Engine`."""
        placed = {group.name: group for group in space if group.components}
        schema = ", ".join(f"{name} array<double>" for name in placed)
        frame = self.frame.mapInArrow(partial(place, placed), schema).select(
            *(array_to_vector(col(name)).alias(name) for name in placed)
        )
        assembled = VectorAssembler(inputCols=list(placed), outputCol="position").transform(frame).select("position")
        model = KMeans.train(
            assembled.rdd.map(position),
            len(start),
            maxIterations=MAX_ITERATIONS,
            epsilon=EPSILON,
            initialModel=KMeansModel(list(start)),
        )
        return np.array(model.clusterCenters)

    def assign(self, store: Store, run: Run, library: Library, X: Matrix, progress: Watch) -> int:
        """Have the executors write the assignments; see `engine.Engine`."""
        return spark_places.assign(self.frame.sparkSession, store, run, library, X, self._directory, progress)


@contextmanager
def open_spark_engine(
    config: Config,
    store: Store,
    groups: Sequence[Declared],
    read: Sequence[Declared | Group],
    total: int,
    fields: Sequence[str],
    progress: Watch,
) -> Iterator[tuple[Library, SparkEngine]]:
    """Open a session whose executors read the columns `read` of the tracks, once; see `engine.open_engine`."""
    if store.url.startswith("sqlite:") and not is_local(config.spark):
        raise ConfigError(
            f"store.url: the executors of {config.spark.master} cannot all read {store.url}; "
            "use mongodb://host:27017/music, or `--engine sklearn`"
        )
    progress(Progress("read", 0, total))
    with open_spark(config.spark) as session, TemporaryDirectory(prefix="murmur-places-") as directory:
        tracks = read_tracks(session, store, config.feature_set, layouts(read), fields, total).persist(KEPT)
        library = library_of(tracks, store)
        progress(Progress("read", total, total, library.unreadable))
        yield library, SparkEngine(tracks.where("problem IS NULL"), library.revs, groups, Path(directory))
        tracks.unpersist()


def library_of(tracks: DataFrame, store: Store) -> Library:
    """Return what is known of tracks beside their vectors, which stay where they are.

    Raises
    ------
    ConfigError
        If none has a vector.
    """
    known = tracks.select(KNOWN.names).toArrow()
    for problem in known["problem"].drop_null().to_pylist():
        log.warning("left out: %s", problem)
    placed = known.filter(pc.is_null(known["problem"]))
    if not len(placed):
        raise nothing_fits(store)
    return Library(
        revs=_revs(placed),
        sounds=np.vstack([matrix(chunk) for chunk in placed["sounds"].chunks if len(chunk)]),
        recordings=np.frombuffer(b"".join(placed["recording"].to_pylist()), RECORDING),
        metadata=Column[Document](placed["metadata"], orjson.loads),
        input_digest=digest_of(_revs(known)),
        unreadable=len(known) - len(placed),
        n_distinct=pc.count_distinct(placed["vectors_digest"]).as_py(),
    )


def gather(frame: DataFrame, name: str, function: Callable[[Matrix], Matrix]) -> Moments:
    """Return the moments of `function` of one group's rows, over all partitions."""
    parts = frame.select(name).mapInArrow(partial(summarise, function=function), MOMENTS).collect()
    return merged(
        Moments(part.n, np.array(part.mean), np.array(part.scatter).reshape(-1, len(part.mean))) for part in parts
    )


def summarise(batches: Batches, function: Callable[[Matrix], Matrix]) -> Batches:
    """Yield the moments of one partition, nothing for an empty one; runs on the executors."""
    parts = [moments(function(present(matrix(batch.column(0))))) for batch in batches if len(batch)]
    if parts:
        whole = merged(parts)
        yield pa.record_batch(
            [pa.array([whole.n]), pa.array([whole.mean]), pa.array([whole.scatter.ravel()])],
            names=["n", "mean", "scatter"],
        )


def place(groups: Mapping[str, Group], batches: Batches) -> Batches:
    """Yield the coordinates of each row, an array per group; runs on the executors."""
    for batch in batches:
        if len(batch):
            placed = {name: lists(coordinates(group, matrix(batch.column(name)))) for name, group in groups.items()}
            yield pa.record_batch(placed)


def pack(space: Sequence[Group], batches: Batches) -> Batches:
    """Yield of each batch what rows it has, and their coordinates as bytes of float64; runs on the executors."""
    for batch in batches:
        if len(batch):
            X = transform(space, {group.name: matrix(batch.column(group.name)) for group in space})
            yield pa.record_batch(
                [[len(batch)], [digest_of(_revs(batch))], [X.tobytes()]], ["n", "rows_digest", "coordinates"]
            )


def position(row: Any) -> npt.NDArray[np.float64]:
    """Return the assembled vector of a row as an array; runs on the executors."""
    array: npt.NDArray[np.float64] = row.position.toArray()
    return array


def matrix(column: pa.ListArray) -> npt.NDArray[Any]:
    """Return the (n, d) matrix of a column of arrays that all have length d ≥ 1."""
    values: npt.NDArray[Any] = column.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(column), -1)


def lists(X: npt.NDArray[Any]) -> pa.ListArray:
    """Return (n, d) rows as a column of arrays."""
    n, d = X.shape
    return pa.ListArray.from_arrays(np.arange(0, n * d + 1, d, dtype=np.int32), pa.array(X.ravel()))


def _revs(known: pa.Table | pa.RecordBatch) -> dict[str, int]:
    return dict(zip(known["track_id"].to_pylist(), known["rev"].to_pylist(), strict=True))
