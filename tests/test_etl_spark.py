"""The engine on Spark: what the local one does, but done and sent by executors."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pyarrow as pa
import pytest
from etl_library import Library, tone

from core.config import Config, Spark
from core.errors import BackendError, ConfigError
from core.records import Track
from core.spark import java_version, open_spark
from etl import extract
from etl.extract import ExtractReport
from etl.pool import Task
from etl.spark import Order, work_through
from etl.work import Work

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

MASTER = "local[2,2]"
"""Two at once; what fails is tried a second time."""
DESCRIBE = extract.describe
SECONDS = 60.0
"""How long anything may take."""


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """Return a session that extractions find, and leave open; the Python of its executors knows these tests."""
    try:
        java_version()
    except BackendError as error:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(str(error))
    python = tmp_path_factory.mktemp("bin") / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{Path(__file__).parent}" exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    with open_spark(Spark(master=MASTER, options={"spark.pyspark.python": str(python)})) as session:
        yield session


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 12 recordings and a copy, two files without audio, and a catalogue."""
    folder = tmp_path_factory.mktemp("library")
    audio = folder / "audio"
    for n in range(9):
        tone(audio / f"{n}.{('wav', 'flac', 'mp3')[n % 3]}", 150 * 1.3**n, title=f"Tag {n}")
    tone(audio / "renamed.wav", 500)
    (audio / "renamed.wav").rename(audio / os.fsdecode(b"not UTF-8 \xff.wav"))
    tone(audio / "killer.wav", 2000)
    tone(audio / "parricide.wav", 2500)
    shutil.copy(audio / "4.flac", audio / "copy of 4.flac")
    (audio / "empty.wav").touch()
    (audio / "words.mp3").write_text("These are words, no music.\n" * 99)
    (folder / "tracks.csv").write_text("filename,title,mood\n0.wav,Nought,dark\n1.flac,One,bright\n")
    return folder


@pytest.fixture(scope="module")
def local(folder: Path) -> tuple[Library, ExtractReport]:
    """Return what the local engine makes of the folder."""
    library = on(folder, f"sqlite:///{folder}/local.db")
    mark(folder).touch()  # here the workers work for the test itself
    report = extracted(library, "local")
    mark(folder).unlink()
    return library, report


@pytest.fixture(scope="module")
def spark(session: SparkSession, folder: Path, local: tuple[Library, ExtractReport]) -> tuple[Library, ExtractReport]:
    """Return what the engine on Spark makes of it."""
    library = on(folder, f"sqlite:///{folder}/spark.db")
    return library, extracted(library, "spark")


def test_both_engines_give_the_same_records_and_report(
    local: tuple[Library, ExtractReport], spark: tuple[Library, ExtractReport]
) -> None:
    assert contents(spark[0]) == contents(local[0])
    assert asdict(replace(spark[1], seconds=0)) == asdict(replace(local[1], seconds=0))
    assert (spark[1].computed, spark[1].copies, spark[1].failed, spark[1].sent) == (11, 1, 3, 14)


def test_a_decoder_that_kills_its_process_is_blamed_on_its_file(spark: tuple[Library, ExtractReport]) -> None:
    failures = spark[0].failed()
    assert sorted(failures) == ["empty.wav", "killer.wav", "words.mp3"]
    assert failures["killer.wav"].message == "its worker process died: Segmentation fault"


def test_what_an_executor_had_in_hand_when_it_was_killed_is_done_again_and_its_worker_ends(
    folder: Path, spark: tuple[Library, ExtractReport]
) -> None:
    assert "parricide.wav" in spark[0].stored()
    worker = Path("/proc", mark(folder).read_text())
    wait_until(lambda: not worker.exists())


def test_run_again_it_sends_nothing(spark: tuple[Library, ExtractReport]) -> None:
    report = spark[0].extract(engine="spark")
    assert (report.sent, report.tried, report.unchanged, report.known_failures) == (0, 0, 12, 3)


def test_a_changed_row_is_sent_with_the_stored_features(spark: tuple[Library, ExtractReport]) -> None:
    library = spark[0]
    before = library.stored()["0.wav"]
    rows = library.csv.read_text()
    library.csv.write_text(rows.replace("Nought", "Zero"))
    report = library.extract(engine="spark")
    library.csv.write_text(rows)
    assert (report.sent, report.computed) == (1, 0)
    after = library.sent()["0.wav"]
    assert after
    assert after.title == "Zero"
    assert after.features == before.features


@pytest.mark.servers
def test_executors_send_to_kafka(
    session: SparkSession, folder: Path, local: tuple[Library, ExtractReport], kafka_url: str
) -> None:
    config = {"bus": kafka_url, "topics": {"prefix": f"spark{uuid4().hex[:8]}.", "partitions": 3}}
    library = on(folder, f"sqlite:///{folder}/kafka.db", **config)
    mark(folder).touch()
    report = extracted(library, "spark")
    assert contents(library) == contents(local[0])
    assert asdict(replace(report, seconds=0)) == asdict(replace(local[1], seconds=0))


def test_what_an_executor_cannot_do_is_one_line(session: SparkSession, folder: Path) -> None:
    library = on(folder, f"sqlite:///{folder}/short.db", memory="512MiB")
    with pytest.raises(BackendError, match=r"^Spark \(local\[2,2\]\) failed: memory: 256 MiB for each of 2 tasks .*$"):
        library.extract(engine="spark")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"root": "/nowhere/at all"}, "^/nowhere/at all: no such folder on .*; mount it there"),
        ({"feature_set": "another"}, "has another version of Murmuration; install the driver's"),
        ({"cores": 100_000, "limited": True}, "MiB for each of 100000 tasks side by side on .*; set spark.task.cpus"),
    ],
)
def test_an_executor_says_what_it_lacks(changed: dict[str, Any], told: str, tmp_path: Path) -> None:
    config = Config.model_validate({"bus": f"sqlite:///{tmp_path}/murmur.db"})
    order = Order(len, "read", None, False, config, config.feature_set, str(tmp_path), 1)
    share = pa.record_batch({"share": [pickle.dumps([Task(0, "abc", 60.0)])]})
    with pytest.raises(ConfigError, match=told):
        list(work_through(pickle.dumps(replace(order, **changed)), iter([share])))


def test_executors_elsewhere_need_a_bus_that_is_no_file(tmp_path: Path) -> None:
    tone(tmp_path / "audio" / "low.wav", 110)
    library = on(tmp_path, f"sqlite:///{tmp_path}/murmur.db", spark={"master": "spark://host:7077"})
    with pytest.raises(
        ConfigError, match=r"^bus\.url: .*spark://host:7077.*murmur\.db; use kafka://.*--engine local`$"
    ):
        library.extract(engine="spark")


def test_without_java_the_other_engine_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tone(tmp_path / "audio" / "low.wav", 110)
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendError, match=r"^Spark needs Java 17: .*`--engine local`$"):
        on(tmp_path, f"sqlite:///{tmp_path}/murmur.db").extract(engine="spark")


def test_ctrl_c_ends_every_process_and_the_next_run_goes_on(
    session: SparkSession, folder: Path, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"spark: {{master: '{MASTER}'}}\n")
    murmur = Path(sys.executable).with_name("murmur")
    with subprocess.Popen(
        [murmur, "--config", config, "extract", folder / "audio", "--engine", "spark"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stderr
        wait_until(lambda: process.poll() or any("spawn_main" in line for line in of_session(process.pid)))
        process.send_signal(signal.SIGINT)
        lines = [*process.stderr]
    assert process.returncode == 130
    assert lines[-1] == "murmur: stopped; the same command goes on from here\n"
    assert not any(line.startswith("Traceback") for line in lines)
    wait_until(lambda: not of_session(process.pid))
    library = on(folder, f"sqlite:///{tmp_path}/murmur.db")
    library.extract()
    library.load()
    assert (len(library.stored()), len(library.failed())) == (12, 2)


def misbehave(work: Work) -> list[Track]:
    """Describe a file, but for one that kills its worker, and one that at first kills whom its worker works for."""
    path = Path(work.drafts[0].file.real)
    if path.name == "killer.wav":
        os.kill(os.getpid(), signal.SIGSEGV)
    if path.name == "parricide.wav" and not mark(path.parents[1]).exists():
        mark(path.parents[1]).write_text(str(os.getpid()))
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(SECONDS)
    return DESCRIBE(work)


def mark(folder: Path) -> Path:
    """Return what is there once whom the worker works for was killed."""
    return folder / "killed"


def on(folder: Path, url: str, **changed: Any) -> Library:
    """Return the folder with a store, and with the bus beside it unless that is elsewhere."""
    tree = {"workers": 2, "bus": url, "spark": {"master": MASTER}} | changed
    return Library(folder, Config.model_validate(tree), url, tree["bus"])


def extracted(library: Library, engine: Any) -> ExtractReport:
    """Extract a library with decoders that misbehave, and load it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extract, "describe", misbehave)
        report = library.extract(engine=engine)
    library.load()
    return report


def contents(library: Library) -> list[Any]:
    """Return what is stored, but for what may vary."""
    found = (library.stored(), library.failed())
    return [{name: record.model_dump(exclude={"rev", "failed_at"}) for name, record in kind.items()} for kind in found]


def of_session(number: int) -> list[str]:
    """Return the command lines of a session's processes."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                if int((process / "stat").read_text().rpartition(")")[2].split()[3]) == number:
                    found.append((process / "cmdline").read_text())
            except OSError:  # it has ended
                continue
    return found


def wait_until(holds: Any) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)
