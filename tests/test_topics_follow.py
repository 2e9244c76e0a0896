"""Live routing: what arrives is on its cluster's topic at once, by the run in force, and `publish` asks instead."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from threading import Event, Thread
from typing import Any

import pytest
from topics_library import World, add_run, delete_topic, messages, opened, track

from clustering.place import settle
from core.bus import TopicPartition, lag
from core.errors import BackendError, FencedError, MurmurError
from core.jobs import Report
from core.records import Assignment, Member, Run, Track, next_rev
from core.store import Store
from etl.messages import create_topics, send, send_tombstone
from topics import follow, publish, publisher
from topics.fold import fold
from topics.runs import RunsTopic

FIRST = {"a": "c01", "b": "c01", "c": "c01", "d": "c02", "e": "c02", "f": "c02"}
SECONDS = 30.0
"""How long something may take to come."""


@pytest.fixture
def world(world: World) -> World:
    create_topics(world.bus, world.config)
    world.bus.create_topics(world.config.topics.of_clusters([]))
    return world


class Following:
    """A follower in a thread, with connections of its own."""

    def __init__(self, world: World, change: Callable[[World], None] | None = None, run_id: str | None = None) -> None:
        self._end = Event()
        self.report: Report | None = None
        self.error: Exception | None = None
        self._thread = Thread(target=self._follow, args=(world, change, run_id))
        self._thread.start()

    def stop(self) -> Report:
        self._end.set()
        self._thread.join(SECONDS)
        if self.error:
            raise self.error
        assert self.report is not None, "it does not stop"
        return self.report

    def has_ended(self) -> bool:
        return not self._thread.is_alive()

    def _follow(self, world: World, change: Callable[[World], None] | None, run_id: str | None) -> None:
        with opened(world.config) as own:
            if change:
                change(own)
            try:
                self.report = follow.run(
                    own.config, store=own.store, bus=own.bus, until=self._end.is_set, run_id=run_id
                )
            except MurmurError as error:
                self.error = error


@contextmanager
def following(world: World, run_id: str | None = None) -> Iterator[Following]:
    """Give a follower that is at work."""
    follower = Following(world, run_id=run_id)
    try:
        until(lambda: follower.has_ended() or world.bus.has_members(world.names.follow_group))
        until(lambda: follower.has_ended() or in_force(world) is not None)
        yield follower
    finally:
        follower._end.set()
        follower._thread.join(SECONDS)


def until(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.05)


def in_force(world: World) -> str | None:
    with closing(RunsTopic(world.bus, world.names)) as topic:
        return topic.in_force.run_id if topic.in_force else None


def arrive(world: World, *tracks: Track) -> None:
    with closing(world.bus.producer()) as producer:
        for one in tracks:
            send(producer, world.names.tracks, one)
        producer.flush()


def routed(world: World, track_id: str, cluster_id: str | None) -> Callable[[], bool]:
    return lambda: world.said().get(track_id) == cluster_id


def members(world: World) -> dict[str, Member]:
    return fold(messages(world.bus, world.names), Member)


class TestRouting:
    def test_a_track_that_arrives_is_stored_assigned_and_on_its_topic_with_its_neighbours(self, world: World) -> None:
        run = add_run(world.store, FIRST)
        with following(world):
            arrive(world, track("g", 2.0))
            until(routed(world, "g", "c02"))
        assert world.store.get(Track, "g") is not None
        assigned = world.store.get(Assignment, f"{run.run_id}/g")
        assert assigned is not None
        assert (assigned.cluster_id, assigned.distance) == ("c02", 0.0)
        member = members(world)["g"]
        assert [one.track_id for one in member.neighbours] == [one.track_id for one in assigned.neighbours]
        assert member.neighbours[0].title == "Title of d"

    def test_a_later_publication_of_the_same_run_has_nothing_to_add(self, world: World) -> None:
        run = add_run(world.store, FIRST)
        with following(world):
            arrive(world, track("g", 2.0), track("a", 2.0), track("h", 1.2))
            until(routed(world, "h", "c01"))
        report = world.publish(run_id=run.run_id)
        assert report.sent == 0

    def test_a_track_whose_features_change_moves(self, world: World) -> None:
        add_run(world.store, FIRST)
        with following(world):
            until(routed(world, "a", "c01"))
            arrive(world, track("a", 2.0))
            until(routed(world, "a", "c02"))

    def test_a_track_whose_metadata_change_is_sent_anew_and_stays(self, world: World) -> None:
        run = add_run(world.store, FIRST)
        with following(world):
            until(routed(world, "a", "c01"))
            arrive(world, track("a", 1.0, title="Another"))
            until(lambda: members(world)["a"].title == "Another")
        assert members(world)["a"].since_run == run.run_id

    def test_a_track_that_is_deleted_leaves(self, world: World) -> None:
        add_run(world.store, FIRST)
        with following(world):
            until(routed(world, "a", "c01"))
            with closing(world.bus.producer()) as producer:
                send_tombstone(producer, world.names.tracks, Track, "a", next_rev())
                producer.flush()
            until(routed(world, "a", None))
        assert world.store.get(Track, "a") is None

    def test_a_track_that_is_far_from_every_centre_is_unclustered(self, world: World) -> None:
        add_run(world.store, FIRST, p99=1.0)
        with following(world):
            arrive(world, track("g", 9.0))
            until(routed(world, "g", "unclustered"))

    def test_tracks_of_other_features_and_silent_ones_are_stored_and_have_no_place(self, world: World) -> None:
        run = add_run(world.store, FIRST)
        with following(world):
            arrive(world, track("g", 2.0, flags=["silent"]), track("h", 2.0))
            until(routed(world, "h", "c02"))
            assert "g" not in world.said()
        assert world.store.get(Track, "g") is not None
        assert world.store.get(Assignment, f"{run.run_id}/g") is None

    def test_an_older_version_that_comes_late_changes_nothing(self, world: World) -> None:
        old = track("a", 2.0)
        add_run(world.store, FIRST)
        with following(world) as follower:
            arrive(world, old, track("h", 2.0))
            until(routed(world, "h", "c02"))
            assert world.said()["a"] == "c01"
            follower.stop()

    def test_a_version_that_another_job_stores_while_a_run_is_published_is_routed(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        add_run(world.store, FIRST)
        coming = iter([track("a", 2.0, title="Another")])

        def settled(*arguments: Any) -> int:
            n_assignments = settle(*arguments)
            for one in coming:
                with opened(world.config) as own:
                    own.store.upsert([one])
                    arrive(own, one)
            return n_assignments

        monkeypatch.setattr(publisher, "settle", settled)
        with following(world):
            until(routed(world, "a", "c02"))

    def test_what_is_no_track_is_passed_over(self, world: World, caplog: pytest.LogCaptureFixture) -> None:
        add_run(world.store, FIRST)
        with following(world):
            with closing(world.bus.producer()) as producer:
                producer.send(world.names.tracks, b"bad", b"poison")
                producer.flush()
            arrive(world, track("g", 2.0))
            until(routed(world, "g", "c02"))
        assert "skipped" in caplog.text

    def test_what_was_read_is_committed_with_what_was_sent(self, world: World) -> None:
        add_run(world.store, FIRST)
        with following(world) as follower:
            arrive(world, track("g", 2.0), track("h", 1.0))
            until(routed(world, "h", "c01"))
            assert lag(world.bus, world.names.follow_group, [world.names.tracks]) == 0
            assert follower.stop().read == 2
        with following(world) as follower:
            assert follower.stop().read == 0

    def test_a_store_that_fails_for_a_while_is_waited_for(self, world: World) -> None:
        add_run(world.store, FIRST)
        failures = iter([True, True])

        def change(own: World) -> None:
            own.store = Failing(own.store, failures)

        follower = Following(world, change)
        try:
            until(lambda: in_force(world) is not None)
            arrive(world, track("g", 2.0))
            until(routed(world, "g", "c02"))
        finally:
            follower.stop()
        assert next(failures, None) is None


class Failing:
    """A store that fails where a track is written, as often as there are failures left."""

    def __init__(self, store: Store, failures: Iterator[bool]) -> None:
        self._store, self._failures = store, failures

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def delete(self, *arguments: Any) -> Any:
        if next(self._failures, None):
            raise BackendError("nobody there", retriable=True)
        return self._store.delete(*arguments)


class TestBeginning:
    def test_it_publishes_what_an_earlier_one_left_undone(self, world: World) -> None:
        add_run(world.store, FIRST)
        world.publish()
        world.store.upsert([track("g", 2.0)])
        with following(world):
            until(routed(world, "g", "c02"))

    def test_it_keeps_the_run_in_force_although_there_is_a_later_one(self, world: World) -> None:
        run = add_run(world.store, FIRST)
        world.publish()
        add_run(world.store, FIRST | {"a": "c02"})
        with following(world) as follower:
            follower.stop()
        assert in_force(world) == run.run_id

    def test_it_takes_the_run_that_is_named(self, world: World) -> None:
        add_run(world.store, FIRST)
        world.publish()
        later = add_run(world.store, FIRST | {"a": "c02"})
        with following(world, later.run_id):
            until(lambda: in_force(world) == later.run_id)

    def test_it_takes_up_a_request_that_nobody_answered(self, world: World) -> None:
        add_run(world.store, FIRST)
        world.publish()
        later = add_run(world.store, FIRST | {"a": "c02"})
        with closing(RunsTopic(world.bus, world.names)) as topic:
            topic.ask(later)
        with following(world):
            until(lambda: in_force(world) == later.run_id)

    def test_without_a_run_there_is_nothing_to_follow(self, world: World) -> None:
        with pytest.raises(MurmurError, match="murmur cluster"):
            follow.run(world.config, store=world.store, bus=world.bus, until=lambda: False)

    def test_told_to_stop_before_it_has_begun_it_does_nothing(self, world: World) -> None:
        add_run(world.store, FIRST)
        report = follow.run(world.config, store=world.store, bus=world.bus, until=lambda: True)
        assert report.sent == 0
        assert in_force(world) is None


class TestOnePublisher:
    def test_a_second_follower_that_is_stopped_while_it_waits_leaves_the_first_alone(self, world: World) -> None:
        add_run(world.store, FIRST)
        with following(world) as first:
            second = Following(world)
            time.sleep(1.0)
            second.stop()
            arrive(world, track("g", 2.0))
            until(routed(world, "g", "c02"))
            assert not first.has_ended()

    def test_a_second_follower_is_refused_and_the_first_goes_on(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(follow, "SESSION_SECONDS", 1.0)
        add_run(world.store, FIRST)
        with following(world):
            with pytest.raises(MurmurError, match="another `murmur publish --follow` is at work"):
                follow.run(world.config, store=world.store, bus=world.bus, until=lambda: False)
            arrive(world, track("g", 2.0))
            until(routed(world, "g", "c02"))

    def test_a_follower_that_is_fenced_stops(self, world: World) -> None:
        add_run(world.store, FIRST)
        with following(world) as follower:
            with closing(world.bus.producer(world.names.publisher)):
                arrive(world, track("g", 2.0))
                until(follower.has_ended)
            assert isinstance(follower.error, FencedError)
            follower.error = None

    def test_publish_asks_the_follower_and_waits_for_its_mark(self, world: World) -> None:
        first = add_run(world.store, FIRST)
        with following(world):
            until(lambda: in_force(world) == first.run_id)
            later = add_run(world.store, FIRST | {"a": "c02", "f": "c03", "g": "c03"})
            report = world.publish()
            assert in_force(world) == later.run_id
            assert world.said() == FIRST | {"a": "c02", "f": "c03", "g": "c03"}
            assert (report.read, report.unchanged) == (7, 3)  # c is a neighbour of others, in another place now
            arrive(world, track("h", 3.0))
            until(routed(world, "h", "c03"))
            assert members(world)["h"].since_run == later.run_id

    def test_publish_goes_back_to_an_earlier_run_through_the_follower(self, world: World) -> None:
        first = add_run(world.store, FIRST)
        world.publish()
        with following(world):
            add_run(world.store, FIRST | {"a": "c02"})
            world.publish()
            assert world.said()["a"] == "c02"
            world.publish(run_id=first.run_id)
            assert world.said() == FIRST
            assert in_force(world) == first.run_id

    def test_a_run_that_the_follower_cannot_publish_is_refused_and_it_goes_on(self, world: World) -> None:
        add_run(world.store, FIRST)
        with following(world):
            other = add_run(world.store, FIRST)
            other = other.model_copy(update={"feature_set": "f9", "rev": next_rev()})
            world.store.upsert([other])
            world.store.purge(Assignment, f"{other.run_id}/")
            with pytest.raises(MurmurError, match="f9"):
                world.publish(run_id=other.run_id)
            arrive(world, track("g", 2.0))
            until(routed(world, "g", "c02"))

    def test_what_was_sent_of_a_run_that_is_refused_half_way_is_taken_back(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As where `cluster` removes the assignments of an old run that is being published."""
        monkeypatch.setattr(publisher, "WINDOW", 2)
        add_run(world.store, FIRST)
        with following(world):
            other = add_run(world.store, {"a": "c02", "b": "c02", "c": "c02", "d": "c01", "e": "c01", "f": "c01"})

            def purged(store: Store, run: Run, *arguments: Any) -> int:
                n_assignments = settle(store, run, *arguments)
                store.purge(Assignment, f"{other.run_id}/f")
                return n_assignments

            monkeypatch.setattr(publisher, "settle", purged)
            with pytest.raises(MurmurError, match=f"5 of the 6 assignments.*--run {other.run_id}"):
                world.publish()
            until(lambda: world.said() == FIRST)

    def test_publish_does_the_work_itself_where_the_follower_ends_without_an_answer(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(publish, "LOOK_SECONDS", 0.2)
        run = add_run(world.store, FIRST)
        idle = world.bus.consumer([world.names.tracks], group=world.names.follow_group)
        until(lambda: idle.poll(0.2) or world.bus.has_members(world.names.follow_group))
        asking = Thread(target=lambda: publish_elsewhere(world))
        asking.start()
        until(lambda: requested(world) == run.run_id)
        idle.close()
        asking.join(SECONDS)
        assert world.said() == FIRST
        assert requested(world) is None

    def test_a_request_that_another_publication_overtook_is_no_longer_one(self, world: World) -> None:
        first = add_run(world.store, FIRST)
        world.publish()
        with closing(RunsTopic(world.bus, world.names)) as topic:
            topic.ask(first)
        later = add_run(world.store, FIRST | {"a": "c02"})
        world.publish()
        assert requested(world) is None
        assert in_force(world) == later.run_id

    def test_a_cluster_topic_that_is_gone_is_made_anew_and_filled(
        self, world: World, bus_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(follow, "LOOK_SECONDS", 0.5)
        add_run(world.store, FIRST)
        with following(world):
            until(routed(world, "f", "c02"))
            delete_topic(world.bus, world.names.cluster("c02"))
            until(lambda: world.names.cluster("c02") in world.bus.topics() and world.said() == FIRST)


def requested(world: World) -> str | None:
    with closing(RunsTopic(world.bus, world.names)) as topic:
        return topic.request.run_id if topic.request else None


def publish_elsewhere(world: World) -> None:
    with opened(world.config) as own:
        own.publish()


def test_the_mark_of_the_run_in_force_names_the_offsets_of_what_was_routed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "LOOK_SECONDS", 0.5)
    run = add_run(world.store, FIRST)

    def sizes() -> dict[str, int]:
        with closing(RunsTopic(world.bus, world.names)) as topic:
            return topic.runs[run.run_id].sizes

    with following(world):
        arrive(world, track("g", 2.0))
        until(lambda: sizes()["c02"] == 4)
        arrive(world, track("h", 2.0))
        until(routed(world, "h", "c02"))
    assert sizes()["c02"] == 5
    with closing(RunsTopic(world.bus, world.names)) as topic:
        named = topic.runs[run.run_id].offsets
    ends = world.bus.ends(list(named))
    assert {TopicPartition(name, int(n)): end for name, found in named.items() for n, end in found.items()} == ends
