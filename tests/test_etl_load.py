from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

import pytest
from etl_library import NAMES, Library, assert_nothing_lost
from hypothesis import given, settings
from hypothesis import strategies as st

from core.bus import Bus, Headers, Message, Offsets, Producer, TopicPartition, read_to_end
from core.config import Config
from core.errors import BackendError, RecordError
from core.jobs import Progress, Report
from core.names import cloud_event
from core.records import Failure, Record, Source, Track
from core.store import Store, Upserted
from etl import load
from etl.messages import create_topics, send, send_tombstone

SOURCE = Source(
    path="/music/a.mp3",
    size=1,
    mtime_ns=1,
    digest="d",
    codec="mp3",
    sample_rate=44_100,
    channels=2,
    decoder="libsndfile 1.2.2",
    librosa="0.11.0",
)


def track(track_id: str = "x", rev: int = 1, title: str = "Blue") -> Track:
    return Track(
        track_id=track_id,
        rev=rev,
        title=title,
        duration=1.5,
        source=SOURCE,
        feature_set="f",
        features={"mfcc": {"mean": [0.5, -1.25]}},
    )


def failure(key: str = "k", rev: int = 1) -> Failure:
    return Failure(
        rev=rev,
        path_digest=key,
        path=f"/music/{key}.mp3",
        stage="read",
        error="AudioError",
        message="the file is empty",
        advice="copy it again",
        failed_at="2026-11-21T00:00:00.000000Z",
    )


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[tuple[Store, Bus]]:
    with Library(tmp_path).opened() as (store, bus):
        create_topics(bus, Config())
        yield store, bus


def put(bus: Bus, *records: Record) -> None:
    with closing(bus.producer()) as producer:
        for record in records:
            send(producer, NAMES.tracks if isinstance(record, Track) else NAMES.failed, record)
        producer.flush()


def put_raw(bus: Bus, key: bytes, value: bytes | None, headers: Headers = (), topic: str = NAMES.tracks) -> None:
    with closing(bus.producer()) as producer:
        producer.send(topic, key, value, headers)
        producer.flush()


def dead_letters(bus: Bus) -> list[Message]:
    return list(read_to_end(bus, [NAMES.dead_letters]))


def stored(store: Store) -> dict[str, Track]:
    return {document["track_id"]: Track.from_document(document) for document in store.scan(Track)}


def test_tracks_and_failures_are_stored_as_they_were_sent(opened: tuple[Store, Bus]) -> None:
    store, bus = opened
    put(bus, track("x"), track("y"), failure("k"))
    report = load.run(Config(), store=store, bus=bus)
    assert (report.read, report.written, report.unchanged, report.failed) == (3, 3, 0, 0)
    assert stored(store) == {"x": track("x"), "y": track("y")}
    assert list(map(Failure.from_document, store.scan(Failure))) == [failure("k")]


def test_loading_again_changes_nothing(opened: tuple[Store, Bus]) -> None:
    store, bus = opened
    put(bus, track("x"))
    load.run(Config(), store=store, bus=bus)
    report = load.run(Config(), store=store, bus=bus)
    assert (report.read, report.written) == (0, 0)
    put(bus, track("x"))
    report = load.run(Config(), store=store, bus=bus)
    assert (report.read, report.written, report.unchanged) == (1, 0, 1)


def test_before_anything_was_sent_there_is_nothing_to_load(tmp_path: Path) -> None:
    assert Library(tmp_path).load().read == 0


def test_a_tombstone_deletes_by_the_rev_in_its_header(opened: tuple[Store, Bus]) -> None:
    store, bus = opened
    put(bus, track("x", rev=5), track("y", rev=5), failure("k", rev=5))
    load.run(Config(), store=store, bus=bus)
    with closing(bus.producer()) as producer:
        send_tombstone(producer, NAMES.tracks, Track, "x", 6)
        send_tombstone(producer, NAMES.tracks, Track, "y", 4)
        send_tombstone(producer, NAMES.failed, Failure, "k", 6)
        producer.flush()
    report = load.run(Config(), store=store, bus=bus)
    assert (report.written, report.unchanged) == (2, 1)
    assert stored(store) == {"y": track("y", rev=5)}
    assert list(store.scan(Failure)) == []
    put(bus, track("x", rev=6))
    load.run(Config(), store=store, bus=bus)
    assert "x" not in stored(store)


BAD: dict[str, tuple[bytes, bytes | None, Headers, str]] = {
    "poison bytes": (b"x", b"\x00\xff\xfe", (("rev", b"1"),), "not a Track"),
    "bad JSON": (b"x", b'{"track_id": ', (), "not a Track"),
    "wrong schema": (b"x", b'{"track_id": "x", "rev": 1}', (), "not a Track: duration: Field required"),
    "NaN": (b"x", track().to_json().replace(b"-1.25", b"NaN"), (), "not a Track: features.mfcc.mean.1"),
    "infinity": (b"x", track().to_json().replace(b"1.5", b"Infinity"), (), "not a Track: duration"),
    "another key": (b"y", track().to_json(), (), "the key 'y' is not the record's own, 'x'"),
    "a key that is not UTF-8": (b"\xff", track().to_json(), (), "the key is not UTF-8"),
    "an empty key": (b"", track().to_json(), (), "the message has no key"),
    "a tombstone without rev": (b"x", None, (("other", b"header"),), "the tombstone of 'x' has no rev header"),
    "a tombstone with a strange rev": (b"x", None, (("rev", b"-1"),), "the tombstone of 'x' has no rev header"),
    "a tombstone with a rev beyond 64 bits": (b"x", None, (("rev", b"9" * 19),), "the tombstone of 'x' has no rev"),
    "a tombstone with a rev of 5,000 digits": (b"x", None, (("rev", b"9" * 5000),), "the tombstone of 'x' has no rev"),
    "a key that forges a line": (b"x\nmurmur: \x1b[1mdone", b"no", (), "not a Track"),
    "a field that forges a line": (
        b"x",
        track().to_json().replace(b"mfcc", b"\\n").replace(b"-1.25", b"NaN"),
        (),
        "not",
    ),
    "a rev beyond 64 bits": (b"x", track(rev=77).to_json().replace(b"77", b"9" * 19), (), "not a Track: rev"),
    "a year beyond 64 bits": (
        b"x",
        track().to_json().replace(b'"year":null', b'"year":1' + b"0" * 20),
        (),
        "not a Track",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_loaded_goes_to_the_dead_letters_as_it_is_and_the_rest_goes_on(
    opened: tuple[Store, Bus], case: str
) -> None:
    store, bus = opened
    key, value, headers, reason = BAD[case]
    put(bus, track("a"))
    put_raw(bus, key, value, headers)
    put(bus, track("z"))
    report = load.run(Config(), store=store, bus=bus)
    assert (report.read, report.written, report.failed, report.sent) == (3, 2, 1, 1)
    assert stored(store) == {"a": track("a"), "z": track("z")}
    (letter,) = dead_letters(bus)
    assert (letter.key, letter.value, letter.headers[: len(headers)]) == (key, value, headers)
    assert (letter.header("dlq_reason") or "").startswith(reason)
    assert (letter.header("dlq_reason") or "").isprintable()
    assert letter.header("dlq_class") == "RecordError"
    assert [letter.header(f"dlq_{name}") for name in ("topic", "partition", "offset")] == [NAMES.tracks, "0", "1"]
    assert letter.header("dlq_attempts") == "1"
    assert letter.header("dlq_version") == version("murmuration")
    assert (letter.header("dlq_first_seen") or "").endswith("Z")
    assert_nothing_lost(bus, store)
    assert load.run(Config(), store=store, bus=bus).read == 0


def test_a_bad_failure_is_a_dead_letter_too(opened: tuple[Store, Bus]) -> None:
    store, bus = opened
    put_raw(bus, b"k", b"{}", topic=NAMES.failed)
    assert load.run(Config(), store=store, bus=bus).failed == 1
    assert dead_letters(bus)[0].header("dlq_topic") == NAMES.failed


class Failing:
    """A store that fails after what it was asked to do, or before."""

    def __init__(self, store: Store, *, after: bool = False, retriable: bool = True) -> None:
        self.store, self.after, self.retriable = store, after, retriable

    def __getattr__(self, name: str) -> Callable[..., object]:
        return getattr(self.store, name)

    def upsert(self, records: Sequence[Record]) -> Upserted:
        if self.after:
            self.store.upsert(records)
        raise BackendError("the server went away", retriable=self.retriable)


@pytest.mark.parametrize("after", [True, False])
def test_a_store_that_stays_away_commits_nothing_and_the_next_run_repeats_the_batch(
    opened: tuple[Store, Bus], after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.patience.PATIENCE", 0.0)
    store, bus = opened
    put(bus, track("x"), track("y"))
    put_raw(bus, b"z", b"poison")
    with pytest.raises(BackendError, match="went away"):
        load.run(Config(), store=Failing(store, after=after), bus=bus)
    assert bus.committed(NAMES.load_group, [NAMES.tracks]) == {}
    report = load.run(Config(), store=store, bus=bus)
    assert (report.read, report.failed) == (3, 1)
    assert len(assert_nothing_lost(bus, store)) == 1


def test_what_trying_again_cannot_mend_is_an_error_at_once(opened: tuple[Store, Bus]) -> None:
    store, bus = opened
    put(bus, track("x"))
    with pytest.raises(BackendError, match="went away"):
        load.run(Config(), store=Failing(store, retriable=False), bus=bus)


class Flaky(Failing):
    """A store that fails before or after what it was asked to do, time after time, until it recovers."""

    n_failures = 6

    def upsert(self, records: Sequence[Record]) -> Upserted:
        self.n_failures -= 1
        self.after = self.n_failures % 2 == 0
        return super().upsert(records) if self.n_failures >= 0 else self.store.upsert(records)


@pytest.fixture
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.patience.LONGEST_WAIT", 0.01)


@pytest.mark.usefixtures("_hasty")
def test_a_connection_that_comes_back_is_waited_for_and_leaves_no_dead_letter(
    opened: tuple[Store, Bus], caplog: pytest.LogCaptureFixture
) -> None:
    store, bus = opened
    put(bus, *(track(f"t{n}") for n in range(10)))
    put_raw(bus, b"z", b"poison")
    config = Config.model_validate({"load": {"batch": 4}})
    report = load.run(config, store=Flaky(store), bus=bus)
    assert (report.read, report.failed) == (11, 1)
    assert len(assert_nothing_lost(bus, store)) == 1
    assert caplog.text.count("the server went away: trying again") == 6


# Too many bad messages


def put_bad(bus: Bus, *, n_bad: int, n_good: int, prefix: str = "") -> None:
    """Send bad messages and good ones, well mixed."""
    with closing(bus.producer()) as producer:
        for n in range(n_bad + n_good):
            good = (n + 1) * n_good // (n_bad + n_good) > n * n_good // (n_bad + n_good)
            key = f"{prefix}{n:05}"
            producer.send(NAMES.tracks, key.encode(), track(key).to_json() if good else b"poison")
        producer.flush()


@pytest.mark.parametrize(("n_bad", "n_good", "share"), [(100, 0, 0.99), (60, 50, 0.5), (1, 99, 0.0)])
def test_above_the_allowed_share_of_bad_messages_load_stops_and_buries_and_commits_nothing(
    opened: tuple[Store, Bus], n_bad: int, n_good: int, share: float
) -> None:
    store, bus = opened
    put_bad(bus, n_bad=n_bad, n_good=n_good)
    config = Config.model_validate({"load": {"max_bad_share": share}})
    for _ in range(2):
        with pytest.raises(RecordError, match=f"{n_bad} of the last {n_bad + n_good} messages .*load.max_bad_share"):
            load.run(config, store=store, bus=bus)
    assert dead_letters(bus) == []
    assert bus.committed(NAMES.load_group, [NAMES.tracks]) == {}
    report = load.run(Config.model_validate({"load": {"max_bad_share": 1}}), store=store, bus=bus)
    assert (report.read, report.failed) == (n_bad + n_good, n_bad)
    assert len(dead_letters(bus)) == n_bad


@pytest.mark.parametrize(("n_bad", "n_good", "share"), [(99, 0, 0.0), (50, 50, 0.5), (100, 100, 0.5)])
def test_up_to_the_allowed_share_and_below_a_hundred_messages_load_goes_on(
    opened: tuple[Store, Bus], n_bad: int, n_good: int, share: float
) -> None:
    store, bus = opened
    put_bad(bus, n_bad=n_bad, n_good=n_good)
    config = Config.model_validate({"load": {"max_bad_share": share}})
    assert load.run(config, store=store, bus=bus).failed == n_bad


def test_the_share_is_that_of_the_last_thousand_messages(opened: tuple[Store, Bus]) -> None:
    store, bus = opened
    put_bad(bus, n_bad=0, n_good=2000)
    put_bad(bus, n_bad=600, n_good=0, prefix="z")
    config = Config.model_validate({"load": {"batch": 50}})
    with pytest.raises(RecordError, match="of the last 1000 messages"):
        load.run(config, store=store, bus=bus)
    assert 450 <= len(dead_letters(bus)) <= 500
    assert bus.committed(NAMES.load_group, [NAMES.tracks])[TopicPartition(NAMES.tracks, 0)] <= 2500


# Following


def test_following_goes_on_after_the_end_until_it_is_asked_to_stop(opened: tuple[Store, Bus]) -> None:
    store, bus = opened
    put(bus, track("x"))
    seen: list[Progress] = []

    def until() -> bool:
        if len(seen) == 1 and seen[0].done == 1:
            put(bus, track("y"))
        return bool(seen) and seen[-1].done == 2

    report = load.run(Config(), store=store, bus=bus, progress=seen.append, until=until)
    assert (report.read, report.written) == (2, 2)
    assert sorted(stored(store)) == ["x", "y"]
    assert load.run(Config(), store=store, bus=bus).read == 0


@pytest.mark.usefixtures("_hasty")
def test_while_a_connection_is_broken_following_can_be_stopped(opened: tuple[Store, Bus]) -> None:
    store, bus = opened
    put(bus, track("x"))
    failing = Flaky(store)
    failing.n_failures = 10**6
    report = load.run(Config(), store=failing, bus=bus, until=lambda: failing.n_failures < 10**6 - 5)
    assert report.read == 0
    assert load.run(Config(), store=store, bus=bus).read == 1


# Several at once


def test_a_run_that_finds_another_at_work_ends_when_all_is_done(opened: tuple[Store, Bus], tmp_path: Path) -> None:
    _, bus = opened
    put(bus, *(track(f"t{n}") for n in range(20)))
    consumer = bus.consumer([NAMES.tracks, NAMES.failed], group=NAMES.load_group)
    assert consumer.poll(5.0)

    def work() -> Report:
        with Library(tmp_path).opened() as (own_store, own_bus):
            return load.run(Config(), store=own_store, bus=own_bus)

    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(work)
        time.sleep(0.5)
        assert not waiting.done()
        consumer.commit()
        assert waiting.result(30).read == 0
    consumer.close()


# Deletion marks


def test_old_deletion_marks_are_swept_and_younger_ones_stay(
    opened: tuple[Store, Bus], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, bus = opened
    month_ago = time.time_ns() - 31 * 24 * 3600 * 10**9
    monkeypatch.setattr("core.sqlite_store.time.time_ns", lambda: month_ago)
    store.delete(Track, {"old": 5})
    store.delete(Failure, {"old": 5})
    monkeypatch.undo()
    store.delete(Track, {"young": 5})
    load.run(Config(), store=store, bus=bus)
    assert store.upsert([track("old"), track("young")]).written == 1
    assert store.upsert([failure("old")]).written == 1


class Log:
    """A bus whose topic of tracks holds given messages, as Kafka does until it compacts."""

    def __init__(self, bus: Bus, messages: list[Message]) -> None:
        self.bus, self.messages, self.end = bus, messages, len(messages)

    def __getattr__(self, name: str) -> Callable[..., object]:
        return getattr(self.bus, name)

    def ends(self, _: object) -> Offsets:
        return {TopicPartition(NAMES.tracks, 0): self.end}

    def committed(self, *_: object) -> Offsets:
        return {TopicPartition(NAMES.tracks, 0): self.end - len(self.messages)}

    def producer(self, *, commits: object) -> Producer:
        assert commits is self
        return self.bus.producer("dead letters")

    def consumer(self, *_: object, **__: object) -> Log:
        return self

    def poll(self, _: float, max_records: int) -> list[Message]:
        batch, self.messages = self.messages[:max_records], self.messages[max_records:]
        return batch

    def at_end(self) -> bool:
        return not self.messages

    def commit(self) -> None:
        pass

    def close(self) -> None:
        pass


def message(offset: int, key: str, rev: int, value: bytes | None) -> Message:
    return Message(NAMES.tracks, 0, offset, key.encode(), value, cloud_event("Track", key, rev), 0)


versions = st.tuples(st.sampled_from("xyz"), st.integers(1, 6), st.sampled_from(["record", "tombstone"]))


@settings(max_examples=40, deadline=None)
@given(st.lists(versions, max_size=15), st.integers(1, 16))
def test_in_any_order_and_any_batches_the_highest_rev_wins_and_of_equal_ones_the_first(
    history: list[tuple[str, int, str]], batch: int
) -> None:
    log, expected = [], dict[str, tuple[int, Track | None]]()
    for offset, (key, rev, kind) in enumerate(history):
        record = track(key, rev, title=f"at {offset}") if kind == "record" else None
        log.append(message(offset, key, rev, record.to_json() if record else None))
        if rev > expected.get(key, (0, None))[0]:
            expected[key] = rev, record
    config = Config.model_validate({"load": {"batch": batch}})
    with tempfile.TemporaryDirectory() as folder, Library(Path(folder)).opened() as (store, bus):
        load.run(config, store=store, bus=Log(bus, log))  # type: ignore[arg-type]  # the rest is delegated
        assert stored(store) == {key: record for key, (_, record) in expected.items() if record}
        assert dead_letters(bus) == []


class Choosy:
    """A store that refuses some titles, as MongoDB refuses documents over 16 MB."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def __getattr__(self, name: str) -> Callable[..., object]:
        return getattr(self.store, name)

    def upsert(self, records: Sequence[Record]) -> Upserted:
        records = list(records)
        good = [record for record in records if not isinstance(record, Track) or record.title != "huge"]
        refused = {record.key: "too large" for record in records if record not in good}
        return Upserted(self.store.upsert(good).written, refused)

    def delete(self, kind: type[Record], revs: Mapping[str, int]) -> Upserted:
        return Upserted(0, dict.fromkeys(revs, "no marks here"))


def test_a_tombstone_that_the_store_refuses_is_a_dead_letter(opened: tuple[Store, Bus]) -> None:
    store, bus = opened
    log = [message(0, "x", 4, track(rev=4).to_json()), message(1, "x", 5, None)]
    report = load.run(Config(), store=Choosy(store), bus=Log(bus, log))  # type: ignore[arg-type]
    assert stored(store) == {"x": track(rev=4)}
    assert [letter.header("dlq_reason") for letter in dead_letters(bus)] == ["no marks here"]
    assert dead_letters(bus)[0].header("dlq_class") == "Refused"
    assert (report.read, report.written, report.unchanged, report.failed) == (2, 1, 0, 1)


def test_a_version_that_the_store_refuses_is_a_dead_letter_and_makes_way_for_the_one_before_it(
    opened: tuple[Store, Bus],
) -> None:
    store, bus = opened
    titles = {4: "small", 7: "huge", 5: "small", 8: "huge"}
    log = [
        message(offset, "x", rev, track(rev=rev, title=title).to_json())
        for offset, (rev, title) in enumerate(titles.items())
    ]
    report = load.run(Config(), store=Choosy(store), bus=Log(bus, log))  # type: ignore[arg-type]
    assert stored(store) == {"x": track(rev=5, title="small")}
    assert [(letter.header("dlq_offset"), letter.header("dlq_reason")) for letter in dead_letters(bus)] == [
        ("3", "too large"),
        ("1", "too large"),
    ]
    assert (report.read, report.written, report.unchanged, report.failed) == (4, 1, 1, 2)
