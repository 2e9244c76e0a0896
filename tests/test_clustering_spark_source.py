"""The tracks of a store as rows of Spark: those that one process would read, whatever the store and the partitions."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import clustering_library as library
import numpy as np
import pymongo
import pytest

from clustering.library import LoadedLibrary, read_library
from clustering.space import layouts
from core.config import Config, Spark
from core.errors import BackendError, ConfigError
from core.jobs import ignore
from core.records import Track, next_rev
from core.spark import open_spark
from core.store import Store, open_store

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

FIELDS = ("track_id", "title", "genre")


@pytest.fixture(scope="module")
def spark_cores() -> int:
    return 3


@pytest.fixture(params=["sqlite", pytest.param("mongodb", marks=pytest.mark.servers)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Yield a store that the executors find too; of MongoDB's URL they need all, the part that is not shown as well."""
    if request.param == "sqlite":
        with closing(open_store(f"sqlite:///{tmp_path}/test.db")) as opened:
            yield opened
        return
    name = f"murmur_test_{uuid.uuid4().hex}"
    url = urlsplit(request.getfixturevalue("mongodb_url"))._replace(path=f"/{name}").geturl()
    with closing(open_store(url)) as opened:
        yield opened
    with pymongo.MongoClient(url) as client:
        client.drop_database(name)


def read(spark: SparkSession, store: Store, total: int = 100) -> DataFrame:
    from clustering.spark_source import read_tracks

    return read_tracks(spark, store, Config().feature_set, layouts(library.GROUPS), FIELDS, total)


def here(store: Store) -> LoadedLibrary:
    """Return what one process reads."""
    return read_library(store, Config().feature_set, library.GROUPS, 100, ignore, fields=FIELDS)


def put_various(store: Store) -> None:
    """Store tracks of all kinds; after them three of another feature set, so that the partitions are not equal."""
    tracks = library.tracks(60, genre="Ambient", artist="Anna")
    changes = {3: {"flags": ["silent"]}, 7: {"flags": ["no_rhythm"]}, 20: {"features": {"mfcc": {"mean": [1.0]}}}}
    changes |= {n: {"feature_set": "other"} for n in (57, 58, 59)} | {31: {"features": tracks[30].features}}
    store.upsert([track.model_copy(update=changes.get(n, {})) for n, track in enumerate(tracks)])
    store.delete(Track, {"t010": 2})


def test_the_executors_read_in_partitions_what_one_process_reads(
    spark: SparkSession, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    from clustering.spark_engine import library_of

    put_various(store)
    expected, tracks = here(store), read(spark, store)
    (told,) = {record.getMessage() for record in caplog.records}
    caplog.clear()
    found = library_of(tracks, store)
    assert tracks.rdd.getNumPartitions() == 3
    assert list(found.revs.items()) == list(expected.revs.items())
    assert list(found.metadata) == expected.metadata
    assert (found.input_digest, found.unreadable, found.n_distinct) == (expected.input_digest, 1, 53)
    assert expected.n_distinct == 53
    np.testing.assert_array_equal(found.sounds, expected.sounds)
    np.testing.assert_array_equal(found.recordings, expected.recordings)
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [(logging.WARNING, told)]


def test_the_vectors_come_in_the_order_of_the_ids_to_the_last_bit(spark: SparkSession, store: Store) -> None:
    from clustering.spark_engine import matrix

    put_various(store)
    table = read(spark, store).where("problem IS NULL").select("timbre", "rhythm").toArrow()
    for name, X in here(store).vectors.items():
        found = np.vstack([matrix(chunk) for chunk in table[name].chunks])
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, X)


@pytest.mark.parametrize("change", ["one in another's place", "a version", "one less", "the last one less", "one more"])
def test_what_is_read_a_second_time_and_is_not_what_it_was_is_an_error(
    spark: SparkSession, store: Store, change: str, tmp_path: Path
) -> None:
    """As after the loss of an executor; nothing is kept here."""
    from clustering.spark_engine import SparkEngine, library_of

    tracks = library.tracks(60)
    store.upsert(tracks[:59])
    frame = read(spark, store)
    engine = SparkEngine(frame, library_of(frame, store).revs, library.GROUPS, tmp_path)
    space = engine.fit_space()
    assert len(engine.place(space)) == 59
    if change == "a version":
        store.upsert([tracks[5].model_copy(update={"rev": next_rev(tracks[5].rev)})])
    if "less" in change or "place" in change:
        store.delete(Track, {f"t{58 if 'last' in change else 5:03}": next_rev()})
    if "more" in change or "place" in change:
        store.upsert(tracks[59:])
    with pytest.raises(BackendError, match="they have changed meanwhile; run `murmur cluster` again"):
        engine.place(space)


@pytest.mark.parametrize(("n", "total", "n_partitions"), [(1, 1, 1), (2, 2, 2), (40, 60_000, 6)])
def test_there_are_as_many_partitions_as_the_number_of_tracks_asks_for(
    spark: SparkSession, store: Store, n: int, total: int, n_partitions: int
) -> None:
    store.upsert(library.tracks(n))
    tracks = read(spark, store, total)
    assert tracks.rdd.getNumPartitions() == n_partitions
    assert [row.track_id for row in tracks.select("track_id").collect()] == [f"t{i:03d}" for i in range(n)]


def test_a_store_without_tracks_that_fit_is_one_clear_line(spark: SparkSession, store: Store) -> None:
    from clustering.spark_engine import library_of

    store.upsert([track.model_copy(update={"features": {}}) for track in library.tracks(2)])
    with pytest.raises(ConfigError, match=r"no track has features that fit; run `murmur run AUDIO_DIR`"):
        library_of(read(spark, store), store)


def test_a_store_that_goes_away_meanwhile_is_one_line_of_the_executor(spark: SparkSession, tmp_path: Path) -> None:
    with closing(open_store(f"sqlite:///{tmp_path}/test.db")) as store:
        store.upsert(library.tracks(2))
        tracks = read(spark, store)
    for file in tmp_path.iterdir():
        file.unlink()
    with (
        pytest.raises(BackendError, match=r"^Spark \(local\[3\]\) failed: .*no test\.db in .*$"),
        open_spark(Spark(master="local[3]")),
    ):
        tracks.count()


def test_the_plan_of_the_frame_holds_nothing_of_the_store(spark: SparkSession) -> None:
    """Its URL may hold a password, and Spark writes plans into logs and shows them."""
    from clustering.spark_source import TracksReader, source_of

    reader = TracksReader("mongodb://reader:SECRET@host/music", "f1", layouts(library.GROUPS), FIELDS, [])
    spark.dataSource.register(source_of(reader))
    execution = spark.read.format("murmuration").load()._jdf.queryExecution()
    plans = f"{execution.logical().toString()} {execution.toString()}"
    assert "murmuration" in plans
    assert "SECRET" not in plans
