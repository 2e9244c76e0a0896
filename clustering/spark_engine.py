"""The engine on Spark: rows travel as Arrow, MLlib's KMeans runs where they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.ml.feature import VectorAssembler
from pyspark.ml.functions import array_to_vector
from pyspark.mllib.clustering import KMeans, KMeansModel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.functions import col
from pyspark.sql.types import ArrayType, FloatType, StructField, StructType

from clustering.centres import EPSILON, MAX_ITERATIONS
from clustering.space import Declared, Matrix, Moments, Vectors, coordinates, fit_group, merged, moments, present
from core.records import Group

Batches = Iterator[pa.RecordBatch]

MOMENTS = "n long, mean array<double>, scatter array<double>"


class SparkEngine:
    """Fits the space and the clusters of vectors in a Spark session."""

    def __init__(self, session: SparkSession, vectors: Vectors, groups: Sequence[Declared]) -> None:
        self.frame, self._groups = rows(session, vectors), groups

    def fit_space(self) -> list[Group]:
        """Fit every group from moments gathered partition by partition; see `engine.Engine`."""
        return [fit_group(group, partial(gather, self.frame, group.name)) for group in self._groups]

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


def rows(session: SparkSession, vectors: Vectors) -> DataFrame:
    """Return a frame with one row per track and one float array per group."""
    schema = StructType([StructField(name, ArrayType(FloatType(), False), False) for name in vectors])
    return session.createDataFrame(pa.table({name: lists(X) for name, X in vectors.items()}), schema)


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
