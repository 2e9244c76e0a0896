"""The synthesised library."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

SCRIPT = Path(__file__).parents[1] / "scripts" / "synthesise.py"


def synthesise(folder: Path) -> Path:
    subprocess.run([sys.executable, SCRIPT, folder], check=True)
    return folder


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metadata.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesise(tmp_path_factory.mktemp("library"))


def test_each_row_has_its_file_and_each_file_its_row(library: Path) -> None:
    names = [row["filename"] for row in rows(library)]
    assert sorted([*names, "metadata.csv"]) == sorted(path.name for path in library.iterdir())
    assert list(rows(library)[0]) == ["filename", "title", "artist", "album", "genre", "year"]
    assert len({row["title"] for row in rows(library)}) == len(names) == 40


def test_there_are_ten_tracks_of_each_of_four_kinds_and_every_kind_comes_in_every_format(library: Path) -> None:
    assert set(Counter(row["genre"] for row in rows(library)).values()) == {10}
    kinds = {(row["genre"], Path(row["filename"]).suffix) for row in rows(library)}
    assert len(kinds) == 4 * 4
    assert {suffix for _, suffix in kinds} == {".wav", ".flac", ".ogg", ".mp3"}


def test_tracks_last_8_to_15_seconds_and_differ_in_level(library: Path) -> None:
    sounds = [soundfile.read(library / row["filename"]) for row in rows(library)]
    assert all(8 <= len(y) / sample_rate <= 15.1 for y, sample_rate in sounds)
    peaks = [np.abs(y).max() for y, _ in sounds]
    assert max(peaks) <= 1
    assert max(peaks) > 2 * min(peaks)


def test_the_samples_are_the_same_at_every_call_and_an_unfinished_library_is_written_anew(
    library: Path, tmp_path: Path
) -> None:
    (tmp_path / rows(library)[0]["filename"]).write_bytes(b"half a file")
    again = synthesise(tmp_path)
    assert rows(again) == rows(library)
    for row in rows(library):
        once, _ = soundfile.read(library / row["filename"])
        twice, _ = soundfile.read(again / row["filename"])
        np.testing.assert_array_equal(once, twice)


def test_a_finished_library_is_left_as_it_is(library: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in library.iterdir()}
    synthesise(library)
    assert {path: path.stat().st_mtime_ns for path in library.iterdir()} == before


def test_an_option_is_refused_with_the_usage_and_makes_no_folder(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--help"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "usage: python scripts/synthesise.py FOLDER\n")
    assert list(tmp_path.iterdir()) == []
