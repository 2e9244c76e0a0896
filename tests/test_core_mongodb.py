"""What is particular to MongoDB; its promises as a store are in ``test_core_store.py``."""

from __future__ import annotations

import socket
import threading
import time
import traceback
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import mongomock
import pymongo
import pytest
from conftest import Run
from proxy import cutting_off, through_a_proxy
from pymongo import errors
from servers import PASSWORD, Door
from test_core_store import keys, mocked_mongodb, title, track

from core.errors import BackendError, ConfigError
from core.mongodb import MongoStore
from core.records import Track
from core.store import Upserted, open_store


@pytest.fixture
def url(mongodb_url: str) -> Iterator[str]:
    name = f"murmur_test_{uuid.uuid4().hex}"
    url = urlsplit(mongodb_url)._replace(path=f"/{name}").geturl()
    yield url
    with pymongo.MongoClient(url) as client:
        client.drop_database(name)


@pytest.fixture
def store(url: str) -> Iterator[MongoStore]:
    store = MongoStore(url)
    yield store
    store.close()


@pytest.fixture
def mocked(monkeypatch: pytest.MonkeyPatch) -> Iterator[MongoStore]:
    with mocked_mongodb(monkeypatch) as url:
        yield MongoStore(url)


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.mongodb.TIMEOUT_MS", 300)


def free_port() -> int:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


# Documents


@pytest.mark.servers
def test_a_record_is_a_document_under_its_key(store: MongoStore, url: str) -> None:
    record = track("a", rev=7, title="T")
    store.upsert([record])
    with pymongo.MongoClient(url) as client:
        assert list(client.get_default_database()["tracks"].find()) == [{"_id": "a", **record.model_dump()}]


@pytest.mark.servers
def test_a_deletion_mark_holds_nothing_but_its_revision_and_its_time(store: MongoStore, url: str) -> None:
    store.upsert([track("a", rev=7, title="T")])
    store.delete(Track, {"a": 8})
    with pymongo.MongoClient(url) as client:
        (mark,) = client.get_default_database()["tracks"].find()
    assert abs(mark.pop("deleted_at") - time.time() * 1e6) < 60e6
    assert mark == {"_id": "a", "rev": 8, "deleted": True}


@pytest.mark.servers
@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        pytest.param({"year": 2**70}, "8-byte ints", id="integer over 64 bits"),
        pytest.param({"extra": {"a\0b": "x"}}, "NULL", id="NUL in a field's name"),
        pytest.param({"title": "x" * 2**24}, "the limit is 16777216", id="over 16 MB"),
    ],
)
def test_a_record_that_is_no_document_is_refused_alone(store: MongoStore, bad: dict[str, Any], reason: str) -> None:
    written, refused = store.upsert([track("a"), track("bad").model_copy(update=bad), track("z")])
    assert written == 2
    assert list(refused) == ["bad"]
    assert reason in refused["bad"]
    assert keys(store) == ["a", "z"]


@pytest.mark.servers
def test_a_document_just_below_the_limit_is_taken(store: MongoStore) -> None:
    assert store.upsert([track("a", title="x" * (2**24 - 2000))]) == Upserted(1, {})
    assert len(title(store, "a") or "") == 2**24 - 2000


@pytest.mark.servers
def test_pages_of_large_documents_end_where_an_answer_is_full(store: MongoStore) -> None:
    batch = [track(f"{n}", title="x" * 3_000_000) for n in range(9)]
    for record in batch:
        store.upsert([record])
    assert [document["track_id"] for document in store.scan(Track)] == [record.key for record in batch]


# Writes that race


@pytest.mark.servers
def test_first_writes_that_race_end_at_the_highest_revision(store: MongoStore, url: str) -> None:
    names = [f"t{n}" for n in range(40)]

    def write(revs: range) -> None:
        own = MongoStore(url)
        for rev in revs:
            assert own.upsert([track(name, rev=rev, title=str(rev)) for name in names]).refused == {}
        own.close()

    writers = [threading.Thread(target=write, args=(range(first, 40, 4),)) for first in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert {title(store, name) for name in names} == {"39"}


def test_a_first_write_that_lost_the_race_to_an_older_one_is_tried_again(
    mocked: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    bulk_write, upserts = mongomock.Collection.bulk_write, []

    def racing(collection: mongomock.Collection, requests: list[pymongo.ReplaceOne[Any]], **options: Any) -> Any:
        """Let another process insert an older document between the server's look and its own insertion."""
        upserts.append(requests[0]._upsert)
        if upserts == [True]:
            collection.insert_one({"_id": "a", **track("a", rev=1, title="older").model_dump()})
            raise errors.BulkWriteError(
                {
                    "writeErrors": [{"index": 0, "code": 11000, "errmsg": "E11000 duplicate key"}],
                    "writeConcernErrors": [],
                    "nMatched": 0,
                    "nUpserted": 0,
                }
            )
        return bulk_write(collection, requests, **options)

    monkeypatch.setattr(mongomock.Collection, "bulk_write", racing)
    assert mocked.upsert([track("a", rev=2, title="newer")]) == Upserted(1, {})
    assert upserts == [True, False]
    assert title(mocked, "a") == "newer"


def failing(monkeypatch: pytest.MonkeyPatch, **details: object) -> None:
    """Let every bulk write fail so."""

    def fail(*_: object, **__: object) -> None:
        raise errors.BulkWriteError(
            {"writeErrors": [], "writeConcernErrors": [], "nMatched": 0, "nUpserted": 0, **details}
        )

    monkeypatch.setattr(mongomock.Collection, "bulk_write", fail)


def test_a_document_that_the_server_refuses_is_refused_by_key(
    mocked: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, nUpserted=1, writeErrors=[{"index": 1, "code": 121, "errmsg": "failed\nvalidation"}])
    refused = Upserted(1, {"b": "MongoDB refuses it: failed validation"})
    assert mocked.upsert([track("a"), track("b")]) == refused
    assert mocked.delete(Track, {"a": 2, "b": 2}) == refused


@pytest.mark.parametrize(("code", "retriable"), [(14031, False), (11602, True)])
def test_a_write_that_fails_for_another_reason_than_its_document_is_an_error(
    mocked: MongoStore, monkeypatch: pytest.MonkeyPatch, code: int, retriable: bool
) -> None:
    """One that may be tried again where the server only steps down."""
    failing(monkeypatch, writeErrors=[{"index": 0, "code": code, "errmsg": "no space left"}])
    with pytest.raises(BackendError, match="no space left") as caught:
        mocked.upsert([track("a")])
    assert caught.value.retriable is retriable


@pytest.mark.parametrize(("code", "retriable"), [(262, True), (59, False)])
def test_a_command_that_took_too_long_may_be_tried_again(
    mocked: MongoStore, monkeypatch: pytest.MonkeyPatch, code: int, retriable: bool
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise errors.OperationFailure("refused", code)

    monkeypatch.setattr(mongomock.Collection, "count_documents", refuse)
    with pytest.raises(BackendError, match="refused") as caught:
        mocked.count(Track)
    assert caught.value.retriable is retriable


def test_a_write_that_no_majority_acknowledged_is_an_error_that_may_be_tried_again(
    mocked: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, nUpserted=1, writeConcernErrors=[{"code": 64, "errmsg": "waiting for replication timed out"}])
    with pytest.raises(BackendError, match="durable") as caught:
        mocked.upsert([track("a")])
    assert caught.value.retriable


# Documents that break the connection


def breaking(monkeypatch: pytest.MonkeyPatch, culprits: set[str], error: Exception) -> list[int]:
    """Let every bulk write that holds a culprit fail; return the sizes of all of them, as they come."""
    bulk_write, sizes = mongomock.Collection.bulk_write, list[int]()

    def fail(collection: mongomock.Collection, requests: list[pymongo.ReplaceOne[Any]], **options: Any) -> Any:
        sizes.append(len(requests))
        if any(request._filter["_id"] in culprits for request in requests):
            raise error
        return bulk_write(collection, requests, **options)

    monkeypatch.setattr(mongomock.Collection, "bulk_write", fail)
    no_connection = BackendError("no connection", retriable=True)
    monkeypatch.setattr(MongoStore, "_no_connection", lambda *_: no_connection)  # mongomock has no topology
    return sizes


def test_a_batch_that_breaks_the_connection_three_times_is_halved_until_the_culprit_stands_alone(
    mocked: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = breaking(monkeypatch, {"t5"}, errors.AutoReconnect("connection closed"))
    written, refused = mocked.upsert([track(f"t{n}") for n in range(8)])
    assert (written, refused) == (7, {"t5": "breaks the connection to MongoDB: connection closed"})
    assert sizes == [8, 8, 8, 4, 4, 4, 4, 2, 2, 2, 1, 1, 1, 1, 2]
    assert "t5" not in keys(mocked)


def test_every_one_of_several_culprits_is_found(mocked: MongoStore, monkeypatch: pytest.MonkeyPatch) -> None:
    breaking(monkeypatch, {"t0", "t1", "t6"}, errors.AutoReconnect("connection closed"))
    written, refused = mocked.upsert([track(f"t{n}") for n in range(7)])
    assert (written, sorted(refused)) == (4, ["t0", "t1", "t6"])


def test_while_the_server_does_not_answer_a_ping_no_document_is_to_blame(
    mocked: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = breaking(monkeypatch, {"t0"}, errors.AutoReconnect("connection closed"))

    def gone(*_: object, **__: object) -> None:
        raise errors.ServerSelectionTimeoutError("refused")

    monkeypatch.setattr(mongomock.Database, "command", gone)
    with pytest.raises(BackendError, match="no connection") as caught:
        mocked.upsert([track("t0"), track("t1")])
    assert caught.value.retriable
    assert sizes == [2]


@pytest.mark.parametrize("error", [errors.NotPrimaryError("stepping down"), errors.NetworkTimeout("timed out")])
def test_a_server_that_steps_down_or_is_slow_blames_no_document(
    mocked: MongoStore, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    sizes = breaking(monkeypatch, {"t0"}, error)
    with pytest.raises(BackendError, match="no connection") as caught:
        mocked.upsert([track("t0")])
    assert caught.value.retriable
    assert sizes == [1]


@pytest.mark.servers
def test_a_document_that_the_server_hangs_up_on_is_refused_alone(
    store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.mongodb.LIMIT", 2**26)
    monkeypatch.setattr("core.mongodb.BREAKS", 1)
    written, refused = store.upsert([track("a"), track("bad", title="x" * (17 * 2**20))])
    assert (written, list(refused)) == (1, ["bad"])
    assert "breaks the connection" in refused["bad"]
    assert keys(store) == ["a"]


@pytest.mark.servers
@pytest.mark.parametrize("n_cuts", [3, 5])
def test_a_record_that_is_stored_though_its_acknowledgements_were_lost_is_no_culprit(
    store: MongoStore, url: str, n_cuts: int
) -> None:
    cuts = [None] * n_cuts
    with cutting_off(url, cuts) as through, closing(MongoStore(through)) as cut_off:
        assert cut_off.upsert([track("a")]).refused == {}
        assert cut_off.upsert([track("b"), track("c")]).refused == {}
    assert cuts == []
    assert keys(store) == ["a", "b", "c"]


# Connections


@pytest.mark.servers
@pytest.mark.usefixtures("_impatient")
def test_a_server_that_hangs_is_an_error_that_may_be_tried_again_and_blames_no_document(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.mongodb.ANSWER_TIMEOUT_MS", 500)
    stalled = threading.Event()
    with through_a_proxy(url, lambda _: not stalled.is_set()) as through, closing(MongoStore(through)) as store:
        store.upsert([track("a")])
        stalled.set()
        with pytest.raises(BackendError, match="no connection") as caught:
            store.upsert([track("b")])
        assert caught.value.retriable


@pytest.mark.usefixtures("_impatient")
def test_nobody_there_is_one_line_with_the_place_the_cause_and_no_password() -> None:
    port = free_port()
    with pytest.raises(BackendError, match=rf"127\.0\.0\.1:{port}/music: no connection: .*refused") as caught:
        open_store(f"mongodb://ada:secret@127.0.0.1:{port}/music?authSource=admin")
    assert caught.value.retriable
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "store.url" in str(caught.value)


@pytest.mark.servers
@pytest.mark.usefixtures("_impatient")
def test_tls_on_one_side_only_is_called_so(url: str, mongodb_door: Door) -> None:
    for place in (f"{url}?tls=true", f"mongodb://127.0.0.1:{mongodb_door.port}/music"):
        with pytest.raises(BackendError, match=r"no connection: .* one side may speak TLS"):
            open_store(place)


def options(door: Door) -> str:
    return f"authMechanism=PLAIN&authSource=%24external&tls=true&tlsCAFile={door.certificate}"


@pytest.mark.servers
def test_records_are_written_and_read_with_a_password_over_tls(mongodb_door: Door) -> None:
    with closing(open_store(f"{mongodb_door.url('mongodb')}/{uuid.uuid4().hex}?{options(mongodb_door)}")) as store:
        store.upsert([track("a", title="T")])
        assert keys(store) == ["a"]
        assert store.url.startswith(f"mongodb://127.0.0.1:{mongodb_door.port}/")


@pytest.mark.servers
@pytest.mark.usefixtures("_impatient")
def test_wrong_password_untrusted_certificate_and_missing_password_are_told_apart(mongodb_door: Door) -> None:
    right, wrong = mongodb_door.url("mongodb"), mongodb_door.url("mongodb", "guessed")
    nobody = f"mongodb://127.0.0.1:{mongodb_door.port}"
    for url, said in {
        f"{wrong}/music?{options(mongodb_door)}": "wrong user or password in store.url",
        f"{right}/music?tls=true": r"no trusted connection: .*self-signed certificate.*tlsCAFile",
        f"{nobody}/music?tls=true&tlsCAFile={mongodb_door.certificate}": "not allowed: .*give store.url a user",
    }.items():
        with pytest.raises(BackendError, match=said) as caught:
            open_store(url)
        assert not caught.value.retriable
        assert "\n" not in str(caught.value)
        assert not [secret for secret in (PASSWORD, quote(PASSWORD, safe=""), "guessed") if secret in str(caught.value)]


@pytest.mark.parametrize(
    ("code", "said"), [(18, "wrong user or password"), (13, "may read and write this database"), (59, "refuses")]
)
def test_what_the_server_refuses_is_told_apart(
    mocked: MongoStore, monkeypatch: pytest.MonkeyPatch, code: int, said: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise errors.OperationFailure("no", code, {"errmsg": "no", "code": code})

    monkeypatch.setattr(mongomock.Collection, "find_one", refuse)
    with pytest.raises(BackendError, match=f"mocked/music: .*{said}") as caught:
        mocked.get(Track, "a")
    assert not caught.value.retriable


@pytest.mark.servers
@pytest.mark.usefixtures("_impatient")
def test_a_server_that_goes_away_is_an_error_that_may_be_tried_again(own_mongodb: Run, tmp_path: Path) -> None:
    with own_mongodb(tmp_path) as url:
        store = MongoStore(f"{url}/music")
        store.upsert([track("a")])
    for call in (
        lambda: store.upsert([track("a", rev=2)]),
        lambda: list(store.scan(Track)),
        lambda: store.count(Track),
    ):
        with pytest.raises(BackendError, match="no connection") as caught:
            call()
        assert caught.value.retriable
    store.close()
    with own_mongodb(tmp_path) as url:
        store = MongoStore(f"{url}/music")
        assert keys(store) == ["a"]
        store.close()


@pytest.mark.parametrize(
    "url",
    [
        "mongodb://127.0.0.1:27017",
        "mongodb://127.0.0.1:27017/",
        "mongodb://ada:se/cret@127.0.0.1:27017/music",
        "mongodb://ada:se@cret@127.0.0.1:27017/music",
        "mongodb://127.0.0.1:port/music",
        "mongodb://",
        "mongodb://127.0.0.1:27017/a b",
        "mongodb://ada:se?cret@127.0.0.1:27017/music",
        "mongodb://ada:se?w=cret@127.0.0.1:27017/music",
        "ada:secret@127.0.0.1:27017/music",
    ],
)
def test_a_url_that_cannot_be_used_is_answered_with_one_that_can(url: str) -> None:
    with pytest.raises(ConfigError, match=r"mongodb://host:27017/music") as caught:
        open_store(url)
    assert "cret" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("tsl=true", "Unknown option: tsl. Did you mean one of .*tls"),
        ("tls=yes", "The value of tls must be 'true' or 'false'"),
        ("tls=true&tlsCAFile=/none.pem", ".*No such file or directory: '/none.pem'"),
        (f"tls=true&tlsCAFile={__file__}", "an option cannot be used: .*certificate"),
        ("authMechanism=GUESS", "authmechanism must be in"),
    ],
)
def test_an_option_that_cannot_be_used_is_an_error_and_not_a_connection_without_it(option: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"store.url: 'mongodb://127.0.0.1:27017/music': {said}"):
        open_store(f"mongodb://ada:secret@127.0.0.1:27017/music?{option}")


@pytest.mark.servers
def test_the_url_that_is_shown_has_no_options(store: MongoStore) -> None:
    assert store.url.startswith("mongodb://")
    assert "?" not in store.url
    assert "@" not in store.url


@pytest.mark.servers
def test_the_size_grows_with_what_is_stored(store: MongoStore) -> None:
    store.upsert([track("a", title="x" * 1_000_000)])
    assert store.size() > 100_000


def until_of(store: MongoStore, name: str) -> int:
    found = store._database["leases"].find_one({"_id": name})
    assert found
    return int(found["until"])


def run_out(store: MongoStore, name: str) -> None:
    """Make it as late as it is when the holder has stood still for long."""
    store._database["leases"].update_one({"_id": name}, {"$set": {"until": 0}})


class TestLease:
    def test_it_is_renewed_as_long_as_it_is_held_and_gone_after_that(self, store: MongoStore) -> None:
        with store.lease("work", 0.3):
            seen = {until_of(store, "work")}
            while len(seen) < 4:
                seen.add(until_of(store, "work"))
        assert store._database["leases"].count_documents({}) == 0

    def test_a_holder_that_lost_it_is_told_who_has_it_and_leaves_it_alone(self, store: MongoStore, url: str) -> None:
        with closing(MongoStore(url)) as other, other.lease("work", 600) as confirm:
            run_out(store, "work")
            with store.lease("work", 600) as confirm_ours:
                with pytest.raises(BackendError, match=r"`work` .* lost to process \d+ on .*: run it again"):
                    confirm()
                confirm_ours()
            with pytest.raises(BackendError, match="lost to another process, which has ended"):
                confirm()

    def test_a_holder_that_stood_still_while_nobody_else_came_has_it_again(self, store: MongoStore) -> None:
        with store.lease("work", 600) as confirm:
            run_out(store, "work")
            confirm()
            assert until_of(store, "work") > 0

    def test_a_holder_that_cannot_renew_it_is_told_and_it_runs_out(
        self, store: MongoStore, url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        with closing(MongoStore(url)) as cut_off, cut_off.lease("work", 0.3) as confirm:
            cut_off.close()
            while "the lease of work is not renewed" not in caplog.text:
                time.sleep(0.05)
            with pytest.raises(BackendError):
                confirm()
        assert "the lease of work runs out in 0.3 s" in caplog.text
        assert until_of(store, "work") > 0
