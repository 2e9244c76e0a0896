from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from core import open_store
from core.config import Config
from core.errors import ConfigError, MurmurError
from core.jobs import Progress
from core.records import Source, Track
from core.store import Store
from etl import export
from features.matrix import frame

CONFIG = Config()
SHAPE = {"mfcc": {"mean": 20, "std": 20}, "zcr": {"mean": 1}, "fluctuation": {"median": 256}}


def track(number: int, feature_set: str = CONFIG.feature_set) -> Track:
    rng = np.random.default_rng(number)
    features = {
        block: {name: rng.normal(size=size).astype(np.float32).tolist() for name, size in of.items()}
        for block, of in SHAPE.items()
    }
    source = Source(
        path=f"/music/{number}.flac",
        size=1,
        mtime_ns=1,
        digest=f"{number}",
        codec="flac",
        sample_rate=44_100,
        channels=2,
        decoder="libsndfile 1.2",
        librosa="0.11.0",
    )
    return Track(
        track_id=f"fma:{number}", rev=1, duration=1.5, source=source, feature_set=feature_set, features=features
    )


@pytest.fixture
def tracks() -> list[Track]:
    return [track(number) for number in range(5)]


@pytest.fixture
def store(tmp_path: Path, tracks: list[Track]) -> Iterator[Store]:
    """Return a store with five tracks of the feature set and two of another."""
    with closing(open_store(f"sqlite:///{tmp_path}/murmur.db")) as store:
        store.upsert([*tracks, track(7, "other"), track(8, "other")])
        yield store


@pytest.fixture(params=["parquet", "csv"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / f"features.{request.param}"


def read(out: Path) -> pd.DataFrame:
    """Read a file as the documentation says."""
    return pd.read_parquet(out) if out.suffix == ".parquet" else pd.read_csv(out, index_col=0, header=[0, 1, 2])


def test_what_is_read_back_is_the_frame_of_the_tracks_however_many_are_held_at_a_time(
    store: Store, out: Path, tracks: list[Track], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, in Parquet also the type."""
    for batch in (2, 2000):
        monkeypatch.setattr(export, "BATCH", batch)
        report = export.run(CONFIG, out, store=store)
        assert (report.read, report.written, report.other_feature_sets) == (5, 5, 2)
        found = read(out)
        if out.suffix == ".csv":
            found = found.astype(np.float32)
        pd.testing.assert_frame_equal(found, frame(tracks), check_exact=True)


def test_progress_tells_of_each_batch(store: Store, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "BATCH", 2)
    seen: list[Progress] = []
    export.run(CONFIG, out, store=store, progress=seen.append)
    assert seen == [Progress("export", done, 5) for done in (2, 4, 5)]


def test_a_run_that_is_stopped_leaves_what_was_there_and_nothing_beside_it(store: Store, out: Path) -> None:
    out.write_text("earlier")
    there = set(out.parent.iterdir())

    def interrupt(_: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export.run(CONFIG, out, store=store, progress=interrupt)
    assert out.read_text() == "earlier"
    assert set(out.parent.iterdir()) == there


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("features.xlsx", r"name it \.parquet or \.csv"),
        ("features", r"name it \.parquet or \.csv"),
        ("nowhere/features.csv", "there is no folder .*nowhere; make it first"),
    ],
)
def test_a_name_that_cannot_serve_is_wrong_usage(store: Store, tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        export.run(CONFIG, tmp_path / name, store=store)


def test_a_file_that_cannot_be_written_is_named_with_the_reason(
    store: Store, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(MurmurError, match=f"^{out}: cannot be written: No space left"):
        export.run(CONFIG, out, store=store)
    assert not out.exists()


def test_without_a_track_of_the_feature_set_there_is_nothing_to_export(tmp_path: Path, store: Store, out: Path) -> None:
    coarser = Config.model_validate({"audio": {"sample_rate": 16_000}})
    with pytest.raises(MurmurError, match="all 7 tracks have features of other settings"):
        export.run(coarser, out, store=store)
    with (
        closing(open_store(f"sqlite:///{tmp_path}/empty.db")) as empty,
        pytest.raises(MurmurError, match="no track to export; run `murmur run AUDIO_DIR` first"),
    ):
        export.run(CONFIG, out, store=empty)
    assert not out.exists()
