"""One SQLite file for several processes: WAL, and a file lock beside it that every write holds.

The lock makes writers fair and keeps a checkpoint from running beside a write of another
process, which SQLite before 3.51.3 may answer with a lost commit.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from core.errors import BackendError, ConfigError
from core.names import sqlite_path

CHECKPOINT_BYTES = 4 << 20
"""Size of the write-ahead log from which a write moves it into the database."""


class Database:
    """A connection to the file; not for use by two threads.

    Parameters
    ----------
    url : str
        ``sqlite:///relative.db`` or ``sqlite:////absolute.db``.
    schema : mapping of str to str
        Name of each table and index → the statement that creates it; run where one is missing.
    create : bool
        Whether a missing file may be made.

    Raises
    ------
    ConfigError
        If the file is missing and may not be made.
    BackendError
        If the file cannot be opened.
    """

    def __init__(self, url: str, schema: Mapping[str, str], *, create: bool) -> None:
        self.path = sqlite_path(url)
        if not self.path.exists() and not create:
            folder = self.path.parent.absolute()
            raise ConfigError(f"no {self.path.name} in {folder}: run `murmur run AUDIO_DIR` first")
        if not self.path.parent.is_dir():
            raise ConfigError(f"{self.path.parent}: no such folder for {self.path.name}; create it first")
        with self._translated():
            self._connection = sqlite3.connect(self.path, timeout=30, isolation_level=None)
            self._connection.execute("PRAGMA synchronous=FULL")
            self._connection.execute("PRAGMA wal_autocheckpoint=0")
            if self._missing(schema):
                self._prepare(schema)

    def read(self, statement: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Return all rows; no statement stays open, so that a write may follow at once."""
        with self._translated():
            return self._connection.execute(statement, values).fetchall()

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """Run one transaction under the file lock: durable at the end, undone if it raises."""
        with self._translated(), self.locked():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
            if _bytes(self._beside("-wal")) > CHECKPOINT_BYTES:
                self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the file lock; a killed process lets go of it."""
        lock = open_lock(self._beside("-lock"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def lease(self, name: str) -> int | None:
        """Take a lease that lasts until the returned descriptor is closed; None if it is taken."""
        lease = open_lock(self._beside(f"-{name}.lease"))
        try:
            fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lease)
            return None
        return lease

    def version(self) -> int:
        """Return a number that changes when another connection has written."""
        return int(self.read("PRAGMA data_version")[0][0])

    def size(self) -> int:
        """Return the bytes of the database and its write-ahead log."""
        return _bytes(self.path) + _bytes(self._beside("-wal"))

    def close(self) -> None:
        """Close the connection; the last one moves the log into the database, under the lock."""
        with self._translated(), self.locked():
            self._connection.close()

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)

    def _missing(self, schema: Mapping[str, str]) -> list[str]:
        there = {name for (name,) in self._connection.execute("SELECT name FROM sqlite_master")}
        return [statement for name, statement in schema.items() if name not in there]

    def _prepare(self, schema: Mapping[str, str]) -> None:
        with self.locked():
            self._connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
            self._connection.execute("PRAGMA journal_mode=WAL")
        with self.write() as connection:
            for statement in self._missing(schema):
                connection.execute(statement)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise BackendError(f"{self.path}: {_explain(error)}", retriable=_is_busy(error)) from error


def open_lock(path: Path) -> int:
    """Open a file to lock, making it where it is missing."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


def _bytes(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _is_busy(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _explain(error: sqlite3.Error) -> str:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    advice = {
        sqlite3.SQLITE_FULL: "; make room on the disk and run the same command again",
        sqlite3.SQLITE_NOTADB: "; name another file in the configuration",
        sqlite3.SQLITE_CANTOPEN: "; check that the folder is writable",
        sqlite3.SQLITE_READONLY: "; make the file and its folder writable",
        sqlite3.SQLITE_BUSY: "; another program holds it, try again",
    }
    return f"{error}{advice.get(code, '')}"
