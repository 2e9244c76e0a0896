"""The store on MongoDB: a collection per kind of record, each write guarded by its revision."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import chain
from typing import Any

import bson
import pymongo
from bson.codec_options import CodecOptions, TypeRegistry
from bson.errors import BSONError
from bson.raw_bson import RawBSONDocument
from pymongo import errors
from pymongo.uri_parser import parse_uri, split_options

from core.errors import BackendError, ConfigError
from core.mongodb_lease import hold
from core.names import bare_url
from core.records import Record, Value
from core.store import LEASE_SECONDS, Confirm, Document, R, Upserted, split_keys

TIMEOUT_MS = 4500
"""Until a server is given up: a first connection has 5 s."""
WRITE_TIMEOUT_MS = 30_000
"""Until a write that no majority has acknowledged has failed."""
ANSWER_TIMEOUT_MS = 60_000
"""Until an answer that does not come is an error: a server may hang without closing the connection."""
PAGE = 100
"""Documents per page of a scan; the server sends fewer where they exceed 16 MB."""
LIMIT = 16 * 1024 * 1024
"""Bytes of a document, in every MongoDB."""
BREAKS = 3
"""So often a batch may break the connection until it is halved."""
LIVING = {"deleted": {"$ne": True}}
DUPLICATE_KEY = 11000
WRONG_PASSWORD = 18
NOT_ALLOWED = frozenset({13, 8000})
BAD_DOCUMENT = frozenset({2, 9, 15, 22, 52, 53, 56, 57, 121, 10334, 17419, 17420})
"""The server's codes that blame the document and nothing else: invalid, too large, too deep, against a validator."""
TRANSIENT = frozenset({6, 7, 89, 91, 189, 262, 9001, 10107, 11600, 11602, 13435, 13436})
"""The codes after which MongoDB's drivers try again: a server that steps down, shuts down or cannot be reached."""

Guarded = tuple[Document, RawBSONDocument]
"""A document and the filter that only an older one matches."""


def _fields(value: object) -> object:
    return vars(value) if isinstance(value, Value) else value


ENCODING: CodecOptions[Document] = CodecOptions(type_registry=TypeRegistry(fallback_encoder=_fields))
"""Takes records within records as they are: making dictionaries of them first takes almost as long as encoding them."""


class MongoStore:
    """`Store` on MongoDB; its promises are in `core.store.Store`.

    A document is its record under ``_id``, a deletion mark ``{_id, rev, deleted: true, deleted_at: UTC µs}``.

    Parameters
    ----------
    url : str
        ``mongodb://host:27017/database``, with the user info and options that MongoDB's URLs have.

    Raises
    ------
    ConfigError
        If the URL is malformed, has an unknown option or names no database.
    BackendError
        Within 5 s, if there is nobody there, the certificate is not trusted, or user and password are refused.
    """

    def __init__(self, url: str) -> None:
        self._url, self.url = url, bare_url(url)
        name = _database(url)
        try:
            # Every write here may be repeated, and a server that is no replica set refuses the driver's own repetition.
            self._client: pymongo.MongoClient[Document] = pymongo.MongoClient(
                url,
                w="majority",
                journal=True,
                wTimeoutMS=WRITE_TIMEOUT_MS,
                retryWrites=False,
                serverSelectionTimeoutMS=TIMEOUT_MS,
                connectTimeoutMS=TIMEOUT_MS,
                socketTimeoutMS=ANSWER_TIMEOUT_MS,
                appname="murmuration",
            )
        except (errors.PyMongoError, ValueError, OSError) as error:
            raise _bad_url(url, f"an option cannot be used: {_line(error)}") from error
        self._database = self._client[name]
        try:
            with self._translated():
                self._database.command("ping")
        except BackendError:
            self._client.close()
            raise

    def __reduce__(self) -> tuple[type[MongoStore], tuple[str]]:
        return MongoStore, (self._url,)

    def upsert(self, records: Iterable[Record]) -> Upserted:
        """Write what is newer than the stored record."""
        rest = iter(records)
        if (first := next(rest, None)) is None:
            return Upserted(0, {})
        documents = ({"_id": record.key, **vars(record)} for record in chain((first,), rest))
        return self._replace(first.collection, documents)

    def delete(self, kind: type[Record], revs: Mapping[str, int]) -> Upserted:
        """Mark keys as deleted."""
        now = time.time_ns() // 1000
        marks = ({"_id": key, "rev": rev, "deleted": True, "deleted_at": now} for key, rev in revs.items())
        return self._replace(kind.collection, marks)

    def get(self, kind: type[R], key: str) -> R | None:
        """Return one record, or None."""
        with self._translated():
            document = self._database[kind.collection].find_one({"_id": key, **LIVING})
        return kind.from_document(document) if document else None

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
        """Stream documents in order of their key, page by page: no cursor stays open that could be lost."""
        collection = self._database[kind.collection]
        projection = None if fields is None else dict.fromkeys(fields, 1)
        keys = {"$gt": after, **_starting_with(prefix), **({} if until is None else {"$lte": until})}
        while True:
            with self._translated():
                found = collection.find({**(where or {}), **LIVING, "_id": keys}, projection)
                # A negative limit: one answer and no cursor.
                page = list(found.sort("_id").limit(-PAGE))
            if not page:
                return
            keys["$gt"] = page[-1]["_id"]
            for document in page:
                del document["_id"]
                yield document

    def splits(self, kind: type[Record], n_parts: int) -> list[str]:
        """Return keys that part the records, by steps along their index."""
        collection = self._database[kind.collection]

        def step(last: str, skipped: int) -> str | None:
            found = list(collection.find({"_id": {"$gt": last}}, {"_id": 1}).sort("_id").skip(skipped).limit(-1))
            return str(found[0]["_id"]) if found else None

        with self._translated():
            return split_keys(collection.estimated_document_count(), n_parts, step)

    def count(self, kind: type[Record], where: Mapping[str, Any] | None = None) -> int:
        """Count records, deleted ones left out."""
        with self._translated():
            return self._database[kind.collection].count_documents({**(where or {}), **LIVING})

    def purge(self, kind: type[Record], prefix: str) -> int:
        """Remove records and marks by the start of their key."""
        with self._translated():
            return self._database[kind.collection].delete_many({"_id": _starting_with(prefix)}).deleted_count

    def sweep(self, kind: type[Record], older_than: float) -> int:
        """Remove old marks, by an index that holds nothing but marks."""
        marks = self._database[kind.collection]
        before = time.time_ns() // 1000 - int(older_than * 1e6)
        with self._translated():
            marks.create_index("deleted_at", sparse=True)
            return marks.delete_many({"deleted_at": {"$lt": before}}).deleted_count

    def lease(self, name: str, seconds: float = LEASE_SECONDS) -> AbstractContextManager[Confirm]:
        """Hold a document of the collection ``leases``."""
        return hold(self._database["leases"], self._translated, self.url, name, seconds)

    def size(self) -> int:
        """Return the bytes that the server says the database takes, indexes included; 0 where it does not say."""
        with self._translated():
            stats = self._database.command("dbStats")
        return int(stats.get("storageSize", 0) + stats.get("indexSize", 0))

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _replace(self, collection: str, documents: Iterator[Document]) -> Upserted:
        """Replace whole documents by newer ones.

        A `rev` that is not newer matches nothing, so the upsert inserts, and collides with the stored ``_id``: either
        stale, or two first writes have raced. The second attempt, without upsert, tells which and loses neither.
        """
        guarded: list[Guarded] = []
        refused: dict[str, str] = {}
        for document in documents:
            if problem := _encode(document, guarded):
                refused[document["_id"]] = problem
        with self._translated():
            written, collided = self._bulk(collection, guarded, refused, upsert=True)
            written_again, _ = self._bulk(collection, collided, refused, upsert=False)
        return Upserted(written + written_again, refused)

    def _bulk(
        self, collection: str, guarded: list[Guarded], refused: dict[str, str], *, upsert: bool
    ) -> tuple[int, list[Guarded]]:
        """Return how many were written and those that collided; add the others' reasons to `refused`.

        What breaks the connection again and again to a server that is well is halved, until the culprit stands alone;
        one that is stored all the same is none, only its acknowledgements were lost.
        """
        if not guarded:
            return 0, []
        for _ in range(BREAKS):
            try:
                return self._bulk_at_once(collection, guarded, refused, upsert=upsert)
            except (errors.NotPrimaryError, errors.NetworkTimeout):
                raise
            except errors.AutoReconnect as error:
                broken = _line(error)
                self._database.command("ping")  # raises if the server is gone: then no document is to blame
        if len(guarded) == 1:
            _, document = guarded[0]
            stored = {"_id": document["_id"], "rev": {"$gte": document["rev"]}}
            if not self._database[collection].find_one(stored, {"_id": 1}):
                refused[document["_id"]] = f"breaks the connection to MongoDB: {broken}"
            return 0, []
        half = len(guarded) // 2
        parts = [self._bulk(collection, part, refused, upsert=upsert) for part in (guarded[:half], guarded[half:])]
        return sum(written for written, _ in parts), [one for _, collided in parts for one in collided]

    def _bulk_at_once(
        self, collection: str, guarded: list[Guarded], refused: dict[str, str], *, upsert: bool
    ) -> tuple[int, list[Guarded]]:
        requests: list[pymongo.ReplaceOne[Document]] = [
            pymongo.ReplaceOne(guard, document, upsert=upsert) for guard, document in guarded
        ]
        try:
            result: Mapping[str, Any] = self._database[collection].bulk_write(requests, ordered=False).bulk_api_result
        except errors.BulkWriteError as error:
            result = error.details
            self._check(result)
        collided = []
        for failure in result["writeErrors"]:
            guard, _ = one = guarded[failure["index"]]
            if failure["code"] == DUPLICATE_KEY:
                collided.append(one)
            else:
                refused[guard["_id"]] = f"MongoDB refuses it: {_line(failure['errmsg'])}"
        return result["nMatched"] + result["nUpserted"], collided

    def _check(self, result: Mapping[str, Any]) -> None:
        """Raise if a write failed for another reason than its document."""
        for failure in result["writeErrors"]:
            if failure["code"] not in BAD_DOCUMENT | {DUPLICATE_KEY}:
                raise BackendError(
                    f"{self.url}: a write failed: {_line(failure['errmsg'])}; look at the server's log",
                    retriable=failure["code"] in TRANSIENT,
                )
        for failure in result["writeConcernErrors"]:
            raise BackendError(
                f"{self.url}: writes were not acknowledged as durable: {_line(failure['errmsg'])}; "
                "try again when the replica set has its majority",
                retriable=True,
            )

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except errors.ConnectionFailure as error:
            raise self._no_connection(error) from error
        except errors.OperationFailure as error:
            raise BackendError(f"{self.url}: {_refusal(error)}", retriable=error.code in TRANSIENT) from error
        except (errors.PyMongoError, BSONError, UnicodeEncodeError, OverflowError) as error:
            raise BackendError(f"{self.url}: MongoDB cannot do this: {_line(error)}") from error

    def _no_connection(self, error: errors.ConnectionFailure) -> BackendError:
        """Return what went wrong with the connection, and what to do: the driver's own text is a page long."""
        servers = self._client.topology_description.server_descriptions().values()
        cause = _line(next((server.error for server in servers if server.error), error)).partition(" (configured")[0]
        if "certificate verify failed" in cause:
            advice = "name the authority's certificate with ?tlsCAFile=… in store.url"
            return BackendError(f"{self.url}: no trusted connection: {cause}; {advice}")
        advice = "start MongoDB there, or correct store.url"
        if "SSL" in cause or cause.endswith("connection closed"):
            advice += ": one side may speak TLS (?tls=true) and the other not"
        return BackendError(f"{self.url}: no connection: {cause}; {advice}", retriable=True)


def _database(url: str) -> str:
    """Return the database that a URL names; raise if a part is malformed, or an option unknown or wrong.

    The driver would only warn of a mistyped option, and connect without TLS. Of all but the options its own text is not
    shown: it may quote a part of the password.
    """
    query = url.partition("?")[2]
    if "@" in query:
        raise _bad_url(url, "an @ behind a ? leaves open where the password ends")
    try:
        if query:
            split_options(query)
    except (errors.PyMongoError, ValueError, TypeError, OSError) as error:
        raise _bad_url(url, _line(error).removesuffix(" Refer to docstring.")) from error
    try:
        name: str | None = parse_uri(url, connect_timeout=TIMEOUT_MS / 1000)["database"]
    except (errors.PyMongoError, ValueError):
        name = None
    if name is None:
        unknown = ", or the cluster's name is unknown" if url.startswith("mongodb+srv:") else ""
        raise _bad_url(url, f"no MongoDB URL with a database{unknown}")
    return name


def _bad_url(url: str, problem: str) -> ConfigError:
    return ConfigError(
        f"store.url: {bare_url(url)!r}: {problem}; write mongodb://host:27017/music or "
        "mongodb://user:password@host:27017/music?tls=true, and special characters of a password as %XX"
    )


def _starting_with(prefix: str) -> dict[str, str]:
    """Return a range of keys; its end is the prefix with its last character raised."""
    return {"$gte": prefix, "$lt": prefix[:-1] + chr(ord(prefix[-1]) + 1)} if prefix else {}


def _encode(document: Document, guarded: list[Guarded]) -> str | None:
    """Append the document, encoded, with its guard; or return why MongoDB cannot hold it.

    Each alone: in a bulk the driver refuses all of them for one, without saying which.
    """
    try:
        data = bson.encode(document, codec_options=ENCODING)
    except (BSONError, UnicodeEncodeError, OverflowError) as error:
        return f"not a MongoDB document: {_line(error)}"
    if len(data) > LIMIT:
        return f"{len(data)} bytes as a MongoDB document, the limit is {LIMIT}"
    guarded.append(({"_id": document["_id"], "rev": {"$lt": document["rev"]}}, RawBSONDocument(data)))
    return None


def _refusal(error: errors.OperationFailure) -> str:
    if error.code == WRONG_PASSWORD:
        return "wrong user or password in store.url, or a user of another database: add ?authSource=admin"
    if error.code in NOT_ALLOWED:
        return f"not allowed: {_line(error)}; give store.url a user that may read and write this database"
    return f"MongoDB refuses: {_line(error)}"


def _line(error: object) -> str:
    """Return a text of the driver or the server as one line of moderate length."""
    return " ".join(str(error).partition(", full error:")[0].split())[:300]
