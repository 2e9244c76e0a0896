"""A Python Data Source for Spark: the clusterable tracks of a store, read by the executors in ranges of keys."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar, overload

import numpy as np
import orjson
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.datasource import DataSource, DataSourceReader, InputPartition
from pyspark.sql.pandas.types import from_arrow_schema
from pyspark.sql.types import StructType

from clustering.describe import sounds
from clustering.library import READ, clusterable, vectors_digest
from clustering.recordings import RECORDING, recording
from clustering.space import Slot, vector
from core.errors import RecordError
from core.records import Track
from core.store import Document, Store

T = TypeVar("T")

BATCH = 500
PARTITION = 10_000
"""Tracks in one at most, about: 20 MB of vectors."""
KNOWN = pa.schema(
    {
        "track_id": pa.string(),
        "rev": pa.int64(),
        "problem": pa.string(),  # why the track has no vectors; else null
        "sounds": pa.list_(pa.float64()),
        "recording": pa.binary(),  # of `recordings.RECORDING`
        "metadata": pa.binary(),  # JSON of the fields that were asked for
        "vectors_digest": pa.string(),  # equal for tracks that nothing tells apart
    }
)
"""What is known of a track beside its vectors."""


class Column(Sequence[T]):
    """A column of a table, of which only what is looked at becomes objects of Python.

    Parameters
    ----------
    column : pyarrow.ChunkedArray
    decode : callable
        Makes such an object of a value.
    """

    def __init__(self, column: pa.ChunkedArray, decode: Callable[[Any], T]) -> None:
        self._column, self._decode = column, decode

    def __len__(self) -> int:
        return len(self._column)

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> Column[T]: ...

    def __getitem__(self, index: int | slice) -> T | Column[T]:
        if isinstance(index, slice):
            return Column(self._column[index], self._decode)
        return self._decode(self._column[int(index)].as_py())


@dataclass(frozen=True)
class TracksReader(DataSourceReader):
    """Reads the tracks of one feature set as group vectors; on the executors, each with a connection of its own."""

    store: Store
    feature_set: str
    slots: Mapping[str, Sequence[Slot]]
    fields: Sequence[str]
    splits: Sequence[str]
    """Keys between the partitions."""

    @property
    def schema(self) -> pa.Schema:
        """`KNOWN`, and a column of float32 for each group."""
        return pa.schema([*KNOWN, *(pa.field(name, pa.list_(pa.float32())) for name in self.slots)])

    def partitions(self) -> list[InputPartition]:
        """Return ranges of keys of about the same size, in order: each above one key and up to another."""
        return [InputPartition(bounds) for bounds in zip(["", *self.splits], [*self.splits, None], strict=True)]

    def read(self, partition: InputPartition) -> Iterator[pa.RecordBatch]:
        """Yield a range's tracks in order of their key."""
        after, until = partition.value
        wanted = {*READ, *self.fields}
        with closing(self.store) as store:
            tracks = clusterable(store, self.feature_set, sorted(wanted), after=after, until=until)
            while batch := list(islice(tracks, BATCH)):
                yield pa.RecordBatch.from_pylist([self.row(track) for track in batch], self.schema)

    def row(self, track: Document) -> Document:
        """Return a track as a row."""
        known = {"track_id": track["track_id"], "rev": track["rev"]}
        try:
            vectors = {name: vector(track, slots) for name, slots in self.slots.items()}
        except RecordError as error:
            return known | {"problem": str(error)}
        return known | {
            "sounds": sounds(track["features"]),
            "recording": np.array(recording(track), dtype=RECORDING).tobytes(),
            "metadata": orjson.dumps({field: track[field] for field in self.fields}),
            "vectors_digest": vectors_digest(vectors.values()),
            **vectors,
        }


def read_tracks(
    session: SparkSession,
    store: Store,
    feature_set: str,
    slots: Mapping[str, Sequence[Slot]],
    fields: Sequence[str],
    total: int,
) -> DataFrame:
    """Return a frame of the clusterable tracks, in order of the `track_id` and not read yet.

    Its columns are those of `KNOWN`, and one of arrays for each group.

    Parameters
    ----------
    session : SparkSession
    store : Store
        Its executors must find it too.
    feature_set : str
    slots : mapping of str to sequence of Slot
        From `space.layouts`.
    fields : sequence of str
        The metadata to read.
    total : int
        About how many tracks there are.
    """
    n_parts = max(min(session.sparkContext.defaultParallelism, total), math.ceil(total / PARTITION))
    reader = TracksReader(store, feature_set, slots, fields, store.splits(Track, n_parts))
    session.dataSource.register(source_of(reader))
    return session.read.format("murmuration").load()


def source_of(reader: TracksReader) -> type[DataSource]:
    """Return the source of a reader.

    The class itself travels to the executors, and the reader in it: an option would show the password of the store in
    Spark's plans and logs.
    """

    class TracksSource(DataSource):
        @classmethod
        def name(cls) -> str:
            return "murmuration"

        def schema(self) -> StructType:
            return from_arrow_schema(reader.schema)

        def reader(self, schema: object) -> TracksReader:
            return reader

    return TracksSource
