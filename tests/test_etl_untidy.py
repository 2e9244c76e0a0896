"""A folder as a careless owner leaves it, through the real command: every file ends as a track or as a failure."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from untidy_library import GOOD, STRANGE, untidy

from core import open_store
from core.names import path_text
from core.records import Assignment, Failure, Run, Track

FLAGS = {
    **{f"cut to {tenth}0 %.{kind}": {"damaged", "no_rhythm"} for tenth in range(1, 10) for kind in ("mp3", "flac")},
    **{f"cut to 50 %.{kind}": {"damaged", "no_rhythm"} for kind in ("wav", "mp3", "flac", "ogg", "opus", "aac", "wma")},
    "damaged.flac": {"damaged"},
    "damaged.mp3": {"damaged"},
    "FLAC inside.mp3": set(),
    "MP3 inside.wav": set(),
    "AAC inside.flac": set(),
    "header that lies.wav": {"damaged"},
    "1 sample.wav": {"too_short", "no_rhythm"},
    "2,047 samples.wav": {"too_short", "no_rhythm"},
    "all zeros.wav": {"silent"},
    "direct current.wav": set(),
    "full scale.wav": {"clipped"},
    "3 hours of silence.flac": {"silent", "excerpt"},
    "8 channels.wav": set(),
    "1 Hz.wav": {"excerpt"},
    "8 kHz.wav": set(),
    "192 kHz.wav": set(),
    "2 GHz.wav": {"too_short", "no_rhythm"},
    "24 bit.wav": set(),
    "float64.wav": set(),
    "header of ten times the length.mp3": {"damaged"},
    "header of a tenth of the length.mp3": {"damaged"},
    "tag of 10 MB.mp3": set(),
    "AAC.m4a": set(),
    "ALAC.m4a": set(),
    "Opus.opus": set(),
    "WMA.wma": set(),
    "Ünïcödé 雨 🎵.wav": set(),
    "two\nlines.wav": set(),
    f"{'long ' * 49}!.wav": set(),
    "not UTF-8 %E4%FF.wav": set(),
    "%E4 is no escape.wav": set(),
    " -rf $(nothing) '\".wav": set(),
    "shrinks while it is read.flac": {"damaged"},
}
"""What is stored of a strange file: the flags of its track."""
NO_AUDIO = ("decode", "holds no audio that can be decoded")
REASONS = {
    "empty.mp3": ("read", "the file is empty"),
    "cut to 50 %.m4a": NO_AUDIO,
    "cut inside the header.wav": NO_AUDIO,
    "words.mp3": NO_AUDIO,
    "two lines,\nno music.wav": NO_AUDIO,
    "picture.flac": ("decode", "holds no audio"),
    "noise.ogg": NO_AUDIO,
    "header only.wav": ("decode", "holds no samples"),
    "header only.flac": NO_AUDIO,
    "header only.mp3": NO_AUDIO,
    "NaN.wav": ("decode", "holds samples that are NaN or infinite"),
    "infinity.wav": ("decode", "holds samples that are NaN or infinite"),
    "too loud.wav": ("decode", "holds samples of up to 1e+30 where 1 is full scale"),
    "no permission.wav": ("read", "cannot be read: Permission denied"),
    "pipe.wav": ("read", "is not a regular file"),
    "link to itself.wav": ("read", "cannot be read: Too many levels of symbolic links"),
    "link to nowhere.wav": ("read", "cannot be read: No such file or directory"),
    "kills its reader.wav": ("read", "its worker process died: Segmentation fault"),
    "never lets its reader go.wav": ("read", "took longer than 2 s"),
    "kills its decoder.wav": ("describe", "its worker process died: Segmentation fault"),
    "never lets its decoder go.wav": ("describe", "took longer than 2 s"),
}
"""What is stored of a bad file: the stage and the beginning of the message of its failure."""
MEMORY = 2**31


@dataclass(frozen=True)
class Outcome:
    """What a run left."""

    done: subprocess.CompletedProcess[str]
    peak: int
    """Of the memory that all workers held at a time, bytes."""
    tracks: dict[str, dict[str, Any]]
    """By the names of their files."""
    failures: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `music` and `config.yaml`."""
    folder = tmp_path_factory.mktemp("untidy")
    untidy(folder / "music")
    (folder / "config.yaml").write_text(
        f"clustering: {{engine: sklearn}}\nworkers: 2\nmemory: {MEMORY}\nmax_failures: 0.5\n"
    )
    return folder


@pytest.fixture(scope="module")
def first(folder: Path) -> Outcome:
    """Return what the first run left, in which some decoders misbehaved."""
    return run(folder, sys.executable, Path(__file__).with_name("misbehaving.py"))


def test_the_run_ends_in_peace(first: Outcome) -> None:
    assert first.done.returncode == 0, first.done.stderr
    assert "Traceback" not in first.done.stderr
    assert len(STRANGE) >= 40


def test_every_good_file_is_a_track_without_flags(first: Outcome) -> None:
    assert {name: first.tracks[name]["flags"] for name in GOOD} == {name: [] for name in GOOD}


def test_every_strange_file_is_a_track_with_its_flags_or_a_failure_with_its_reason(first: Outcome) -> None:
    assert {name: set(track["flags"]) for name, track in first.tracks.items() if name not in GOOD} == FLAGS
    reasons = {name: (failure["stage"], failure["message"]) for name, failure in first.failures.items()}
    assert reasons.keys() == REASONS.keys()
    for name, (stage, beginning) in REASONS.items():
        assert reasons[name][0] == stage
        assert reasons[name][1].startswith(beginning)
        assert "\n" not in reasons[name][1]
        assert first.failures[name]["advice"]
    files = {path_text(name) for name in STRANGE} - {"link to its folder"}
    assert {*FLAGS, *REASONS} == files


def test_all_that_can_be_read_of_a_file_is_read(first: Outcome) -> None:
    durations = {name: track["duration"] for name, track in first.tracks.items()}
    assert {name for name in GOOD if not 6.4 < durations[name] < 6.6} == set()
    assert durations["header of ten times the length.mp3"] == pytest.approx(40, abs=0.2)
    assert durations["header of a tenth of the length.mp3"] == pytest.approx(40, abs=0.2)
    assert durations["3 hours of silence.flac"] == 3 * 3600
    assert first.tracks["two\nlines.wav"]["title"] == "two lines"
    assert first.tracks["tag of 10 MB.mp3"]["title"] == "Large"
    for tenth in range(1, 10):
        assert durations[f"cut to {tenth}0 %.mp3"] == pytest.approx(0.65 * tenth, abs=0.2)
        assert durations[f"cut to {tenth}0 %.flac"] == pytest.approx(0.65 * tenth, abs=0.2)


def test_nothing_that_is_not_finite_is_stored(folder: Path, first: Outcome) -> None:
    with closing(open_store(f"sqlite:///{folder}/murmur.db", create=False)) as store:
        records = [record for kind in (Track, Failure, Run, Assignment) for record in store.scan(kind)]
    assert sum(not math.isfinite(number) for record in records for number in numbers(record)) == 0
    assert len({json.dumps(shape(track["features"])) for track in first.tracks.values()}) == 1


def test_all_workers_together_stay_within_the_memory(first: Outcome) -> None:
    assert 0 < first.peak <= MEMORY


def test_the_next_runs_try_nothing_again_but_what_has_changed(folder: Path, first: Outcome) -> None:
    murmur = Path(sys.executable).with_name("murmur")
    reports = [json.loads(run(folder, murmur).done.stdout)["reports"]["extract"] for _ in range(2)]
    assert [(report["tried"], report["computed"], report["known_failures"]) for report in reports] == [
        (1, 1, len(REASONS)),  # what has shrunk
        (0, 0, len(REASONS)),
    ]
    assert reports[1]["sent"] == 0


def run(folder: Path, *command: str | Path) -> Outcome:
    """Run a command over the folder, with its permissions in force for root too."""
    mind_permissions = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    with subprocess.Popen(
        [*mind_permissions, *command, "run", "music", "--json"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        peaks = [0]
        watch = threading.Thread(target=lambda: peaks.extend(held_by_workers(running)))
        watch.start()
        try:
            out, err = running.communicate(timeout=300)
        finally:
            running.kill()
            watch.join()
    done = subprocess.CompletedProcess(running.args, running.returncode, out, err)
    with closing(open_store(f"sqlite:///{folder}/murmur.db", create=False)) as store:
        tracks = {Path(track["source"]["path"]).name: track for track in store.scan(Track)}
        failures = {Path(failure["path"]).name: failure for failure in store.scan(Failure)}
    return Outcome(done, max(peaks), tracks, failures)


def held_by_workers(running: subprocess.Popen[str]) -> Iterator[int]:
    """Yield what the workers hold together, bytes, until their parent has ended."""
    while running.poll() is None:
        held = 0
        for worker in children(running.pid):
            with suppress(OSError):
                if "spawn_main" in (worker / "cmdline").read_text():
                    held += int((worker / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        yield held
        time.sleep(0.02)


def children(pid: int) -> list[Path]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int((process / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(process)
    return found


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from numbers(one)
    elif isinstance(value, int | float):
        yield value


def shape(features: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, int]]:
    return {block: {name: len(values) for name, values in statistics.items()} for block, statistics in features.items()}
