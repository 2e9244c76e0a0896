"""Everything that goes wrong between bus and store, on the real servers: nothing is lost, nothing is doubled."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import kafka
import pytest
import servers
from conftest import Run
from etl_library import assert_nothing_lost
from kafka.admin import MemberToRemove
from proxy import cutting_off
from test_core_kafka import NotUTF8, change
from test_etl_load import BAD, failure, track

from core import open_bus, open_store
from core.bus import Bus, Headers, TopicPartition, lag, read_to_end
from core.config import Config
from core.errors import BackendError, RecordError
from core.jobs import Progress, Report, Watch, ignore
from core.names import Names
from core.records import Failure, Record, Track
from core.store import Store, Upserted
from etl import load
from etl.dead_letters import Place
from etl.messages import create_topics, decode, send, send_tombstone

Admin = kafka.KafkaAdminClient


def identity(store: Store) -> Store:
    return store


@dataclass(frozen=True)
class Line:
    """A bus and a store of its own, with the topics between them."""

    config: Config
    bus: Bus
    store: Store

    @property
    def names(self) -> Names:
        return Names(self.config.topics.prefix)

    def put(self, *records: Record) -> None:
        with closing(self.bus.producer()) as producer:
            for record in records:
                send(producer, self.names.tracks if isinstance(record, Track) else self.names.failed, record)
            producer.flush()

    def put_raw(self, key: bytes, value: bytes | None, headers: Headers = ()) -> None:
        with closing(self.bus.producer()) as producer:
            producer.send(self.names.tracks, key, value, headers)
            producer.flush()

    def put_many(self, n_messages: int, bad: set[int] | frozenset[int] = frozenset()) -> None:
        """Send so many messages, some of them bad."""
        with closing(self.bus.producer()) as producer:
            for n in range(n_messages):
                key = f"t{n:03}"
                producer.send(self.names.tracks, key.encode(), b"poison" if n in bad else track(key).to_json())
            producer.flush()

    def load(self, store: Store | None = None, until: Callable[[], bool] | None = None) -> Report:
        return load.run(self.config, store=store or self.store, bus=self.bus, until=until)

    def load_elsewhere(
        self, until: Callable[[], bool] | None = None, progress: Watch = ignore, wrap: Callable[[Store], Any] = identity
    ) -> Report:
        """Load by connections of its own: another process, as far as the servers know."""
        with closing(open_store(self.config.store.url)) as store, closing(open_bus(self.config.bus.url)) as bus:
            return load.run(self.config, store=wrap(store), bus=bus, progress=progress, until=until)

    def lag(self) -> int:
        return lag(self.bus, self.names.load_group, [self.names.tracks, self.names.failed])

    def assert_nothing_lost(self) -> None:
        """All is loaded; what is bad, and nothing else, is a dead letter."""
        assert self.lag() == 0
        assert assert_nothing_lost(self.bus, self.store, self.names) == sorted(self.bad())

    def bad(self) -> Iterator[Place]:
        """Yield the places of what cannot be read."""
        kinds = {self.names.tracks: Track, self.names.failed: Failure}
        for message in read_to_end(self.bus, kinds):
            try:
                decode(kinds[message.topic], message)
            except RecordError:
                yield Place(message.topic, message.partition, message.offset)

    def stored(self) -> dict[str, int]:
        """Return the revision of each track."""
        return {
            document["track_id"]: document["rev"] for document in self.store.scan(Track, fields=["track_id", "rev"])
        }


def config_of(store_url: str, bus_url: str, batch: int = 10, **topics: object) -> Config:
    """Return a config with a prefix of its own, and a database if the store is a MongoDB."""
    name = f"faults{uuid4().hex[:8]}"
    if store_url.startswith("mongodb"):
        store_url = urlsplit(store_url)._replace(path=f"/{name}").geturl()
    tree = {"store": store_url, "bus": bus_url, "topics": {"prefix": f"{name}.", **topics}, "load": {"batch": batch}}
    return Config.model_validate(tree)


@contextmanager
def opened(config: Config) -> Iterator[Line]:
    with closing(open_store(config.store.url)) as store, closing(open_bus(config.bus.url)) as bus:
        create_topics(bus, config)
        yield Line(config, bus, store)


@pytest.fixture
def on_servers(kafka_url: str, mongodb_url: str) -> Iterator[Line]:
    with opened(config_of(mongodb_url, kafka_url)) as line:
        yield line


@pytest.fixture
def on_sqlite(tmp_path: Path) -> Iterator[Line]:
    url = f"sqlite:///{tmp_path}/murmur.db"
    with opened(config_of(url, url)) as line:
        yield line


@pytest.fixture
def admin(kafka_url: str) -> Iterator[Admin]:
    with kafka.KafkaAdminClient(bootstrap_servers=kafka_url.removeprefix("kafka://").split(",")) as admin:
        yield admin


def await_(condition: Callable[[], bool], *running: Future[Any], seconds: float = 120.0) -> None:
    """Wait until it is true; raise what ends one of the running before, or after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        for one in running:
            if one.done():
                one.result()
                raise AssertionError("it ended too early")
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)


# Killed, and stopped


def run_until(config: Config, target: str, number: signal.Signals, *, before: bool) -> None:
    """Load, and be struck by a signal at the second call of a method: what the struck process runs."""
    module, owner, name = target.rsplit(".", 2)
    patched = getattr(import_module(module), owner)
    original, calls = getattr(patched, name), count(1)

    @wraps(original)
    def struck(*arguments: Any, **options: Any) -> Any:
        is_second = next(calls) == 2
        if is_second and before:
            os.kill(os.getpid(), number)
        result = original(*arguments, **options)
        if is_second and not before:
            os.kill(os.getpid(), number)
        return result

    setattr(patched, name, struck)
    abort_sooner()
    with closing(open_store(config.store.url)) as store, closing(open_bus(config.bus.url)) as bus:
        load.run(config, store=store, bus=bus)


def abort_sooner() -> None:
    """Have the broker abort in 2 s the transactions of this process, if it dies."""
    producer = kafka.KafkaProducer
    kafka.KafkaProducer = lambda **settings: producer(**settings | {"transaction_timeout_ms": 2000})


@contextmanager
def struck(config: Config, target: str, number: signal.Signals, *, before: bool = False) -> Iterator[Any]:
    """Yield the process that loads, once it has been struck."""
    arguments = (config, target, number)
    process = multiprocessing.get_context("spawn").Process(target=run_until, args=arguments, kwargs={"before": before})
    process.start()
    try:
        await_(lambda: not process.is_alive() or state_of(process.pid) == "T")
        yield process
    finally:
        process.kill()
        process.join()


def state_of(pid: int | None) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def expel(admin: Admin, group: str) -> None:
    """Have the struck member go at once, not after its session."""
    (member,) = admin.describe_groups([group])[group]["members"]
    admin.remove_group_members(group, [MemberToRemove(member_id=member["member_id"])])


WITH_BAD = frozenset({3, 4, 11, 12, 13, 29})


@pytest.mark.parametrize(
    "step",
    [
        "core.sqlite_store.SQLiteStore.upsert",
        "core.sqlite_bus.SQLiteProducer.send",
        "core.sqlite_bus.SQLiteConsumer.commit_with",
    ],
)
def test_killed_at_a_step_on_sqlite_load_goes_on_and_each_dead_letter_is_there_once(on_sqlite: Line, step: str) -> None:
    on_sqlite.put_many(30, WITH_BAD)
    with struck(on_sqlite.config, step, signal.SIGKILL) as process:
        assert process.exitcode == -signal.SIGKILL
    on_sqlite.load()
    on_sqlite.assert_nothing_lost()


@pytest.mark.servers
@pytest.mark.parametrize(
    ("step", "bad"),
    [
        pytest.param("core.mongodb.MongoStore.upsert", WITH_BAD, id="write, dead letters"),
        pytest.param("core.kafka.Producer.send", WITH_BAD, id="dead letter, dead letter"),
        pytest.param("core.kafka.Producer.flush", WITH_BAD, id="dead letters flushed, offsets"),
        pytest.param("kafka.KafkaProducer.send_offsets_to_transaction", WITH_BAD, id="offsets, commit"),
        pytest.param("kafka.KafkaProducer.commit_transaction", WITH_BAD, id="commit of dead letters, next batch"),
        pytest.param("core.mongodb.MongoStore.upsert", frozenset(), id="write, commit"),
        pytest.param("core.kafka.Consumer.settle", frozenset(), id="commit, next batch"),
    ],
)
def test_killed_between_two_steps_on_servers_load_goes_on_and_each_dead_letter_is_there_once(
    on_servers: Line, admin: Admin, step: str, bad: frozenset[int]
) -> None:
    on_servers.put_many(30, bad)
    with struck(on_servers.config, step, signal.SIGKILL) as process:
        assert process.exitcode == -signal.SIGKILL
    assert on_servers.stored()
    assert on_servers.lag()
    expel(admin, on_servers.names.load_group)
    on_servers.load()
    on_servers.assert_nothing_lost()


@pytest.mark.servers
@pytest.mark.parametrize(
    ("step", "bad", "before"),
    [
        pytest.param("core.mongodb.MongoStore.upsert", frozenset(), True, id="write"),
        pytest.param("core.kafka.Consumer.commit", frozenset(), True, id="commit"),
        pytest.param("core.kafka.Producer.flush", WITH_BAD, False, id="commit of dead letters"),
    ],
)
def test_a_load_that_was_overtaken_while_it_stood_still_overwrites_and_doubles_nothing(
    on_servers: Line, admin: Admin, step: str, bad: frozenset[int], before: bool
) -> None:
    """It was stopped, another did its work and newer records too; then it went on where it was."""
    on_servers.put_many(30, bad)
    with struck(on_servers.config, step, signal.SIGSTOP, before=before) as zombie:
        expel(admin, on_servers.names.load_group)
        on_servers.put(*(track(f"t{n:03}", rev=2, title="newer") for n in range(0, 30, 2)))
        on_servers.load()
        newer = on_servers.stored()
        os.kill(zombie.pid, signal.SIGCONT)
        zombie.join(60)
        assert zombie.exitcode == 0
    assert on_servers.stored() == newer
    on_servers.assert_nothing_lost()


# Servers that go away


N_KEYS = 40


AHEAD = 400
"""So many messages may be sent that are not loaded yet: a backlog would only take time."""


class Sender:
    """Sends records of a few keys, each newer than the one before, and some bad ones."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.sent = self.acknowledged = 0
        """The `rev` of the last record; of the first it is 1."""

    def run(self, is_too_early: Callable[[], bool], stop: threading.Event) -> None:
        with closing(open_bus(self.line.config.bus.url)) as bus, closing(bus.producer()) as producer:
            while not stop.wait(0.05):
                if is_too_early():
                    continue
                for _ in range(20):
                    self.sent += 1
                    send(producer, self.line.names.tracks, track(f"t{self.sent % N_KEYS}", rev=self.sent))
                producer.send(self.line.names.tracks, b"bad %d" % self.sent, b"poison")
                producer.flush()
                self.acknowledged = self.sent

    def assert_all_arrived(self) -> None:
        last = range(self.acknowledged - N_KEYS + 1, self.acknowledged + 1)
        assert self.line.stored() == {f"t{rev % N_KEYS}": rev for rev in last}


@contextmanager
def sending_and_loading(line: Line) -> Iterator[tuple[Sender, Callable[[Callable[[], bool]], None]]]:
    """Send and follow in threads; yield the sender and what waits. At the end all is loaded and nothing lost."""
    stop_sending, stop_loading = threading.Event(), threading.Event()
    sender, seen = Sender(line), [Progress("load", 0, None)]
    with ThreadPoolExecutor() as pool:
        sending = pool.submit(sender.run, lambda: sender.sent - seen[-1].done > AHEAD, stop_sending)
        loading = pool.submit(line.load_elsewhere, stop_loading.is_set, seen.append)
        try:
            yield sender, lambda condition: await_(condition, sending, loading)
            stop_sending.set()
            sending.result(90)
            await_(lambda: line.lag() == 0, loading)
        finally:
            stop_sending.set()
            stop_loading.set()
        loading.result(90)
    sender.assert_all_arrived()
    line.assert_nothing_lost()


@pytest.mark.servers
def test_a_broker_that_is_killed_while_one_sends_and_another_loads_loses_nothing_that_it_acknowledged(
    own_kafka: Run, mongodb_url: str, tmp_path: Path
) -> None:
    with ExitStack() as broker:
        url = broker.enter_context(own_kafka(tmp_path))
        with opened(config_of(mongodb_url, url, batch=100)) as line, sending_and_loading(line) as (sender, until):
            until(lambda: len(line.stored()) == N_KEYS)
            servers.kill(tmp_path, "kafka")
            broker.close()
            before = sender.acknowledged
            broker.enter_context(own_kafka(tmp_path))
            until(lambda: sender.acknowledged > before + 100)


@pytest.mark.servers
def test_a_mongodb_that_is_killed_while_load_writes_loses_nothing_that_it_acknowledged(
    own_mongodb: Run, kafka_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ExitStack() as mongodb:
        url = mongodb.enter_context(own_mongodb(tmp_path))
        with opened(config_of(url, kafka_url, batch=100)) as line, sending_and_loading(line) as (sender, until):
            until(lambda: len(line.stored()) == N_KEYS)
            servers.kill(tmp_path, "mongodb")
            mongodb.close()
            until(lambda: "no connection" in caplog.text)
            before = sender.acknowledged
            mongodb.enter_context(own_mongodb(tmp_path))
            until(lambda: max(line.stored().values(), default=0) > before)


@pytest.mark.servers
@pytest.mark.parametrize("n_cut", [1, 4])
def test_an_acknowledgement_that_is_lost_after_a_bulk_write_repeats_it_and_leaves_no_dead_letter(
    on_servers: Line, n_cut: int
) -> None:
    left = [None] * n_cut
    on_servers.put_many(30)
    with cutting_off(on_servers.config.store.url, left) as url, closing(open_store(url)) as store:
        assert on_servers.load(store).failed == 0
    assert left == []
    on_servers.assert_nothing_lost()


# Messages


@pytest.mark.servers
def test_bad_messages_of_every_kind_are_dead_letters_once_and_the_others_are_loaded(on_servers: Line) -> None:
    names = on_servers.names
    with closing(on_servers.bus.producer()) as producer:
        for n, (key, value, headers, _) in enumerate(BAD.values()):
            for topic in (names.tracks, names.failed):
                producer.send(topic, key, value, (*headers, (NotUTF8("name"), b"1")))
            send(producer, names.tracks, track(f"good {n}"))
            send(producer, names.failed, failure(f"good {n}"))
        producer.flush()
    on_servers.load()
    on_servers.assert_nothing_lost()
    assert len(on_servers.stored()) == on_servers.store.count(Failure) == len(BAD)


@pytest.mark.servers
def test_a_record_of_5_mb_is_refused_before_it_is_sent_and_loaded_once_the_topic_takes_it(
    on_servers: Line, admin: Admin
) -> None:
    large, names = track("large", title=random.Random(0).randbytes(2_500_000).hex()), on_servers.names
    with pytest.raises(BackendError, match=f"exceeds the 1048588 that {names.tracks} takes"):
        on_servers.put(large)
    change(admin, names.tracks, "max.message.bytes", "8000000")
    on_servers.put(track("a"), large, track("z"))
    assert on_servers.load().written == 3
    on_servers.assert_nothing_lost()


@pytest.mark.servers
def test_a_bad_message_of_5_mb_is_a_dead_letter_once_its_topic_takes_it(on_servers: Line, admin: Admin) -> None:
    change(admin, on_servers.names.tracks, "max.message.bytes", "8000000")
    on_servers.put(track("a"))
    on_servers.put_raw(b"large", random.Random(0).randbytes(5_000_000))
    on_servers.put(track("z"))
    assert on_servers.load().failed == 1
    on_servers.assert_nothing_lost()


@pytest.mark.servers
def test_the_same_records_twice_and_in_reverse_order_change_nothing(on_servers: Line) -> None:
    history: list[Record] = [track(f"t{n % 7}", rev=n + 1, title=f"at {n}") for n in range(40)]
    history += [failure(f"f{n % 3}", rev=n + 1) for n in range(9)]
    on_servers.put(*history)
    on_servers.load()
    before = list(on_servers.store.scan(Track)), list(on_servers.store.scan(Failure))
    on_servers.put(*history, *reversed(history))
    assert on_servers.load().written == 0
    assert (list(on_servers.store.scan(Track)), list(on_servers.store.scan(Failure))) == before
    on_servers.assert_nothing_lost()


@pytest.mark.servers
def test_in_reverse_order_the_first_that_is_loaded_stays(on_servers: Line) -> None:
    on_servers.put(*(track(f"t{n % 7}", rev=n + 1) for n in reversed(range(40))))
    on_servers.load()
    on_servers.assert_nothing_lost()
    assert on_servers.stored() == {f"t{n % 7}": n + 1 for n in range(33, 40)}


@pytest.mark.servers
def test_a_record_that_comes_after_a_newer_tombstone_brings_nothing_back(on_servers: Line) -> None:
    with closing(on_servers.bus.producer()) as producer:
        for rev, key in ((5, "in one batch"), (5, "over two")):
            send_tombstone(producer, on_servers.names.tracks, Track, key, rev)
        send(producer, on_servers.names.tracks, track("in one batch", rev=4))
        producer.flush()
    on_servers.load()
    on_servers.put(track("over two", rev=4))
    on_servers.load()
    on_servers.assert_nothing_lost()
    assert on_servers.stored() == {}
    on_servers.put(track("over two", rev=6))
    on_servers.load()
    on_servers.assert_nothing_lost()
    assert on_servers.stored() == {"over two": 6}


@pytest.mark.servers
def test_without_its_offsets_a_group_reads_all_again_onto_newer_state_and_repeats_its_dead_letters_alone(
    on_servers: Line, admin: Admin
) -> None:
    names = on_servers.names
    on_servers.put_many(30, WITH_BAD)
    newer = [track("t000", rev=3), track("t001", rev=2)]
    on_servers.put(*newer)
    with closing(on_servers.bus.producer()) as producer:
        send_tombstone(producer, names.tracks, Track, "t002", 2)
        producer.flush()
    on_servers.load()
    on_servers.store.upsert([track("t005", rev=9)])
    on_servers.assert_nothing_lost()
    before = list(on_servers.store.scan(Track))
    admin.delete_groups([names.load_group])
    report = on_servers.load()
    assert (report.read, report.written, report.failed) == (33, 0, len(WITH_BAD))
    assert list(on_servers.store.scan(Track)) == before
    assert on_servers.bus.ends([names.dead_letters])[TopicPartition(names.dead_letters, 0)] >= 2 * len(WITH_BAD)


# Topics that are made anew


@pytest.mark.servers
@pytest.mark.parametrize("n_messages", [3, 25])
def test_a_topic_that_was_made_anew_between_two_loads_is_read_from_its_beginning(
    on_servers: Line, admin: Admin, n_messages: int
) -> None:
    on_servers.put_many(12)
    on_servers.load()
    make_anew(on_servers, admin)
    on_servers.put(*(track(f"new {n}") for n in range(n_messages)))
    assert on_servers.load().written == n_messages
    on_servers.assert_nothing_lost()


@pytest.mark.servers
@pytest.mark.parametrize("n_messages", [3, 25])
def test_a_topic_that_is_made_anew_while_load_follows_is_read_from_its_beginning(
    on_servers: Line, admin: Admin, n_messages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.kafka.LOOK_SECONDS", 0.1)
    stop = threading.Event()
    on_servers.put_many(12)
    with ThreadPoolExecutor() as pool:
        following = pool.submit(on_servers.load_elsewhere, stop.is_set)
        try:
            await_(lambda: on_servers.lag() == 0, following)
            make_anew(on_servers, admin)
            on_servers.put(*(track(f"new {n}") for n in range(n_messages)))
            await_(lambda: len(on_servers.stored()) == 12 + n_messages and on_servers.lag() == 0, following)
        finally:
            stop.set()
        assert following.result(30).written == 12 + n_messages
    on_servers.assert_nothing_lost()


def make_anew(line: Line, admin: Admin) -> None:
    admin.delete_topics([line.names.tracks])
    await_(lambda: line.names.tracks not in line.bus.topics())
    create_topics(line.bus, line.config)


# Several at once


class Observed:
    """A store that does something before its second batch."""

    def __init__(self, store: Store, first: Callable[[], None]) -> None:
        self.store, self.first, self.calls = store, first, count(1)

    def __getattr__(self, name: str) -> Callable[..., object]:
        method: Callable[..., object] = getattr(self.store, name)
        return method

    def upsert(self, records: Sequence[Record]) -> Upserted:
        if next(self.calls) == 2:
            self.first()
        return self.store.upsert(records)


@pytest.mark.servers
def test_a_second_load_that_joins_and_leaves_in_the_middle_of_a_batch_loses_and_doubles_nothing(
    kafka_url: str, mongodb_url: str, admin: Admin
) -> None:
    bad = frozenset(range(0, 3000, 110))
    with opened(config_of(mongodb_url, kafka_url, partitions=4)) as line, ThreadPoolExecutor() as pool:
        line.put_many(3000, bad)
        group, seconds = line.names.load_group, list[Future[Report]]()

        def leave() -> None:
            raise BackendError("somebody pulled the plug")

        def join() -> None:
            """Have a second one knock, which is let in between two batches of the first."""
            seconds.append(pool.submit(line.load_elsewhere, wrap=lambda store: Observed(store, leave)))
            await_(lambda: admin.describe_groups([group])[group]["group_state"] == "PreparingRebalance", *seconds)

        line.load(Observed(line.store, join))  # type: ignore[arg-type]  # the rest is delegated
        with pytest.raises(BackendError, match="pulled the plug"):
            seconds[0].result(30)
        line.assert_nothing_lost()


# A full disk


def test_a_full_store_stops_load_with_what_to_do_and_with_room_again_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlimited = sqlite3.connect

    def connect(path: Path, **options: Any) -> sqlite3.Connection:
        connection = unlimited(path, **options)
        if path.name == "store.db":
            connection.execute("PRAGMA max_page_count=25")
        return connection

    config = config_of(f"sqlite:///{tmp_path}/store.db", f"sqlite:///{tmp_path}/bus.db")
    with monkeypatch.context() as small, opened(config) as line:
        small.setattr("core.sqlite.sqlite3.connect", connect)
        line.put_many(300, {5, 295})
        with pytest.raises(BackendError, match="full; make room on the disk and run the same command again"):
            line.load()
        assert 0 < line.lag() < 300
        assert len(line.stored()) + 2 > 300 - line.lag() - 1
    with opened(config) as line:
        line.load()
        line.assert_nothing_lost()
        assert len(line.stored()) == 298


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a folder that is a disk of 1 MB."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no small disk can be mounted here: only root may")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_full_disk_is_one_line_that_says_what_to_do_and_with_room_again_load_goes_on(small_disk: Path) -> None:
    url = f"sqlite:///{small_disk}/murmur.db"
    config = Config.model_validate({"store": url, "bus": url})
    command = [Path(sys.executable).with_name("murmur"), "-q", "load"]
    with opened(config) as line:
        line.put(*(track(f"t{n:03}", title="x" * 400) for n in range(500)))
        line.put_raw(b"bad", b"poison")
    done = subprocess.run(command, cwd=small_disk, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "full; make room on the disk and run the same command again" in done.stderr
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    subprocess.run(command, cwd=small_disk, check=True, capture_output=True)
    with opened(config) as line:
        line.assert_nothing_lost()
        assert len(line.stored()) == 500
