"""Dead letters: reading, sending back and removing them, on both kinds of bus."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from core.bus import Bus, Headers, Message, open_bus, read_to_end
from core.config import Config
from core.errors import ConfigError
from core.names import Names, utc
from etl.dead_letters import MAX_ATTEMPTS, DeadLetter, Place, Selection, bury, dead_letters, purge, replay
from etl.messages import create_topics


@pytest.fixture
def config() -> Config:
    return Config.model_validate({"topics": {"prefix": f"dlq{uuid4().hex[:8]}."}})


@pytest.fixture
def names(config: Config) -> Names:
    return Names(config.topics.prefix)


@pytest.fixture(params=["sqlite", pytest.param("kafka", marks=pytest.mark.servers)])
def bus(request: pytest.FixtureRequest, config: Config, tmp_path: Path) -> Iterator[Bus]:
    kafka = request.param == "kafka"
    url = request.getfixturevalue("kafka_url") if kafka else f"sqlite:///{tmp_path}/bus.db"
    with closing(open_bus(url)) as bus:
        create_topics(bus, config)
        yield bus


Put = Callable[..., None]


def replayed(attempts: int, days_ago: float = 0) -> Headers:
    """Return what stands behind the headers of a message that was sent back."""
    first_seen = utc(datetime.now(UTC) - timedelta(days=days_ago))
    return (("murmur_replay_attempts", b"%d" % attempts), ("murmur_replay_first_seen", first_seen.encode()))


@pytest.fixture
def put(bus: Bus, names: Names) -> Put:
    """Return what buries messages at the given offsets of the topic of tracks."""

    def put(*offsets: int, reason: str = "not a Track", headers: Headers = (), topic: str = names.tracks) -> None:
        with closing(bus.producer()) as producer:
            for offset in offsets:
                message = Message(topic, 0, offset, b"k%d" % offset, b"\x00%d" % offset, headers, 0)
                bury(producer, names.dead_letters, message, reason)
            producer.flush()

    return put


def offsets(letters: Iterator[DeadLetter]) -> list[int]:
    return [letter.place.offset for letter in letters]


def sent_back(bus: Bus, names: Names) -> list[Message]:
    return list(read_to_end(bus, [names.tracks]))


def test_a_dead_letter_is_the_message_as_it_was_and_what_is_known_of_it(
    bus: Bus, config: Config, names: Names, put: Put
) -> None:
    headers = (("rev", b"\xff"), ("rev", b"1"), ("empty", b""))
    put(7, reason="poison \udc80", headers=headers)
    (letter,) = dead_letters(config, bus=bus)
    assert (letter.key, letter.value, letter.headers) == (b"k7", b"\x007", headers)
    assert (letter.place, str(letter.place)) == (Place(names.tracks, 0, 7), f"{names.tracks}/0/7")
    assert (letter.reason, letter.error, letter.attempts) == ("poison ?", "RecordError", 1)
    assert abs(datetime.now(UTC) - letter.first_seen) < timedelta(minutes=1)


def test_where_there_never_was_one_there_are_none(tmp_path: Path) -> None:
    with closing(open_bus(f"sqlite:///{tmp_path}/bus.db")) as bus:
        assert list(dead_letters(Config(), bus=bus)) == []
        assert replay(Config(), bus=bus).read == 0
        assert purge(Config(), bus=bus).read == 0


def test_they_are_selected_by_place_reason_and_time(bus: Bus, config: Config, names: Names, put: Put) -> None:
    day = timedelta(days=1)
    put(1, 2, reason="not a Track: rev")
    put(3, reason="too large", headers=replayed(1, days_ago=3))
    put(1, reason="not a Failure", topic=names.failed)

    def select(*places: str, **fields: object) -> list[int]:
        return offsets(dead_letters(config, Selection(places, **fields), bus=bus))  # type: ignore[arg-type]

    assert select() == [1, 2, 3, 1]
    assert select(names.tracks) == [1, 2, 3]
    assert select(f"{names.tracks}/0/2", f"{names.failed}/0") == [2, 1]
    assert select(reason="NOT A") == [1, 2, 1]
    assert select(since=datetime.now(UTC) - 2 * day) == [1, 2, 1]
    assert select(names.tracks, reason="track", since=datetime.now(UTC) - 2 * day) == [1, 2]
    for missing in (f"{names.tracks}/0/", f"{names.tracks}/1", f"{names.tracks}/0/22", "tracks"):
        with pytest.raises(ConfigError, match=missing):
            select(f"{names.tracks}/0/1", missing)


def test_replaying_sends_each_back_once_with_its_attempts_and_takes_it_off(
    bus: Bus, config: Config, names: Names, put: Put
) -> None:
    put(1, 2, headers=(("rev", b"1"),))
    first_seen = {letter.first_seen for letter in dead_letters(config, bus=bus)}
    report = replay(config, bus=bus)
    assert (report.read, report.sent, report.unchanged) == (2, 2, 0)
    back = sent_back(bus, names)
    assert [(message.key, message.value) for message in back] == [(b"k1", b"\x001"), (b"k2", b"\x002")]
    assert {message.headers[0] for message in back} == {("rev", b"1")}
    assert {message.header("murmur_replay_attempts") for message in back} == {"1"}
    assert {message.header("murmur_replay_first_seen") for message in back} == set(map(utc, first_seen))
    assert list(dead_letters(config, bus=bus)) == []
    assert replay(config, bus=bus).sent == 0
    assert len(sent_back(bus, names)) == 2


def test_what_is_not_meant_stays_as_it_is(bus: Bus, config: Config, names: Names, put: Put) -> None:
    put(*range(6))
    put(6, 7, reason="too large", headers=(("rev", b"\xff"),))
    before = {letter.place.offset: letter for letter in dead_letters(config, bus=bus)}
    assert replay(config, Selection((f"{names.tracks}/0/4",)), bus=bus).sent == 1
    assert purge(config, Selection(reason="TOO"), bus=bus).read == 2
    after = {letter.place.offset: letter for letter in dead_letters(config, bus=bus)}
    assert after == {offset: before[offset] for offset in (0, 1, 2, 3, 5)}
    assert [message.key for message in sent_back(bus, names)] == [b"k4"]


def test_a_place_that_is_not_there_changes_nothing(bus: Bus, config: Config, names: Names, put: Put) -> None:
    put(1)
    for take_off in (replay, purge):
        with pytest.raises(ConfigError, match="nowhere"):
            take_off(config, Selection((f"{names.tracks}/0/1", "nowhere")), bus=bus)
    assert offsets(dead_letters(config, bus=bus)) == [1]
    assert sent_back(bus, names) == []


@pytest.mark.parametrize(
    "headers",
    [
        (("dlq_origin", b"x"), ("dlq_first_seen", b"2020-01-01T00:00:00Z"), ("dlq_attempts", b"7")),
        (("murmur_replay_attempts", b"7"),),
        (("murmur_replay_attempts", b"no number"), ("murmur_replay_first_seen", b"0001-01-01T00:00:00+23:59")),
    ],
)
def test_headers_that_only_look_like_ours_change_nothing(bus: Bus, config: Config, put: Put, headers: Headers) -> None:
    put(1, headers=headers)
    (letter,) = dead_letters(config, bus=bus)
    assert letter.headers in (headers, ())
    assert letter.attempts == 1
    assert abs(datetime.now(UTC) - letter.first_seen) < timedelta(minutes=1)


def test_what_a_later_message_of_its_key_has_superseded_stays(bus: Bus, config: Config, names: Names, put: Put) -> None:
    """Sent back, it would be the last of its key: a compacted topic would keep it instead of the good one."""
    with closing(bus.producer()) as producer:
        for key in (b"k0", b"k1", b"k2"):
            producer.send(names.tracks, key, b"bad")
        producer.flush()
        for message in list(read_to_end(bus, [names.tracks])):
            bury(producer, names.dead_letters, message, "first" if message.key == b"k0" else "superseded")
        for key in (b"k2", b"k1"):
            producer.send(names.tracks, key, b"good")
        producer.flush()
    report = replay(config, Selection(reason="superseded"), bus=bus)
    assert (report.read, report.sent, report.unchanged) == (2, 0, 2)
    assert replay(config, bus=bus).sent == 1
    assert [letter.key for letter in dead_letters(config, bus=bus)] == [b"k1", b"k2"]


def test_purging_removes_them_for_good(bus: Bus, config: Config, names: Names, put: Put) -> None:
    put(1, 2, 3)
    assert purge(config, bus=bus).read == 3
    assert list(dead_letters(config, bus=bus)) == []
    assert list(read_to_end(bus, [names.dead_letters])) == []
    put(4)
    assert offsets(dead_letters(config, bus=bus)) == [4]


def test_what_was_tried_too_often_is_not_sent_back_any_more(bus: Bus, config: Config, names: Names, put: Put) -> None:
    headers: Headers = ()
    for attempt in range(1, MAX_ATTEMPTS):
        put(attempt, headers=headers)
        assert [letter.attempts for letter in dead_letters(config, bus=bus)] == [attempt]
        assert replay(config, bus=bus).sent == 1
        headers = sent_back(bus, names)[-1].headers
        assert len(headers) == 2
    put(9, headers=headers)
    for _ in range(2):
        report = replay(config, bus=bus)
        assert (report.read, report.sent, report.unchanged) == (1, 0, 1)
    assert [letter.attempts for letter in dead_letters(config, bus=bus)] == [MAX_ATTEMPTS]


@pytest.mark.servers
@pytest.mark.parametrize("bus", ["kafka"], indirect=True)
def test_what_its_topic_does_not_take_stays_and_the_rest_is_sent_back(
    bus: Bus, config: Config, names: Names, put: Put
) -> None:
    put(1)
    put(2, headers=(("large", bytes(2_000_000)),))
    put(3)
    report = replay(config, bus=bus)
    assert (report.read, report.sent, report.unchanged) == (3, 2, 1)
    assert offsets(dead_letters(config, bus=bus)) == [2]
    assert len(sent_back(bus, names)) == 2


def test_what_is_too_old_is_gone_and_sending_it_anew_does_not_prolong_it(
    bus: Bus, config: Config, names: Names, put: Put
) -> None:
    put(1, headers=replayed(1, days_ago=15))
    put(2, 3)
    assert offsets(dead_letters(config, bus=bus)) == [2, 3]
    assert replay(config, Selection((f"{names.tracks}/0/2",)), bus=bus).sent == 1
    assert [message.key for message in read_to_end(bus, [names.dead_letters])] == [b"k3"]


def test_a_message_that_somebody_else_put_there_is_shown_and_not_sent_back(
    bus: Bus, config: Config, names: Names
) -> None:
    with closing(bus.producer()) as producer:
        producer.send(names.dead_letters, None, b"hello", (("dlq_offset", b"x"), ("dlq_first_seen", b"then")))
        producer.flush()
    (letter,) = dead_letters(config, bus=bus)
    assert (letter.place, letter.reason, letter.attempts) == (Place(names.dead_letters, 0, 0), "", 0)
    assert (replay(config, bus=bus).unchanged, purge(config, bus=bus).read) == (1, 1)


def test_a_replay_that_is_cut_off_before_the_topic_is_shortened_hides_what_it_sent(
    bus: Bus, config: Config, names: Names, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    class CutOffError(Exception):
        pass

    def cut_off(_: object) -> None:
        raise CutOffError

    put(1, 2)
    monkeypatch.setattr(bus, "trim", cut_off)
    with pytest.raises(CutOffError):
        replay(config, Selection((f"{names.tracks}/0/1",)), bus=bus)
    monkeypatch.undo()
    assert offsets(dead_letters(config, bus=bus)) == [2]
    assert replay(config, bus=bus).sent == 1
    assert [message.key for message in sent_back(bus, names)] == [b"k1", b"k2"]
