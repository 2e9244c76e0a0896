"""The store in one SQLite file: a table of JSON documents, the bulky fields in a column of their own."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import orjson

from core.records import Record, to_json
from core.sqlite import Database
from core.store import LEASE_SECONDS, Confirm, Document, R, Upserted, refusal, split_keys, this_holder

SCHEMA = {
    "documents": """CREATE TABLE documents (
        collection TEXT NOT NULL, _id TEXT NOT NULL, rev INTEGER NOT NULL, deleted INTEGER NOT NULL,
        doc TEXT NOT NULL, bulk TEXT)""",
    "documents_key": "CREATE UNIQUE INDEX documents_key ON documents (collection, _id)",
    "documents_deleted": "CREATE INDEX documents_deleted ON documents (collection) WHERE deleted",
}
UPSERT = """
INSERT INTO documents VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (collection, _id) DO UPDATE
SET rev = excluded.rev, deleted = excluded.deleted, doc = excluded.doc, bulk = excluded.bulk
WHERE excluded.rev > rev
"""
PAGE = 500
LAST = chr(0x10FFFF)
"""Sorts after whatever may follow a prefix."""


class SQLiteStore:
    """`Store` on SQLite; its promises are in `core.store.Store`."""

    def __init__(self, url: str, *, create: bool = True) -> None:
        self.url = url
        self._database = Database(url, SCHEMA, create=create)

    def __reduce__(self) -> tuple[Callable[[str], SQLiteStore], tuple[str]]:
        return partial(SQLiteStore, create=False), (f"sqlite:///{self._database.path.absolute()}",)

    def upsert(self, records: Iterable[Record]) -> Upserted:
        """Write what is newer than the stored record."""
        rows, refused = [], {}
        for record in records:
            try:
                rows.append(_row(record))
            except (orjson.JSONEncodeError, OverflowError) as error:
                refused[record.key] = f"cannot be written: {error}"
        return Upserted(self._write(rows), refused)

    def delete(self, kind: type[Record], revs: Mapping[str, int]) -> Upserted:
        """Mark keys as deleted."""
        mark = orjson.dumps({"deleted_at": time.time_ns() // 1000}).decode()
        return Upserted(self._write([(kind.collection, key, rev, True, mark, None) for key, rev in revs.items()]), {})

    def get(self, kind: type[R], key: str) -> R | None:
        """Return one record, or None."""
        rows = self._database.read(
            "SELECT doc, bulk FROM documents WHERE collection = ? AND _id = ? AND NOT deleted", (kind.collection, key)
        )
        return kind.from_document(_document(*rows[0])) if rows else None

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
        """Stream documents in order of their key, a page at a time."""
        bulk = "bulk" if fields is None or kind.bulky.intersection(fields) else "NULL"
        condition, values = _condition(kind, where, prefix)
        limits = "_id > ?" if until is None else "_id > ? AND _id <= ?"
        statement = f"SELECT _id, doc, {bulk} FROM documents WHERE {condition} AND {limits} ORDER BY _id LIMIT {PAGE}"
        last, end = after, () if until is None else (until,)
        while page := self._database.read(statement, (*values, last, *end)):
            for _, doc, extra in page:
                document = _document(doc, extra)
                yield document if fields is None else {name: document[name] for name in fields if name in document}
            last = page[-1][0]

    def splits(self, kind: type[Record], n_parts: int) -> list[str]:
        """Return keys that part the records, by steps along their index."""

        def step(last: str, skipped: int) -> str | None:
            statement = "SELECT _id FROM documents WHERE collection = ? AND _id > ? ORDER BY _id LIMIT 1 OFFSET ?"
            rows = self._database.read(statement, (kind.collection, last, skipped))
            return rows[0][0] if rows else None

        (found,) = self._database.read("SELECT COUNT(*) FROM documents WHERE collection = ?", (kind.collection,))
        return split_keys(found[0], n_parts, step)

    def count(self, kind: type[Record], where: Mapping[str, Any] | None = None) -> int:
        """Count records."""
        condition, values = _condition(kind, where, "")
        return int(self._database.read(f"SELECT COUNT(*) FROM documents WHERE {condition}", values)[0][0])

    def purge(self, kind: type[Record], prefix: str) -> int:
        """Remove records by the start of their key."""
        if not prefix:
            raise ValueError("an empty prefix would remove everything")
        with self._database.write() as connection:
            removed = connection.execute(
                "DELETE FROM documents WHERE collection = ? AND _id BETWEEN ? AND ?",
                (kind.collection, prefix, prefix + LAST),
            ).rowcount
        self._database.shrink()
        return removed

    def sweep(self, kind: type[Record], older_than: float) -> int:
        """Remove old marks."""
        before = time.time_ns() // 1000 - int(older_than * 1e6)
        with self._database.write() as connection:
            removed = connection.execute(
                "DELETE FROM documents WHERE collection = ? AND deleted AND json_extract(doc, '$.deleted_at') < ?",
                (kind.collection, before),
            ).rowcount
        self._database.shrink()
        return removed

    @contextmanager
    def lease(self, name: str, seconds: float = LEASE_SECONDS) -> Iterator[Confirm]:
        """Hold a lock on a file beside the database, which says who holds it."""
        lock = self._database.lease(name)
        if lock is None:
            raise refusal(self.url, name, self._database.holder(name), "let it end, or stop it")
        try:
            with suppress(OSError):  # a full disk: the lock holds all the same
                os.ftruncate(lock, 0)
                os.write(lock, this_holder().encode())
            yield lambda: None
        finally:
            os.close(lock)

    def size(self) -> int:
        """Return the bytes of the file, which the bus may share."""
        return self._database.size()

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _write(self, rows: list[tuple[Any, ...]]) -> int:
        if not rows:
            return 0
        with self._database.write() as connection:
            return connection.executemany(UPSERT, rows).rowcount


def _row(record: Record) -> tuple[Any, ...]:
    if record.rev >= 2**63:
        raise OverflowError(f"rev {record.rev} is over 64 bits")
    doc = vars(record).copy()
    bulk = to_json({field: doc.pop(field) for field in record.bulky}).decode() if record.bulky else None
    return record.collection, record.key, record.rev, False, to_json(doc).decode(), bulk


def _document(doc: str, bulk: str | None) -> Document:
    document: Document = orjson.loads(doc)
    return document | orjson.loads(bulk) if bulk else document


def _condition(kind: type[Record], where: Mapping[str, Any] | None, prefix: str) -> tuple[str, tuple[Any, ...]]:
    tests, values = ["collection = ?", "NOT deleted"], [kind.collection]
    if prefix:
        tests.append("_id BETWEEN ? AND ?")
        values += [prefix, prefix + LAST]
    for field, value in (where or {}).items():
        tests.append("json_extract(doc, ?) IS ?")
        values += [f'$."{field}"', value]
    return " AND ".join(tests), tuple(values)
