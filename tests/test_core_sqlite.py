"""The SQLite file behind bus and store: it does not grow for ever, and says what is wrong with it."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from test_core_store import track

from core.bus import Topic, read_to_end
from core.errors import BackendError
from core.records import Track
from core.sqlite import CHECKPOINT_BYTES
from core.sqlite_bus import SQLiteBus
from core.sqlite_store import SQLiteStore

DAY_MS = 24 * 3600 * 1000
TOPICS = (Topic("tracks.v1", "compact"), Topic("dead.v1", "delete"))


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/murmur.db"


@pytest.fixture
def bus(url: str) -> Iterator[SQLiteBus]:
    with closing(SQLiteBus(url)) as bus:
        bus.create_topics(TOPICS)
        yield bus


@pytest.fixture
def store(url: str) -> Iterator[SQLiteStore]:
    with closing(SQLiteStore(url)) as store:
        yield store


def send(bus: SQLiteBus, topic: str, *messages: tuple[bytes, bytes | None]) -> None:
    with closing(bus.producer()) as producer:
        for key, value in messages:
            producer.send(topic, key, value)
        producer.flush()


def pass_days(monkeypatch: pytest.MonkeyPatch, days: float) -> None:
    import core.sqlite_bus as module

    now = module._now_ms()
    monkeypatch.setattr(module, "_now_ms", lambda: now + int(days * DAY_MS))


def values(bus: SQLiteBus, topic: str) -> list[tuple[bytes | None, bytes | None]]:
    return [(message.key, message.value) for message in read_to_end(bus, [topic])]


# The file stays bounded


def test_what_comes_and_goes_for_months_leaves_the_file_as_large_as_its_contents(
    bus: SQLiteBus, store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    for day in range(40):
        pass_days(monkeypatch, 1)
        bus.create_topics(TOPICS)
        send(bus, "tracks.v1", *((b"t%d" % n, b"%d" % day * 2000) for n in range(50)))
        send(bus, "tracks.v1", *((b"gone %d %d" % (day, n), None) for n in range(500)))
        send(bus, "dead.v1", *((b"bad", os.urandom(2000)) for _ in range(20)))
        store.upsert([track(f"t{n}", rev=day + 1, title="x" * 2000) for n in range(50)])
        store.delete(Track, {f"gone {day} {n}": 1 for n in range(500)})
        store.sweep(Track, older_than=0)
        sizes.append(store.size())
    assert max(sizes[30:]) < 1.1 * max(sizes[15:25])


def test_dead_letters_go_after_two_weeks_when_their_topic_is_used_again(
    bus: SQLiteBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(bus, "dead.v1", (b"a", b"old"))
    pass_days(monkeypatch, 10)
    send(bus, "dead.v1", (b"b", b"young"))
    assert values(bus, "dead.v1") == [(b"a", b"old"), (b"b", b"young")]
    pass_days(monkeypatch, 5)
    bus.create_topics(TOPICS)
    assert values(bus, "dead.v1") == [(b"b", b"young")]
    pass_days(monkeypatch, 30)
    send(bus, "dead.v1", (b"c", b"new"))
    assert values(bus, "dead.v1") == [(b"c", b"new")]


def test_tombstones_go_after_a_week_and_values_never(bus: SQLiteBus, monkeypatch: pytest.MonkeyPatch) -> None:
    send(bus, "tracks.v1", (b"a", b"value"), (b"b", b"value"), (b"b", None))
    pass_days(monkeypatch, 6)
    send(bus, "tracks.v1", (b"c", None))
    assert values(bus, "tracks.v1") == [(b"a", b"value"), (b"b", None), (b"c", None)]
    pass_days(monkeypatch, 2)
    bus.create_topics(TOPICS)
    assert values(bus, "tracks.v1") == [(b"a", b"value"), (b"c", None)]


def test_what_is_removed_is_given_back_to_the_disk(bus: SQLiteBus, store: SQLiteStore) -> None:
    store.upsert([track(f"t{n}", title="x" * 5000) for n in range(500)])
    send(bus, "dead.v1", *((b"bad", os.urandom(5000)) for _ in range(500)))
    full = store.size()
    store.purge(Track, "t")
    bus.trim(bus.ends(["dead.v1"]))
    store.close()
    bus.close()
    assert Path(store.url.removeprefix("sqlite:///")).stat().st_size < full / 20


def test_the_write_ahead_log_stays_short_while_a_scan_goes_on(store: SQLiteStore, url: str) -> None:
    log = Path(url.removeprefix("sqlite:///") + "-wal")
    store.upsert([track(f"a{n}") for n in range(400)])
    scan = store.scan(Track)
    for rev in range(1, 61):
        next(scan)
        store.upsert([track(f"t{n}", rev=rev, title="x" * 100_000) for n in range(5)])
    assert log.stat().st_size < 3 * CHECKPOINT_BYTES


# What is wrong with it


def test_a_topic_of_another_cleanup_is_an_error_with_the_statement_that_mends_it(bus: SQLiteBus) -> None:
    with pytest.raises(BackendError, match=r"dead\.v1 has cleanup=delete, not compact: .* sets it") as caught:
        bus.create_topics([Topic("new.v1", "compact"), Topic("dead.v1", "compact")])
    assert bus.topics() == ["dead.v1", "tracks.v1"]
    path, statement = str(caught.value).split("`sqlite3 ")[1].split("`")[0].split(' "')
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement.rstrip('"'))
    bus.create_topics([Topic("dead.v1", "compact")])


def test_a_full_disk_loses_nothing_that_was_acknowledged_and_says_what_to_do(
    bus: SQLiteBus, store: SQLiteStore
) -> None:
    send(bus, "dead.v1", (b"a", b"before"))
    store.upsert([track("before")])
    for one in (bus, store):
        connection = one._database._connection
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count={pages + 2}")
    with pytest.raises(BackendError, match="full; make room on the disk and run the same command again"):
        send(bus, "dead.v1", (b"b", os.urandom(100_000)))
    with pytest.raises(BackendError, match="full; make room on the disk and run the same command again"):
        store.upsert([track("larger", title="x" * 100_000)])
    for one in (bus, store):
        one._database._connection.execute("PRAGMA max_page_count=100000")
    send(bus, "dead.v1", (b"c", b"after"))
    store.upsert([track("after")])
    assert values(bus, "dead.v1") == [(b"a", b"before"), (b"c", b"after")]
    assert [document["track_id"] for document in store.scan(Track)] == ["after", "before"]


def test_a_lock_that_a_full_disk_does_not_take_says_so(
    bus: SQLiteBus, store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("core.sqlite.os.open", refuse)
    with pytest.raises(BackendError, match="No space left on device; make room"):
        store.upsert([track("a")])


def test_a_member_that_waits_for_another_says_so_once(bus: SQLiteBus, caplog: pytest.LogCaptureFixture) -> None:
    with (
        closing(bus.consumer(["dead.v1"], group="g")) as first,
        closing(bus.consumer(["dead.v1"], group="g")) as second,
    ):
        first.poll(0)
        for _ in range(3):
            assert second.poll(0) == []
    assert caplog.text.count("another process works for g; this one waits for it") == 1
