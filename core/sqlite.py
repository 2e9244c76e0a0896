"""One SQLite file for several processes: WAL, and a file lock beside it that every write holds.

The lock makes writers fair and keeps a checkpoint from running beside a write of another
process, which SQLite before 3.51.3 may answer with a lost commit.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

from core.errors import BackendError, ConfigError
from core.names import sqlite_path

CHECKPOINT_BYTES = 4 << 20
"""Size of the write-ahead log from which a write moves it into the database."""
LONG_LOG = 8
"""So many times that size make a write wait for the readers that keep the log from beginning anew."""
READERS_MS = 100
"""How long it waits for them."""
BUSY_SECONDS = 30.0
"""How long a program that does not know the file lock is waited for."""
MAKE_ROOM = "make room on the disk and run the same command again"
SHRINK_PAGES = 2000
"""Pages given back in one transaction, so that no other writer waits long: 8 MB, about 0.1 s."""

log = logging.getLogger(__name__)


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
        if not url.startswith("sqlite:///"):
            raise ConfigError(f"{url}: write sqlite:///relative.db or sqlite:////absolute.db")
        self.path = sqlite_path(url)
        if not self.path.exists() and not create:
            folder = self.path.parent.absolute()
            raise ConfigError(f"no {self.path.name} in {folder}: run `murmur run AUDIO_DIR` first")
        if not self.path.parent.is_dir():
            raise ConfigError(f"{self.path.parent}: no such folder for {self.path.name}; create it first")
        self._schema = schema
        if self.path.exists():  # a new file is made when it is first used
            self.version()

    def read(self, statement: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Return all rows; no statement stays open, so that a write may follow at once."""
        with self._translated():
            return self._connection.execute(statement, values).fetchall()

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """Run one transaction under the file lock: durable at the end, undone if it raises."""
        with self._translated():
            connection = self._connection  # made under the lock too, so before it is taken here
            with self.locked():
                connection.execute("BEGIN IMMEDIATE")
                with ExitStack() as undo:
                    undo.callback(connection.rollback)
                    yield connection
                    connection.execute("COMMIT")
                    undo.pop_all()
                self._checkpoint(connection)

    def shrink(self) -> None:
        """Give pages that are free back to the system, a few at a time."""
        (n_free,) = self.read("PRAGMA freelist_count")[0]
        for _ in range(0, n_free, SHRINK_PAGES):
            with self._translated(), self.locked():
                # `execute` would stop after the first page
                self._connection.executescript(f"PRAGMA incremental_vacuum({SHRINK_PAGES})")
                self._checkpoint(self._connection)

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
        lease = open_lock(self._lease_file(name))
        try:
            fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lease)
            return None
        return lease

    def holder(self, name: str) -> str:
        """Return what the holder of a lease has written into its file."""
        return self._lease_file(name).read_text("utf-8") or "another process"

    def version(self) -> int:
        """Return a number that changes when another connection has written."""
        return int(self.read("PRAGMA data_version")[0][0])

    def size(self) -> int:
        """Return the bytes of the database and its write-ahead log."""
        return _bytes(self.path) + _bytes(self._beside("-wal"))

    def close(self) -> None:
        """Close the connection; the last one that may write moves the log into the database, under the lock."""
        if "_connection" in vars(self):
            with self._translated(), self.locked() if os.access(self.path, os.W_OK) else nullcontext():
                self._connection.close()

    @cached_property
    def _connection(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
        with ExitStack() as undo:
            undo.callback(connection.close)
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA wal_autocheckpoint=0")
            connection.execute(f"PRAGMA journal_size_limit={CHECKPOINT_BYTES}")
            if self._missing(connection):
                self._prepare(connection)
            undo.pop_all()
        return connection

    def _checkpoint(self, connection: sqlite3.Connection) -> None:
        """Move the log into the database where it has become long.

        What is committed is durable already, so that no error of this one may look like one of the commit.
        """
        size = _bytes(self._beside("-wal"))
        if size <= CHECKPOINT_BYTES:
            return
        mode = "PASSIVE" if size <= LONG_LOG * CHECKPOINT_BYTES else "RESTART"
        connection.execute(f"PRAGMA busy_timeout={READERS_MS}")
        try:
            connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()
        except sqlite3.Error as error:
            log.warning("%s: the write-ahead log stays %d bytes long: %s", self.path, size, _explain(error))
        finally:
            connection.execute(f"PRAGMA busy_timeout={int(1000 * BUSY_SECONDS)}")

    def _lease_file(self, name: str) -> Path:
        return self._beside(f"-{name}.lease")

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)

    def _missing(self, connection: sqlite3.Connection) -> list[str]:
        there = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        return [statement for name, statement in self._schema.items() if name not in there]

    def _prepare(self, connection: sqlite3.Connection) -> None:
        with self.locked():
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
            (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
            if mode != "wal":
                raise BackendError(f"{self.path}: no write-ahead log is possible here; put the file on a local disk")
            connection.execute("BEGIN IMMEDIATE")
            for statement in self._missing(connection):
                connection.execute(statement)
            connection.execute("COMMIT")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise BackendError(f"{self.path}: {_explain(error)}", retriable=_is_busy(error)) from error


def open_lock(path: Path) -> int:
    """Open a file to lock, making it where it is missing."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        advice = MAKE_ROOM if error.errno in (errno.ENOSPC, errno.EDQUOT) else "make its folder writable"
        raise BackendError(f"{path}: {error.strerror}; {advice}") from error


def _bytes(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _is_busy(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _explain(error: sqlite3.Error) -> str:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    advice = {
        sqlite3.SQLITE_FULL: f"; {MAKE_ROOM}",
        sqlite3.SQLITE_IOERR: f"; where a quota or limit is reached, {MAKE_ROOM}; else see whether the disk fails",
        sqlite3.SQLITE_NOTADB: "; name another file in the configuration",
        sqlite3.SQLITE_CANTOPEN: "; check that the folder is writable",
        sqlite3.SQLITE_READONLY: "; make the file and its folder writable",
        sqlite3.SQLITE_BUSY: "; another program holds it, try again",
    }
    return f"{error}{advice.get(code, '')}"
