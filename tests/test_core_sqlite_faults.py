"""What goes wrong around the SQLite file: a full disk, other programs, missing rights, readers that never pause."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from etl_library import NAMES
from test_core_bus import everything, send
from test_core_store import track
from test_etl_load import put

from core.bus import Bus, open_bus, read_to_end
from core.config import Config
from core.errors import BackendError
from core.names import sqlite_path
from core.records import Track
from core.sqlite import Database
from core.sqlite_bus import SCHEMA
from core.store import open_store
from etl import load
from etl.messages import create_topics

FULL = "full; make room on the disk and run the same command again"


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/murmur.db"


@pytest.fixture
def bus(url: str) -> Iterator[Bus]:
    with closing(open_bus(url)) as bus:
        create_topics(bus, Config())
        yield bus


def test_every_connection_writes_through_to_the_disk(url: str) -> None:
    with closing(Database(url, SCHEMA, create=True)) as database, database.write() as connection:
        (synchronous,) = connection.execute("PRAGMA synchronous").fetchone()
        (journal,) = connection.execute("PRAGMA journal_mode").fetchone()
    assert (synchronous, journal) == (2, "wal")


# A disk that is full


@pytest.fixture
def fill(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return what lets no file that is opened from then on grow; ``monkeypatch.undo`` makes room again."""

    class Full(sqlite3.Connection):
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **options)  # type: ignore[arg-type]
            self.execute("PRAGMA max_page_count=1")  # as many as there are

    return lambda: monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Full))


def test_on_a_full_disk_a_transaction_fails_in_one_line_as_a_whole_and_can_be_sent_again(
    url: str, bus: Bus, fill: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    send(bus, NAMES.tracks, b"before")
    bus.close()

    def publish(value: bytes) -> None:
        with closing(open_bus(url)) as opened:
            producer = opened.producer("publisher")
            with producer.transaction():
                producer.send(NAMES.failed, b"small", b"with it")
                producer.send(NAMES.tracks, b"large", value)

    fill()
    with pytest.raises(BackendError, match=f"{FULL}$") as caught:
        publish(b"large" * 100_000)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    with closing(open_bus(url)) as opened:
        assert everything(opened, NAMES.tracks, NAMES.failed) == [b"before"]
        publish(b"again")
        assert sorted(filter(None, everything(opened, NAMES.tracks, NAMES.failed))) == [b"again", b"before", b"with it"]


def test_beyond_a_limit_of_the_system_the_command_says_so_in_one_line_and_loses_nothing(
    url: str, bus: Bus, tmp_path: Path
) -> None:
    put(bus, *(track(f"{n}", n_values=1000) for n in range(300)))
    bus.close()
    blocks = sqlite_path(url).stat().st_size // 4096  # of 1 kB: a quarter of the file, less than the log needs
    program = f"{Path(sys.executable).with_name('murmur')} load"
    command = ["bash", "-c", f"ulimit -f {blocks}; exec {program}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    errors = [line for line in done.stderr.splitlines() if line.startswith("murmur:")]
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert len(errors) == 1
    assert "make room on the disk and run the same command again" in errors[0]
    with closing(open_store(url)) as store, closing(open_bus(url)) as opened:
        assert load.run(Config(), store=store, bus=opened).read == 300
        assert store.count(Track) == 300


def test_a_log_that_cannot_be_moved_into_the_database_does_not_make_a_commit_look_failed(
    url: str, bus: Bus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Stuck(sqlite3.Connection):
        def execute(self, statement: str, *arguments: object) -> sqlite3.Cursor:  # type: ignore[override]
            if "wal_checkpoint" in statement:
                raise sqlite3.OperationalError("database or disk is full")
            return super().execute(statement, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Stuck))
    monkeypatch.setattr("core.sqlite.CHECKPOINT_BYTES", 0)
    with closing(open_bus(url)) as opened:
        send(opened, NAMES.tracks, b"1")
    assert "the write-ahead log stays" in caplog.text
    assert everything(bus, NAMES.tracks) == [b"1"]


# A file that others hold, or that is not ours to write


def test_a_file_that_another_program_holds_is_one_line_worth_another_try_and_nothing_is_lost(
    url: str, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.sqlite.BUSY_SECONDS", 0.1)
    with closing(open_bus(url)) as opened, closing(sqlite3.connect(sqlite_path(url), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(BackendError, match=r"another program holds it, try again$") as caught:
            send(opened, NAMES.tracks, b"1")
        assert caught.value.retriable
        other.execute("COMMIT")
        assert everything(opened, NAMES.tracks) == []
        send(opened, NAMES.tracks, b"1")
        assert everything(opened, NAMES.tracks) == [b"1"]


@pytest.mark.parametrize(
    ("what", "read", "written"),
    [
        ("folder", "write a readonly database; make the file and its folder writable", "make the file and its folder"),
        ("file", "1 messages", "Permission denied; make its folder writable"),
        ("open elsewhere", "1 messages", "Permission denied; make its folder writable"),
    ],
)
def test_what_may_not_be_written_can_be_read_or_says_in_one_line_what_to_do(what: str, read: str, written: str) -> None:
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        folder = Path(name)
        bus = open_bus(f"sqlite:///{folder}/murmur.db")
        create_topics(bus, Config())
        send(bus, NAMES.tracks, b"1")
        if what != "open elsewhere":
            bus.close()
        for file in folder.iterdir():
            file.chmod(0o444)
        folder.chmod(0o777 if what == "file" else 0o555)
        process = spawn.Process(target=read_and_write, args=(name, theirs))
        process.start()
        process.join()
        bus.close()
    said = [ours.recv() for _ in range(2)]
    assert read in said[0]
    assert written in said[1]
    assert "\n" not in "".join(said)


def read_and_write(folder: str, said: object) -> None:
    """Try both as somebody who may read alone: what the process of the test above runs."""
    os.chdir(folder)
    if os.geteuid() == 0:
        os.setgroups([])
        os.setuid(65534)
    for call in (lambda bus: f"{len(list(read_to_end(bus, [NAMES.tracks])))} messages", write_one):
        try:
            with closing(open_bus("sqlite:///murmur.db", create=False)) as bus:
                answer = call(bus)
        except BackendError as error:
            answer = str(error)
        said.send(answer)  # type: ignore[attr-defined]


def write_one(bus: Bus) -> str:
    send(bus, NAMES.tracks, b"2")
    return "written"


# Readers that never pause


def test_the_log_beside_the_file_stays_bounded_while_others_read_without_a_pause(
    url: str, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.sqlite.CHECKPOINT_BYTES", 50_000)
    send(bus, NAMES.tracks, *[b"x" * 1000])
    over = threading.Event()

    def read() -> None:
        with closing(open_bus(url)) as opened:
            while not over.is_set():
                everything(opened, NAMES.tracks, NAMES.failed)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    log = sqlite_path(url).with_name("murmur.db-wal")
    longest = 0
    with closing(open_bus(url)) as opened:
        for n in range(200):
            send(opened, NAMES.tracks, *[b"x" * 1000] * 50, key=b"%d" % (n % 100))
            longest = max(longest, log.stat().st_size)
    over.set()
    for reader in readers:
        reader.join()
    assert longest < 4_000_000


def test_a_log_that_a_reader_of_another_program_holds_does_not_stop_the_writers(
    url: str, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.sqlite.CHECKPOINT_BYTES", 1000)
    monkeypatch.setattr("core.sqlite.READERS_MS", 1)
    with closing(sqlite3.connect(sqlite_path(url), isolation_level=None)) as other:
        send(bus, NAMES.tracks, b"1")
        other.execute("BEGIN")
        assert other.execute("SELECT COUNT(*) FROM messages").fetchone() == (1,)
        for n in range(20):
            send(bus, NAMES.tracks, b"x" * 1000, key=b"%d" % n)
        assert other.execute("SELECT COUNT(*) FROM messages").fetchone() == (1,)
    assert len(everything(bus, NAMES.tracks)) == 21
