"""The table of assignments: a row for each track of the run in force, whatever the kind of file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import clustering_library as library
import pandas as pd
import pytest

from clustering import export
from core.config import parse_config
from core.errors import ConfigError, MurmurError
from core.records import Assignment, RunInForce, Track
from core.sqlite_store import SQLiteStore

CONFIG = parse_config({"clustering": {"engine": "sklearn", "n_clusters": 2}})
NAMES = {"title": 'Two\nlines, and a "quote"', "artist": "Ärtist", "genre": None}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLiteStore]:
    """Return a store with a run in force of ten tracks, and a track that came later."""
    with closing(SQLiteStore(f"sqlite:///{tmp_path}/test.db")) as opened:
        first, *rest, late = library.tracks(11, 2)
        opened.upsert([*rest[::-1], first.model_copy(update=NAMES)])
        opened.upsert([RunInForce(rev=1, run_id=library.cluster_them(CONFIG, opened).run_id)])
        opened.upsert([late])
        yield opened


@pytest.fixture(params=["parquet", "csv", "CSV"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / f"assignments.{request.param}"


def read(out: Path) -> pd.DataFrame:
    return pd.read_parquet(out) if out.suffix == ".parquet" else pd.read_csv(out, float_precision="round_trip")


def test_each_row_is_an_assignment_of_the_run_in_force_in_order_of_the_track_id(store: SQLiteStore, out: Path) -> None:
    report = export.run(CONFIG, out, store=store)
    assert (report.read, report.written) == (10, 10)
    found = read(out)
    assert list(found.columns) == ["track_id", "cluster_id", "score", "path", "title", "artist", "genre"]
    stored = list(store.scan(Assignment))
    assert found["track_id"].tolist() == [f"t{i:03d}" for i in range(10)] == [one["track_id"] for one in stored]
    assert found["cluster_id"].tolist() == [one["cluster_id"] for one in stored]
    assert found["score"].tolist() == [one["score"] for one in stored]
    assert found["path"].tolist() == [f"/music/t{i:03d}.flac" for i in range(10)]
    assert found.loc[0, ["title", "artist"]].tolist() == [NAMES["title"], NAMES["artist"]]
    assert found["genre"].isna().all()


def test_twice_is_the_same_and_leaves_nothing_beside_it(store: SQLiteStore, out: Path) -> None:
    export.run(CONFIG, out, store=store)
    before, there = out.read_bytes(), set(out.parent.iterdir())
    export.run(CONFIG, out, store=store)
    assert (out.read_bytes(), set(out.parent.iterdir())) == (before, there)


def test_a_track_that_was_deleted_since_is_left_out(store: SQLiteStore, out: Path) -> None:
    store.delete(Track, {"t003": 99})
    assert export.run(CONFIG, out, store=store).written == 9
    assert "t003" not in read(out)["track_id"].tolist()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("assignments.xlsx", r"name it \.parquet or \.csv"),
        ("assignments", r"name it \.parquet or \.csv"),
        ("nowhere/assignments.csv", "there is no folder .*nowhere; make it first"),
    ],
)
def test_a_name_that_cannot_serve_is_wrong_usage(store: SQLiteStore, tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        export.run(CONFIG, tmp_path / name, store=store)


def test_a_folder_in_the_place_of_the_file_is_named(store: SQLiteStore, out: Path) -> None:
    out.mkdir()
    with pytest.raises(MurmurError, match=f"^{out}: cannot be written: "):
        export.run(CONFIG, out, store=store)
    assert not out.with_name(f"{out.name}.part").exists()


def test_without_a_run_in_force_or_its_assignments_it_says_what_to_run(store: SQLiteStore, out: Path) -> None:
    store.purge(Assignment, "run-")
    with pytest.raises(MurmurError, match="has no assignments; run `murmur publish` first"):
        export.run(CONFIG, out, store=store)
    store.purge(RunInForce, "current")
    with pytest.raises(ConfigError, match="no clusters are published yet; run `murmur publish` first"):
        export.run(CONFIG, out, store=store)
    assert not out.exists()
