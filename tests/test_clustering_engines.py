"""One contract for both engines: the same space, and the same partition from the same centres."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import clustering_library as library
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cli
from clustering import space
from clustering.assign import nearest
from clustering.centres import means, start_centres
from clustering.engine import Engine
from clustering.sklearn_engine import SklearnEngine
from clustering.space import Vectors
from core.config import Config, Spark, parse_config
from core.errors import BackendError, ConfigError
from core.records import Assignment, Run
from core.spark import open_spark
from core.sqlite_store import SQLiteStore

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from clustering.spark_engine import SparkEngine

Open = Callable[[Vectors], Engine]

OVERLAPPING = 0.5
"""Spread at which the kinds of `library.vectors` cannot be told apart."""


@pytest.fixture(params=["sklearn", "spark"])
def open_engine(request: pytest.FixtureRequest) -> Open:
    if request.param == "sklearn":
        return open_sklearn
    session, directory = request.getfixturevalue("spark"), request.getfixturevalue("tmp_path")
    return lambda vectors: open_spark_engine(session, vectors, directory)


def test_the_space_has_unit_variance_and_is_that_of_the_definition(open_engine: Open) -> None:
    """Recomputed here from the whole matrix at once."""
    vectors, _ = library.vectors(120)
    vectors["rhythm"][::5] = np.nan
    for group, weight in zip(open_engine(vectors).fit_space(), (1.0, 0.5), strict=True):
        rows = vectors[group.name]
        known = rows[~np.isnan(rows[:, 0])].astype(float)
        Z = np.clip((known - known.mean(axis=0)) / known.std(axis=0), -2, 2)
        _, lengths, axes = np.linalg.svd(Z - Z.mean(axis=0))
        expected = (Z - Z.mean(axis=0)) @ axes[:30].T / np.sqrt(np.square(lengths[:30]).sum() / len(Z)) * weight
        found = space.coordinates(group, rows)[~np.isnan(rows[:, 0])]
        np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-9)


def test_lloyds_algorithm_ends_where_every_centre_is_the_mean_of_its_members(open_engine: Open) -> None:
    vectors, _ = library.vectors(150, spread=OVERLAPPING)
    engine = open_engine(vectors)
    fitted = engine.fit_space()
    X = engine.place(fitted)
    centres = engine.fit_centres(fitted, X[:7])
    np.testing.assert_allclose(means(X, nearest(X, centres), centres), centres, atol=1e-9)


def test_a_centre_far_from_every_track_keeps_its_place(open_engine: Open) -> None:
    vectors, _ = library.vectors(40)
    engine = open_engine(vectors)
    fitted = engine.fit_space()
    X = engine.place(fitted)
    start = np.vstack([X[:2], np.full(X.shape[1], 100.0)])
    centres = engine.fit_centres(fitted, start)
    np.testing.assert_array_equal(centres[2], start[2])
    np.testing.assert_allclose(means(X, nearest(X, centres), centres), centres, atol=1e-9)


def test_separated_kinds_are_found(open_engine: Open) -> None:
    vectors, kind = library.vectors(80, kinds=5)
    assert library.partition(fit_labels(open_engine, vectors, 5)) == library.partition(kind)


def test_the_same_seed_gives_the_same_labels(open_engine: Open) -> None:
    vectors, _ = library.vectors(150, spread=OVERLAPPING)
    np.testing.assert_array_equal(fit_labels(open_engine, vectors, 8), fit_labels(open_engine, vectors, 8))


def test_permuting_tracks_permutes_labels(open_engine: Open) -> None:
    vectors, _ = library.vectors(150, spread=OVERLAPPING)
    order = np.random.default_rng(1).permutation(150)
    start = place(open_engine, vectors)[:8]
    labels = fit_labels(open_engine, vectors, 8, start)
    permuted = fit_labels(open_engine, {name: rows[order] for name, rows in vectors.items()}, 8, start)
    np.testing.assert_array_equal(permuted, labels[order])


@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(60)), seed=st.integers(0, 1000))
def test_any_permutation_of_any_library_permutes_its_labels(order: list[int], seed: int) -> None:
    vectors, _ = library.vectors(60, seed=seed, spread=OVERLAPPING)
    start = place(open_sklearn, vectors)[:6]
    labels = fit_labels(open_sklearn, vectors, 6, start)
    permuted = fit_labels(open_sklearn, {name: rows[order] for name, rows in vectors.items()}, 6, start)
    np.testing.assert_array_equal(permuted, labels[order])


def test_two_tracks_and_a_library_without_rhythm_can_be_fitted(open_engine: Open) -> None:
    vectors, _ = library.vectors(2)
    vectors["rhythm"][:] = np.nan
    assert sorted(fit_labels(open_engine, vectors, 2)) == [0, 1]


def test_equal_tracks_have_a_space_without_dimensions(open_engine: Open) -> None:
    vectors = {name: np.repeat(rows, 3, axis=0) for name, rows in library.vectors(1)[0].items()}
    assert place(open_engine, vectors).shape == (3, 0)


@pytest.mark.parametrize("seed", range(2))
def test_both_engines_find_the_same_space_and_partition(spark: SparkSession, tmp_path: Path, seed: int) -> None:
    """On overlapping data, from starts that are far from the end, some of which lose all their members."""
    vectors, _ = library.vectors(400, seed=seed, spread=OVERLAPPING)
    vectors["rhythm"][::9] = np.nan
    engines = open_sklearn(vectors), open_spark_engine(spark, vectors, tmp_path)
    spaces = [engine.fit_space() for engine in engines]
    for one, other in zip(*spaces, strict=True):
        for field in ("mean", "std", "pca_mean", "components", "scale"):
            np.testing.assert_allclose(getattr(one, field), getattr(other, field), rtol=1e-9, atol=1e-11)
    positions = [engine.place(fitted) for engine, fitted in zip(engines, spaces, strict=True)]
    np.testing.assert_allclose(*positions, atol=1e-11)
    rng = np.random.default_rng(seed)
    start = np.vstack([positions[0][:20], rng.normal(size=(5, positions[0].shape[1]))])
    centres = [engine.fit_centres(fitted, start) for engine, fitted in zip(engines, spaces, strict=True)]
    np.testing.assert_allclose(*centres, atol=1e-11)
    np.testing.assert_array_equal(*(nearest(X, found) for X, found in zip(positions, centres, strict=True)))


@pytest.mark.parametrize("n_partitions", [1, 7])
def test_spark_finds_the_same_in_any_partitioning(spark: SparkSession, tmp_path: Path, n_partitions: int) -> None:
    """Also with partitions that hold nothing, and in shuffled order."""
    vectors, _ = library.vectors(150, spread=OVERLAPPING)
    engine, scattered = (open_spark_engine(spark, vectors, tmp_path) for _ in range(2))
    scattered.frame = scattered.frame.repartition(n_partitions, "timbre")
    fitted = engine.fit_space()
    for one, other in zip(fitted, scattered.fit_space(), strict=True):
        np.testing.assert_allclose(one.components, other.components, atol=1e-11)
    start = space.transform(fitted, vectors)[:8]
    np.testing.assert_allclose(engine.fit_centres(fitted, start), scattered.fit_centres(fitted, start), atol=1e-12)


def test_the_job_gives_the_same_clusters_and_neighbours_on_both_engines(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With groups other than the default: cold, warm with more tracks and clusters, and like the first.

    It uses the open session, which stays open; its executors write a part of the tracks each.
    """
    from clustering import spark_places

    monkeypatch.setattr(spark_places, "PART", 20)
    tracks = library.tracks(75, kinds=5, spread=OVERLAPPING)
    found: dict[str, list[list[Assignment]]] = {"sklearn": [], "spark": []}
    for engine, made in found.items():
        with closing(SQLiteStore(f"sqlite:///{tmp_path}/{engine}.db")) as store:
            store.upsert(tracks[:60])
            first = library.cluster_them(config(engine), store)
            store.upsert(tracks[60:])
            grown = library.cluster_them(config(engine, n_clusters=7), store)
            like = library.cluster_them(config(engine), store, like=first.run_id)
            assert [report.written for report in (first, grown, like)] == [60, 75, 75]
            made += [assignments_of(store, report.run_id) for report in (first, grown, like)]
    assert [len({one.cluster_id for one in run}) for run in found["spark"]] == [5, 7, 5]
    for one, other in zip(chain(*found["sklearn"]), chain(*found["spark"]), strict=True):
        assert what_is_exact(one) == what_is_exact(other)
        assert measured(one) == pytest.approx(measured(other), rel=1e-9)
    assert spark.range(3).count() == 3


def test_equal_tracks_are_one_cluster_with_each_other_as_neighbours_on_spark_too(
    spark: SparkSession, tmp_path: Path
) -> None:
    with closing(SQLiteStore(f"sqlite:///{tmp_path}/test.db")) as store:
        store.upsert([one.model_copy(update={"features": library.tracks(1)[0].features}) for one in library.tracks(4)])
        found = assignments_of(store, library.cluster_them(config("spark"), store).run_id)
    assert {one.cluster_id for one in found} == {"c01"}
    assert [near.track_id for near in found[1].neighbours] == ["t000", "t002", "t003"]


@pytest.mark.parametrize("other", ["sklearn", "spark"])
def test_a_run_like_another_gives_its_assignment_again_on_either_engine(
    spark: SparkSession, tmp_path: Path, other: str
) -> None:
    """Although other clusters are in force meanwhile; it takes its space, seed and start from that run."""
    with closing(SQLiteStore(f"sqlite:///{tmp_path}/test.db")) as store:
        store.upsert(library.tracks(60, kinds=5, spread=OVERLAPPING))
        first = library.cluster_them(config("sklearn", n_clusters=6), store)
        between = library.cluster_them(config("sklearn", n_clusters=4, random_state=3), store, fresh=True)
        again = library.cluster_them(config(other, random_state=8), store, like=first.run_id)
        found = [library.assigned(store, report.run_id) for report in (first, between, again)]
        runs = [store.get(Run, report.run_id) for report in (first, again)]
    assert found[0] == found[2] != found[1]
    same = ("space", "start", "random_state", "n_init", "input_digest", "settings_digest", "space_digest")
    assert [getattr(runs[0], name) for name in same] == [getattr(runs[1], name) for name in same]


def test_the_rows_are_placed_in_their_order_by_several_partitions(open_engine: Open) -> None:
    vectors, _ = library.vectors(500)
    vectors["rhythm"][::7] = np.nan
    engine = open_engine(vectors)
    fitted = engine.fit_space()
    np.testing.assert_allclose(engine.place(fitted), space.transform(fitted, vectors), atol=1e-12)


def test_executors_of_a_cluster_are_not_sent_to_a_file_of_this_machine(tmp_path: Path) -> None:
    far = parse_config({"spark": {"master": "spark://far:7077"}})
    with closing(SQLiteStore(f"sqlite:///{tmp_path}/test.db")) as store:
        store.upsert(library.tracks(3))
        with pytest.raises(ConfigError, match=r"store\.url: the executors of spark://far:7077 .*test\.db.*sklearn"):
            library.cluster_them(far, store)


def test_what_spark_says_of_an_error_is_one_line(spark: SparkSession) -> None:
    with (
        pytest.raises(BackendError, match=r"^Spark \(local\[2\]\) failed: .*no_such_column.*$"),
        open_spark(Spark(master="local[2]")) as session,
    ):
        session.range(3).select("no_such_column").collect()


def open_sklearn(vectors: Vectors) -> Engine:
    return SklearnEngine(vectors, library.GROUPS)


def open_spark_engine(session: SparkSession, vectors: Vectors, directory: Path) -> SparkEngine:
    from clustering.spark_engine import SparkEngine, lists

    revs = {f"t{n:03}": n for n in range(len(next(iter(vectors.values()))))}
    columns = {"track_id": list(revs), "rev": list(revs.values())} | {name: lists(X) for name, X in vectors.items()}
    return SparkEngine(session.createDataFrame(pa.table(columns)), revs, library.GROUPS, directory)


def assignments_of(store: SQLiteStore, run_id: str) -> list[Assignment]:
    return [Assignment.from_document(found) for found in store.scan(Assignment, prefix=f"{run_id}/")]


def what_is_exact(one: Assignment) -> tuple[object, ...]:
    return one.track_id, one.track_rev, one.cluster_id, [near.track_id for near in one.neighbours]


def measured(one: Assignment) -> list[float]:
    return [one.distance, one.score, one.neighbourhood, *(near.score for near in one.neighbours)]


def config(engine: str, **clustering: object) -> Config:
    rhythm = {"blocks": ["fluctuation", "spectral_centroid"], "clip": 3, "components": 5, "weight": 0.7}
    settings = {"engine": engine, "groups": {"rhythm": rhythm}, **clustering}
    return parse_config({"clustering": settings, "spark": {"master": "local[2]"}})


def place(open_engine: Open, vectors: Vectors) -> np.ndarray:
    engine = open_engine(vectors)
    return engine.place(engine.fit_space())


def fit_labels(open_engine: Open, vectors: Vectors, k: int, start: np.ndarray | None = None) -> np.ndarray:
    engine = open_engine(vectors)
    fitted = engine.fit_space()
    X = engine.place(fitted)
    start = start_centres(X, k, n_init=10, random_state=0) if start is None else start
    return nearest(X, engine.fit_centres(fitted, start))


@pytest.mark.usefixtures("spark")
def test_spark_submit_starts_the_command(tmp_path: Path) -> None:
    """The exit code is the command's, and the master that of the configuration: at the other nobody is there."""
    with closing(SQLiteStore(f"sqlite:///{tmp_path}/murmur.db")) as store:
        store.upsert(library.tracks(12))
    (tmp_path / "config.yaml").write_text("clustering: {n_clusters: 3}\nspark: {master: 'local[1]'}\n")
    command = [
        Path(sys.executable).with_name("spark-submit"),
        "--master",
        "spark://127.0.0.1:1",
        Path(cli.__path__[0], "__main__.py"),
    ]
    said = {
        arguments: subprocess.run(
            [*command, *arguments.split()],
            cwd=tmp_path,
            env={**os.environ, "PYSPARK_PYTHON": sys.executable},
            capture_output=True,
            text=True,
            check=False,
        )
        for arguments in ("-q cluster", "-q cluster --clusters 13")
    }
    assert [done.returncode for done in said.values()] == [0, 2]
    assert "12 written, 3 clusters" in said["-q cluster"].stdout
