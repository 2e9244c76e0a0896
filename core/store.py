"""The `Store` seam: collections of records, guarded by revision, on SQLite or MongoDB."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, TypeVar

from core.errors import BackendError, ConfigError
from core.names import bare_url, utc_now
from core.records import Record

Document = dict[str, Any]
R = TypeVar("R", bound=Record)
LEASE_SECONDS = 30.0
"""How long a lease outlives a holder that was killed, where the system does not free it at once."""

Confirm = Callable[[], None]
"""Raises `BackendError` if a lease was lost; else it is held for its time from now on."""


class Upserted(NamedTuple):
    """What became of a batch. Records that are neither were stale, which is fine."""

    written: int
    refused: dict[str, str]
    """Key → why this store can never take that record."""


class Store(Protocol):
    """Collections of records.

    What is written is durable when the call returns. Every method raises `BackendError`. A store can be pickled: what
    comes out in another process is a connection of its own to the same collections.
    """

    url: str
    """Without user info and options: safe to print."""

    def upsert(self, records: Iterable[Record]) -> Upserted:
        """Write the records whose `rev` is above the stored one, deletion marks included.

        The records are of one kind, and may be made as they are asked for. The same batch twice is the same as once.
        """

    def delete(self, kind: type[Record], revs: Mapping[str, int]) -> Upserted:
        """Mark keys as deleted at a `rev`, guarded as `upsert` is.

        A mark hides the record from every reader, and an older record cannot bring it back.
        """

    def get(self, kind: type[R], key: str) -> R | None:
        """Return one record, None where it is missing or deleted."""

    def scan(
        self,
        kind: type[Record],
        *,
        fields: Sequence[str] | None = None,
        where: Mapping[str, Any] | None = None,
        prefix: str = "",
        after: str = "",
        until: str | None = None,
    ) -> Iterator[Document]:
        """Stream documents in order of their key, in bounded memory, while others write.

        Parameters
        ----------
        kind : type of Record
            Which collection.
        fields : sequence of str, optional
            Top-level fields to return; bulky fields that are left out are never read.
        where : mapping of str to scalar, optional
            Top-level fields that must be equal.
        prefix : str
            Only keys that start so.
        after : str
            Only keys above this one.
        until : str, optional
            Only keys up to this one, itself included.
        """

    def splits(self, kind: type[Record], n_parts: int) -> list[str]:
        """Return at most `n_parts` − 1 keys, in order, that part the records into ranges of about the same size.

        A range is what `scan` returns `after` a key `until` the next one. Only keys are read, marks of deletion
        among them.
        """

    def count(self, kind: type[Record], where: Mapping[str, Any] | None = None) -> int:
        """Return how many records there are, deleted ones left out."""

    def purge(self, kind: type[Record], prefix: str) -> int:
        """Remove every record whose key starts with `prefix` (not empty) without leaving a mark."""

    def sweep(self, kind: type[Record], older_than: float) -> int:
        """Remove the marks of what was deleted here more than so many seconds ago; return how many."""

    def lease(self, name: str, seconds: float = LEASE_SECONDS) -> AbstractContextManager[Confirm]:
        """Be the only one who holds `name` in this store, until the block ends or the process dies.

        Raise at once, with who holds it and since when, if another does. A holder that stood still for longer than
        `seconds` may have lost it to another: what is called inside tells.
        """

    def size(self) -> int:
        """Return the bytes the store takes."""

    def close(self) -> None:
        """Let go of files and connections."""


def this_holder() -> str:
    """Return who takes a lease now, for those who come second."""
    return f"process {os.getpid()} on {socket.gethostname()}, since {utc_now()}"


def refusal(url: str, name: str, holder: str, advice: str) -> BackendError:
    """Return what is told to one who comes second."""
    return BackendError(f"{url}: `{name}` is at work already: {holder}; {advice}", retriable=True)


def split_keys(n_keys: int, n_parts: int, step: Callable[[str, int], str | None]) -> list[str]:
    """Return what `Store.splits` promises.

    Parameters
    ----------
    n_keys, n_parts : int
    step : callable
        Takes a key and a number ≥ 0; returns the next key after it but for so many, None where there is none.
    """
    size = max(-(-n_keys // n_parts), 1)
    found: list[str] = []
    while len(found) < n_parts - 1 and (key := step(found[-1] if found else "", size - 1)) is not None:
        found.append(key)
    return found


def open_store(url: str, *, create: bool = True) -> Store:
    """Open the store that `url` names.

    Parameters
    ----------
    url : str
        ``sqlite:///relative.db``, ``sqlite:////absolute.db`` or ``mongodb://host:27017/database``.
    create : bool
        Whether a SQLite file that is missing may be made; a command that only reads passes False.

    Raises
    ------
    ConfigError
        If the URL is of no known kind, or the file is missing and may not be made.
    BackendError
        If there is nobody there, within 5 s.
    """
    scheme = url.partition("://")[0]
    if scheme == "sqlite":
        from core.sqlite_store import SQLiteStore

        return SQLiteStore(url, create=create)
    if scheme in ("mongodb", "mongodb+srv"):
        from core.mongodb import MongoStore

        return MongoStore(url)
    raise ConfigError(
        f"store.url: {bare_url(url)!r} is no store; use sqlite:///murmur.db or mongodb://host:27017/music"
    )
