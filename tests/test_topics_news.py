from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Generator, Iterable
from itertools import chain, cycle
from typing import Any

import pytest
from processes import running
from topics_library import World, add_run

from core.bus import Bus, Consumer, Message
from core.errors import BackendError, ConfigError
from core.names import Names
from topics.news import News, batches, members, subscribe

FIRST = {"a": "c01", "b": "c01", "c": "c01", "d": "c02"}


def publish(world: World, clusters: dict[str, str]) -> None:
    add_run(world.store, clusters)
    world.publish()


def news(world: World, group: str) -> list[News]:
    """Return all that is new to a group."""
    return list(chain.from_iterable(batches(world.bus, world.names, "c01", group)))


def new_to(world: World, group: str) -> list[tuple[str, bool]]:
    """Return track_id and whether it is there, for all that is new to a group."""
    return sorted((new.track_id, new.member is not None) for new in news(world, group))


def test_members_are_those_that_the_cluster_has_now(world: World) -> None:
    publish(world, FIRST)
    publish(world, FIRST | {"a": "c02"})
    found = members(world.bus, world.names, "c01")
    assert sorted(found) == ["b", "c"]
    assert found["b"].title == "Title of b"


def test_a_cluster_that_ended_has_no_members(world: World) -> None:
    publish(world, FIRST)
    publish(world, dict.fromkeys(FIRST, "c01"))
    assert members(world.bus, world.names, "c02") == {}


@pytest.mark.parametrize("unknown", ["c99", "", "c01.tracks", "../c01"])
def test_an_unknown_cluster_is_answered_with_those_there_are(world: World, unknown: str) -> None:
    publish(world, FIRST)
    with pytest.raises(ConfigError, match="c01, c02"):
        members(world.bus, world.names, unknown)
    with pytest.raises(ConfigError, match="c01, c02"):
        batches(world.bus, world.names, unknown, "player")


def test_before_the_first_publication_the_error_names_the_command(world: World) -> None:
    with pytest.raises(ConfigError, match="murmur publish"):
        members(world.bus, world.names, "c01")


def test_a_value_that_is_no_member_is_skipped_with_a_warning(world: World, caplog: pytest.LogCaptureFixture) -> None:
    publish(world, FIRST)
    producer = world.bus.producer()
    topic = world.names.cluster("c01")
    for key, value in ((b"x", b"{not json"), (b"y", b'{"track_id": "y"}'), (b"\xff", b"{}"), (b"z", b"")):
        producer.send(topic, key, value)
    producer.flush()
    producer.close()
    assert sorted(members(world.bus, world.names, "c01")) == ["a", "b", "c"]
    warnings = [record.getMessage() for record in caplog.records if record.name == "topics.fold"]
    assert len(warnings) == 4
    assert all(topic in warning and "offset" in warning for warning in warnings)


class TestNews:
    def test_a_new_group_gets_every_member(self, world: World) -> None:
        publish(world, FIRST)
        assert new_to(world, "player") == [("a", True), ("b", True), ("c", True)]

    def test_a_group_gets_afterwards_only_what_joined_changed_or_left(self, world: World) -> None:
        publish(world, FIRST)
        new_to(world, "player")
        assert new_to(world, "player") == []
        publish(world, FIRST | {"a": "c02", "d": "c01"})
        assert ("a", False) in (found := new_to(world, "player"))
        assert ("d", True) in found
        assert new_to(world, "player") == []

    def test_groups_are_independent(self, world: World) -> None:
        publish(world, FIRST)
        assert new_to(world, "one") == new_to(world, "two")

    def test_what_a_caller_has_not_finished_is_delivered_again(self, world: World) -> None:
        publish(world, FIRST)
        stopped = batches(world.bus, world.names, "c01", "player")
        next(stopped)
        stopped.close()
        assert len(new_to(world, "player")) == 3

    def test_what_a_caller_has_finished_is_committed_with_nothing_left_to_read(self, world: World) -> None:
        publish(world, FIRST)
        new_to(world, "player")
        topic = world.names.cluster("c01")
        ends = {place: end for place, end in world.bus.ends([topic]).items() if end}
        committed = world.bus.committed(f"{world.names.prefix}player", [topic])
        assert {place: committed[place] for place in ends} == ends


class Flaky:
    """A bus of which every second poll of a consumer fails, after the messages were read."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    def consumer(self, topics: Iterable[str], *, group: str | None = None) -> Consumer:
        consumer = self._bus.consumer(topics, group=group)
        poll, fails = consumer.poll, cycle([True, False])

        def fail(timeout: float = 1.0, max_records: int = 500) -> list[Message]:
            messages = poll(timeout, min(max_records, 2))
            if messages and next(fails):
                raise BackendError("the server went away", retriable=True)
            return messages

        consumer.poll = fail  # type: ignore[method-assign]
        return consumer


Change = tuple[str, bool]
MEMBERS: set[Change] = {("a", True), ("b", True), ("c", True)}
MOVES: set[Change] = {("a", False), ("d", True)}


class TestFollowing:
    @pytest.fixture(params=[None, "player"])
    def group(self, request: pytest.FixtureRequest) -> str | None:
        return None if request.param is None else str(request.param)

    def follow(
        self, world: World, group: str | None, wanted: set[Change], bus: Any = None
    ) -> Generator[Change, None, None]:
        """Yield what comes, perhaps twice, until all that is wanted has come, for a minute at most."""
        seen, deadline = set(), time.monotonic() + 60

        def until() -> bool:
            assert time.monotonic() < deadline
            return wanted <= seen

        for new in chain.from_iterable(batches(bus or world.bus, world.names, "c01", group, until)):
            seen.add((new.track_id, new.member is not None))
            yield new.track_id, new.member is not None

    def test_the_members_come_first_and_then_each_change(self, world: World, group: str | None) -> None:
        publish(world, FIRST)
        following = self.follow(world, group, MEMBERS | MOVES)
        assert {next(following) for _ in MEMBERS} == MEMBERS
        publish(world, FIRST | {"a": "c02", "d": "c01"})
        assert set(following) >= MOVES

    def test_without_a_group_those_that_left_before_do_not_come(self, world: World) -> None:
        publish(world, FIRST)
        publish(world, FIRST | {"a": "c02"})
        assert list(self.follow(world, None, {("c", True)})) == [("b", True), ("c", True)]

    def test_a_group_goes_on_where_its_follower_was_stopped(self, world: World) -> None:
        publish(world, FIRST)
        assert set(self.follow(world, "player", MEMBERS)) == MEMBERS
        publish(world, FIRST | {"d": "c01"})
        assert set(self.follow(world, "player", {("d", True)})) == {("d", True)}

    def test_over_a_broken_connection_nothing_is_lost(
        self, world: World, group: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr("core.patience.LONGEST_WAIT", 0.01)
        publish(world, FIRST)
        following = self.follow(world, group, MEMBERS | MOVES, Flaky(world.bus))
        assert {next(following) for _ in MEMBERS} <= MEMBERS
        publish(world, FIRST | {"a": "c02", "d": "c01"})
        assert set(following) >= MOVES
        assert "the server went away: trying again" in caplog.text

    @pytest.mark.parametrize("call", ["poll", "commit", "ends"])
    def test_while_the_connection_is_broken_it_can_be_stopped(
        self, world: World, call: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr("core.patience.LONGEST_WAIT", 0.01)
        publish(world, FIRST)

        def fail(*_: object) -> None:
            raise BackendError("the server went away", retriable=True)

        consumer = world.bus.consumer([world.names.cluster("c01")], group=f"{world.names.prefix}player")
        broken = world.bus if call == "ends" else consumer
        monkeypatch.setattr(broken, call, fail)
        monkeypatch.setattr(world.bus, "consumer", lambda *_, **__: consumer)
        found = batches(world.bus, world.names, "c01", "player", lambda: caplog.text.count("trying again") > 5)
        assert {new.track_id for batch in found for new in batch} == (set("abc") if call == "commit" else set())


def subscribed(world: World, group: str | None = None, **options: Any) -> Generator[list[News], None, None]:
    return subscribe(world.config.bus.url, "c01", group, prefix=world.names.prefix, **options)


def ids(batches: Iterable[list[News]]) -> list[str]:
    return [new.track_id for batch in batches for new in batch]


class TestSubscribe:
    def test_without_a_group_the_members_there_are_now_come_the_most_typical_first(self, world: World) -> None:
        add_run(world.store, FIRST | {"e": "c01"}, {"a": 0.2, "b": 0.9, "c": 0.5})
        world.publish()
        publish(world, FIRST)
        add_run(world.store, FIRST, {"a": 0.2, "b": 0.9, "c": 0.5})
        world.publish()
        found = list(subscribed(world, batch=2))
        assert [[new.track_id for new in batch] for batch in found] == [["b", "c"], ["a"]]
        assert all(new.member and new.member.title == f"Title of {new.track_id}" for batch in found for new in batch)

    def test_two_groups_get_the_same_each_at_its_own_pace(self, world: World) -> None:
        publish(world, FIRST)
        assert sorted(ids(subscribed(world, "one"))) == ["a", "b", "c"]
        publish(world, FIRST | {"d": "c01"})
        assert "d" in (late := ids(subscribed(world, "one")))
        assert set("abcd") == set(ids(subscribed(world, "two"))) > set(late) - set("abc")
        assert ids(subscribed(world, "one")) == ids(subscribed(world, "two")) == []

    def test_a_group_that_follows_gets_what_is_published_later(self, world: World) -> None:
        publish(world, FIRST)
        following = subscribed(world, "player", follow=True)
        seen: set[Change] = set()
        while not seen >= MEMBERS:
            seen |= {(new.track_id, new.member is not None) for new in next(following)}
        publish(world, FIRST | {"a": "c02", "d": "c01"})
        while not seen >= MOVES:
            seen |= {(new.track_id, new.member is not None) for new in next(following)}
        following.close()

    def test_a_subscriber_that_is_killed_between_two_batches_gets_the_second_again(self, world: World) -> None:
        publish(world, FIRST)
        program = f"""
import topics
for (new,) in topics.subscribe({world.config.bus.url!r}, "c01", "player", batch=1, prefix={world.names.prefix!r}):
    input(new.track_id + "\\n")
"""
        with running(sys.executable, "-c", program, seconds=60, stdin=subprocess.PIPE, bufsize=1) as process:
            assert process.stdout
            assert process.stdin
            first = process.stdout.readline().strip()
            process.stdin.write("go on\n")
            second = process.stdout.readline().strip()
            process.kill()
            process.wait()
        again = ids(subscribed(world, "player"))
        assert second in again
        assert sorted([first, *again]) == ["a", "b", "c"]

    def test_an_unknown_cluster_is_one_clear_error_that_names_those_there_are(self, world: World) -> None:
        publish(world, FIRST)
        with pytest.raises(ConfigError, match=r"no cluster 'c99' on .*; there are c01, c02"):
            list(subscribe(world.config.bus.url, "c99", prefix=world.names.prefix))

    def test_a_batch_of_nothing_is_refused(self, world: World) -> None:
        with pytest.raises(ConfigError, match="batch: 0"):
            list(subscribed(world, batch=0))


def test_prefixes_keep_two_installations_on_one_bus_apart(world: World) -> None:
    publish(world, FIRST)
    with pytest.raises(ConfigError):
        members(world.bus, Names(f"{world.names.prefix}other."), "c01")
