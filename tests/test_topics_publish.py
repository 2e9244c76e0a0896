from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from topics_library import (
    FOLDER,
    JobDiedError,
    Mortal,
    MortalProducer,
    World,
    add_run,
    cluster_topics,
    delete_topic,
    messages,
    opened,
    said,
    settings,
    track,
)

from clustering.place import settle
from core.bus import Offsets, Producer, TopicPartition, read_to_end
from core.config import Config
from core.errors import ConfigError, FencedError, MurmurError
from core.names import CURRENT
from core.records import (
    Assignment,
    LedgerEntry,
    Member,
    Neighbour,
    PublishedRun,
    Run,
    RunInForce,
    Track,
    next_rev,
)
from topics import publisher
from topics.fold import fold

FULL = "MURMUR_FULL" in os.environ
"""Whether the tests are to repeat more."""
FIRST = {"a": "c01", "b": "c01", "c": "c01", "d": "c02", "e": "c02", "f": "c02"}


def ends(world: World) -> Offsets:
    names = world.names
    return world.bus.ends([*cluster_topics(world.bus, names), names.members, names.runs])


def runs(world: World) -> dict[str, PublishedRun]:
    found = [message for message in read_to_end(world.bus, [world.names.runs]) if message.key != CURRENT.encode()]
    return fold(found, PublishedRun)


def current(world: World) -> str:
    found = [message for message in read_to_end(world.bus, [world.names.runs]) if message.key == CURRENT.encode()]
    return fold(found, RunInForce)[CURRENT].run_id


def offsets(world: World, run_id: str) -> Offsets:
    return {
        TopicPartition(topic, int(partition)): offset
        for topic, partitions in runs(world)[run_id].offsets.items()
        for partition, offset in partitions.items()
    }


def noting(calls: list[str], name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """Return `call`, made to write down its name first."""

    def noted(*arguments: Any) -> Any:
        calls.append(name)
        return call(*arguments)

    return noted


def ledger(world: World) -> dict[str, LedgerEntry]:
    return fold(read_to_end(world.bus, [world.names.members]), LedgerEntry)


def members(world: World) -> dict[str, Member]:
    return fold(messages(world.bus, world.names), Member)


class TestFirstPublication:
    def test_the_topics_say_what_the_run_says(self, world: World) -> None:
        add_run(world.store, FIRST)
        world.publish()
        assert world.said() == FIRST
        assert {key: entry.cluster_id for key, entry in ledger(world).items()} == FIRST

    def test_a_member_carries_what_a_subscriber_needs(self, world: World) -> None:
        run = add_run(world.store, FIRST, {"a": 0.75})
        world.publish()
        member = members(world)["a"]
        assert (member.title, member.artist, member.genre, member.year) == ("Title of a", "Quartet", "folk", 1999)
        assert (member.duration, member.extra, member.cluster_id, member.score) == (
            180.5,
            {"mood": "calm"},
            "c01",
            0.75,
        )
        assert member.since_run == run.run_id
        assert [(near.track_id, near.title, near.artist, near.score) for near in member.neighbours] == [
            ("b", "Title of b", "Quartet", 0.9),
            ("c", "Title of c", "Quartet", 0.9),
        ]

    def test_no_message_holds_a_path(self, world: World) -> None:
        add_run(world.store, FIRST)
        world.publish()
        names = world.names
        sent = [*messages(world.bus, names), *read_to_end(world.bus, [names.members, names.runs, names.spaces])]
        assert not [message for message in sent if FOLDER.encode() in (message.value or b"")]

    def test_every_message_has_the_headers_of_cloud_events_and_a_rev_of_its_own(self, world: World) -> None:
        add_run(world.store, FIRST)
        world.publish()
        sent = messages(world.bus, world.names)
        assert len({message.header("rev") for message in sent}) == len(FIRST)
        for message in sent:
            assert message.key is not None
            assert message.header("ce_type") == "murmuration.Member.v1"
            assert message.header("ce_id") == f"{message.key.decode()}@{message.header('rev')}"
            assert message.header("feature_set") == "f0"

    def test_the_run_is_in_force_on_the_topic_and_in_the_store(self, world: World) -> None:
        run = add_run(world.store, FIRST)
        world.publish()
        mirror = world.store.get(RunInForce, RunInForce.current)
        assert mirror is not None
        assert (current(world), mirror.run_id) == (run.run_id, run.run_id)
        published = runs(world)[run.run_id]
        assert published.published
        assert published.sizes == {"c01": 3, "c02": 3}

    def test_the_run_is_sent_in_full_too_even_where_it_takes_megabytes(self, world: World) -> None:
        run = add_run(world.store, FIRST)
        start = np.random.default_rng(0).normal(size=(100, 1000)).tolist()
        whole = run.model_copy(update={"start": start, "rev": next_rev(run.rev)})
        world.store.upsert([whole])
        assert len(whole.to_json()) > 1_500_000
        world.publish()
        assert fold(read_to_end(world.bus, [world.names.spaces]), Run) == {run.run_id: whole}

    def test_the_report_counts(self, world: World) -> None:
        add_run(world.store, FIRST)
        report = world.publish()
        assert (report.read, report.unchanged, report.written) == (6, 0, 1)
        assert report.sent == len(FIRST)


def test_a_second_publication_of_a_run_sends_nothing_and_says_so(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    add_run(world.store, FIRST)
    world.publish()
    before = ends(world)
    with caplog.at_level(logging.INFO):
        report = world.publish()
    assert (report.sent, report.written, report.unchanged) == (0, 0, len(FIRST))
    assert ends(world) == before
    assert "nothing to send" in caplog.text


def test_a_missing_mirror_of_the_run_in_force_is_repaired_without_a_message(world: World) -> None:
    run = add_run(world.store, FIRST)
    world.publish()
    world.store.purge(RunInForce, RunInForce.current)
    assert world.publish().sent == 0
    mirror = world.store.get(RunInForce, RunInForce.current)
    assert mirror is not None
    assert mirror.run_id == run.run_id


def test_a_new_run_with_the_same_result_sends_nothing_on_cluster_topics(world: World) -> None:
    add_run(world.store, FIRST)
    world.publish()
    before = world.bus.ends(cluster_topics(world.bus, world.names))
    again = add_run(world.store, FIRST)
    report = world.publish()
    assert world.bus.ends(cluster_topics(world.bus, world.names)) == before
    assert (report.sent, report.unchanged, current(world)) == (0, len(FIRST), again.run_id)


class TestChanges:
    def test_a_track_that_moves_leaves_a_tombstone_and_appears_in_its_new_cluster(self, world: World) -> None:
        first = add_run(world.store, FIRST)
        world.publish()
        second = add_run(world.store, FIRST | {"a": "c02"})
        report = world.publish()
        assert world.said() == FIRST | {"a": "c02"}
        assert (report.sent, report.unchanged) == (2, len(FIRST) - 1)
        gone = [message for message in messages(world.bus, world.names) if message.value is None]
        assert [(message.topic, message.key) for message in gone] == [(world.names.cluster("c01"), b"a")]
        now = ledger(world)
        assert (now["a"].since_run, now["b"].since_run) == (second.run_id, first.run_id)

    def test_a_leaver_gets_a_tombstone_on_its_topic_and_in_the_ledger(self, world: World) -> None:
        add_run(world.store, FIRST)
        world.publish()
        rest = {track_id: cluster for track_id, cluster in FIRST.items() if track_id != "f"}
        add_run(world.store, rest)
        world.publish()
        assert world.said() == rest
        assert set(ledger(world)) == set(rest)

    def test_a_deleted_track_leaves_also_from_its_neighbours(self, world: World) -> None:
        add_run(world.store, FIRST)
        world.publish()
        world.store.delete(Track, {"b": next_rev()})
        world.publish()
        assert world.said() == {track_id: cluster for track_id, cluster in FIRST.items() if track_id != "b"}
        assert [near.track_id for near in members(world)["a"].neighbours] == ["c"]

    def test_a_cluster_that_ends_is_emptied(self, world: World) -> None:
        add_run(world.store, FIRST)
        world.publish()
        add_run(world.store, dict.fromkeys(FIRST, "c03"))
        world.publish()
        assert world.said() == dict.fromkeys(FIRST, "c03")
        assert world.names.cluster("c01") in world.bus.topics()

    def test_new_metadata_is_sent_with_the_run_in_which_the_track_joined(self, world: World) -> None:
        first = add_run(world.store, FIRST)
        world.publish()
        world.store.upsert([track("b", title="Renamed")])
        report = world.publish()
        now = members(world)
        assert (now["b"].title, now["b"].since_run) == ("Renamed", first.run_id)
        assert now["a"].neighbours[0].title == "Renamed"
        assert report.unchanged == len(FIRST) - 3

    def test_a_track_that_stays_keeps_the_run_in_which_it_joined(self, world: World) -> None:
        first = add_run(world.store, FIRST)
        world.publish()
        add_run(world.store, FIRST, {"b": 0.25})
        assert world.publish().unchanged == len(FIRST) - 1
        assert (members(world)["b"].score, members(world)["b"].since_run) == (0.25, first.run_id)

    def test_revisions_rise_when_the_clock_falls_behind(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        add_run(world.store, FIRST)
        world.publish()
        highest = max(int(message.header("rev") or 0) for message in messages(world.bus, world.names))
        add_run(world.store, FIRST | {"a": "c02"})
        monkeypatch.setattr("core.records.time.time_ns", lambda: 0)
        world.publish()
        moved = [message for message in messages(world.bus, world.names) if int(message.header("rev") or 0) > highest]
        assert {(message.key, message.value is None) for message in moved} == {(b"a", True), (b"a", False)}


class TestConsistentView:
    def test_the_published_offsets_are_what_must_be_read_for_the_run(self, world: World) -> None:
        add_run(world.store, FIRST)
        world.publish()
        moved = FIRST | {"a": "c02", "d": "c03"}
        run = add_run(world.store, moved)
        world.publish()
        assert offsets(world, run.run_id) == world.bus.ends(cluster_topics(world.bus, world.names))
        assert said(world.bus, world.names, below=offsets(world, run.run_id)) == moved

    def test_they_are_asked_for_once_a_message_of_the_last_transaction_is_acknowledged(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Kafka acknowledges none before all former transactions are readable; until then, the ends lag behind."""
        add_run(world.store, FIRST)
        calls = []
        for owner, name in ((MortalProducer, "send"), (MortalProducer, "flush"), (type(world.bus), "ends")):
            monkeypatch.setattr(owner, name, noting(calls, name, getattr(owner, name)))
        world.publish(Mortal(world.bus, -1))
        assert calls[-4:] == ["send", "flush", "ends", "send"]

    def test_they_follow_when_the_same_run_is_published_with_new_metadata(self, world: World) -> None:
        run = add_run(world.store, FIRST)
        world.publish()
        world.store.upsert([track("b", title="Renamed")])
        world.publish()
        assert offsets(world, run.run_id) == world.bus.ends(cluster_topics(world.bus, world.names))

    def test_a_run_that_is_not_sent_in_full_is_not_marked_as_published(self, world: World) -> None:
        first = add_run(world.store, FIRST)
        world.publish()
        second = add_run(world.store, dict.fromkeys(FIRST, "c03"))
        with pytest.raises(JobDiedError):
            world.publish(Mortal(world.bus, 8))
        known = runs(world)
        assert (known[first.run_id].published, known[second.run_id].published) == (True, False)
        assert current(world) == first.run_id


class TestRefusals:
    def test_without_a_complete_run_the_error_names_the_command(self, world: World) -> None:
        with pytest.raises(MurmurError, match="murmur cluster"):
            world.publish()

    def test_no_track_leaves_because_assignments_of_the_run_go_meanwhile(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        add_run(world.store, FIRST)
        world.publish()
        run = add_run(world.store, FIRST)

        def purged(*arguments: Any) -> int:
            n_assignments = settle(*arguments)
            world.store.purge(Assignment, f"{run.run_id}/c")
            return n_assignments

        monkeypatch.setattr(publisher, "settle", purged)
        with pytest.raises(MurmurError, match="5 of the 6 assignments"):
            world.publish()
        assert world.said() == FIRST

    def test_a_run_that_can_assign_nothing_is_not_published(self, world: World) -> None:
        first = add_run(world.store, FIRST)
        world.publish()
        world.store.purge(Assignment, f"{first.run_id}/")
        world.store.upsert([track(track_id).model_copy(update={"feature_set": "f1"}) for track_id in FIRST])
        with pytest.raises(MurmurError, match="no track has its feature set f0"):
            world.publish()
        assert world.said() == FIRST

    def test_a_run_that_is_not_there_is_named_with_those_that_are(self, world: World) -> None:
        run = add_run(world.store, FIRST)
        with pytest.raises(ConfigError, match=f"no run is named .nothing.; there are {run.run_id}"):
            world.publish(run_id="nothing")


class TestWhatIsDue:
    """Of a track that stays where it is."""

    MANY = dict.fromkeys("abcdefghijkl", "c01")

    def test_a_score_is_sent_once_it_has_moved_far_enough_since_it_was_sent(self, world: World) -> None:
        add_run(world.store, self.MANY, {"a": 0.5})
        world.publish()
        for score, n_due in ((0.54, 0), (0.56, 1), (0.60, 0), (0.5, 1)):
            add_run(world.store, self.MANY, {"a": score})
            assert len(self.MANY) - world.publish().unchanged == n_due

    def test_neighbours_are_sent_once_more_than_two_of_ten_are_others(self, world: World) -> None:
        run = add_run(world.store, self.MANY)
        near = [Neighbour(track_id=one, score=0.9) for one in "bcdefghijk"]
        for others, n_due in (("", None), ("l", 0), ("lm", 0), ("lmn", 1)):
            changed = [Neighbour(track_id=one, score=0.9) for one in others]
            self.give_neighbours(world, run, [*near[len(others) :], *changed])
            report = world.publish()
            assert n_due is None or len(self.MANY) - report.unchanged == n_due

    def give_neighbours(self, world: World, run: Run, neighbours: list[Neighbour]) -> None:
        if not world.store.count(Track, {"track_id": "m"}):
            world.store.upsert([track(one).model_copy(update={"feature_set": "f1"}) for one in "mn"])
        found = world.store.get(Assignment, f"{run.run_id}/a")
        assert found
        changed = found.model_copy(update={"neighbours": neighbours, "rev": next_rev(found.rev)})
        assert world.store.upsert([changed]).written == 1

    def test_where_nothing_has_changed_the_ledger_is_not_even_read(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        add_run(world.store, FIRST)
        world.publish()
        read: list[str] = []
        monkeypatch.setattr(
            publisher, "read_to_end", lambda bus, topics: read.extend(topics) or read_to_end(bus, topics)
        )
        report = world.publish()
        assert (report.read, report.unchanged, report.sent, read) == (6, 6, 0, [])
        world.store.upsert([track("a", title="Another")])
        assert world.publish().sent > 0
        assert read == [world.names.members]

    def test_what_an_entry_of_the_ledger_does_not_say_is_sent_once(self, world: World) -> None:
        """An earlier version wrote the entry: its digest is another's, and it names no neighbours; nor does the run."""
        run = add_run(world.store, FIRST)
        world.publish()
        producer = world.bus.producer()
        mark = runs(world)[run.run_id].model_copy(update={"input_digest": ""})
        producer.send(world.names.runs, run.run_id.encode(), mark.to_json())
        for key, entry in ledger(world).items():
            former = entry.model_copy(update={"digest": "of all", "neighbours": []})
            producer.send(world.names.members, key.encode(), former.to_json())
        producer.flush()
        producer.close()
        assert (world.publish().unchanged, world.publish().sent) == (0, 0)


def test_tracks_too_far_from_every_centre_are_published_as_unclustered(world: World) -> None:
    add_run(world.store, FIRST, p99=1.0)
    world.store.upsert([track("near", 2 + 1.4), track("far", 2 + 1.6)])
    world.publish()
    expected = FIRST | {"near": "c02", "far": "unclustered"}
    assert world.said() == expected
    assert runs(world)[current(world)].sizes == {"c01": 3, "c02": 4, "unclustered": 1}


class TestTracksThatCameAfterTheRun:
    def test_they_are_assigned_with_it_and_published(self, world: World) -> None:
        run = add_run(world.store, FIRST)
        world.store.upsert([track("g", 2.25)])
        world.publish()
        assert world.said() == FIRST | {"g": "c02"}
        found = world.store.get(Assignment, f"{run.run_id}/g")
        assert found
        assert (found.cluster_id, found.distance, found.score) == ("c02", 0.25, 1 / 1.25)
        assert [near.track_id for near in found.neighbours] == [*"de"]  # two of an artist

    def test_so_are_those_whose_sound_has_changed(self, world: World) -> None:
        add_run(world.store, FIRST)
        world.publish()
        world.store.upsert([track("a", 1.9)])
        world.publish()
        assert world.said() == FIRST | {"a": "c02"}

    def test_those_of_another_feature_set_and_silent_ones_wait(self, world: World) -> None:
        add_run(world.store, FIRST)
        world.store.upsert([track("g").model_copy(update={"feature_set": "f1"}), track("h", flags=["silent"])])
        world.publish()
        assert world.said() == FIRST


class TestRollback:
    SECOND = FIRST | {"a": "c02", "f": "c03"}

    def test_an_earlier_run_is_put_in_force_again_exactly(self, world: World) -> None:
        first = add_run(world.store, FIRST)
        world.publish()
        add_run(world.store, self.SECOND)
        world.publish()
        world.publish(run_id=first.run_id)
        assert (world.said(), current(world)) == (FIRST, first.run_id)
        assert world.publish(run_id=first.run_id).sent == 0

    def test_where_its_assignments_are_no_longer_kept_they_are_made_anew(self, world: World) -> None:
        first = add_run(world.store, FIRST)
        world.publish()
        add_run(world.store, self.SECOND)
        world.publish()
        world.store.purge(Assignment, f"{first.run_id}/")
        world.publish(run_id=first.run_id)
        assert (world.said(), current(world)) == (FIRST, first.run_id)
        assert world.store.count(Assignment, {"run_id": first.run_id}) == len(FIRST)


@pytest.mark.servers
def test_a_cluster_topic_that_has_gone_is_made_again_and_its_members_are_sent_again(
    tmp_path: Path, kafka_url: str
) -> None:
    with opened(settings(tmp_path, kafka_url)) as world:
        first = add_run(world.store, FIRST)
        world.publish()
        delete_topic(world.bus, world.names.cluster("c01"))
        add_run(world.store, FIRST | {"b": "c02"})
        assert world.publish().unchanged == 3
        assert world.said() == FIRST | {"b": "c02"}
        assert members(world)["a"].since_run == first.run_id


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _publish_mortally(config: Config, steps: int) -> None:
    publisher.CHUNK = 2
    with opened(config) as world:
        world.publish(Mortal(world.bus, steps, _kill))


class TestDeath:
    def test_a_job_that_died_at_any_step_is_taken_up_by_the_next(
        self, tmp_path: Path, bus_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(publisher, "CHUNK", 2)
        target = {"a": "c02", "b": "c03", "c": "c03", "d": "c02", "e": "c01", "g": "c01"}
        for steps in range(0, 48, 4 if bus_url and not FULL else 1):
            (folder := tmp_path / str(steps)).mkdir()
            with opened(settings(folder, bus_url)) as world:
                add_run(world.store, FIRST)
                world.publish()
                run = add_run(world.store, target)
                try:
                    world.publish(Mortal(world.bus, steps))
                except JobDiedError:
                    world.publish()
                    assert world.said() == target, f"died at step {steps}"
                    assert current(world) == run.run_id
                    assert world.publish().sent == 0
                else:
                    assert steps > 20
                    return
        pytest.fail("the publication has more steps than were tried")

    def test_going_back_after_a_job_died_that_had_begun_to_publish_another_run(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(publisher, "CHUNK", 2)
        run = add_run(world.store, FIRST)
        world.publish()
        add_run(world.store, dict.fromkeys(FIRST, "c03"))
        with pytest.raises(JobDiedError):
            world.publish(Mortal(world.bus, 15))
        assert world.said() != FIRST
        world.publish(run_id=run.run_id)
        assert world.said() == FIRST
        assert current(world) == run.run_id

    @pytest.mark.parametrize("steps", [0, 1, 2, 4, 6, 8])
    def test_what_went_to_a_topic_that_is_gone_is_sent_though_a_job_died_that_had_made_it_anew(
        self, world: World, bus_url: str, steps: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(publisher, "CHUNK", 2)
        add_run(world.store, FIRST)
        world.publish()
        delete_topic(world.bus, world.names.cluster("c02"))
        with suppress(JobDiedError):
            world.publish(Mortal(world.bus, steps))
        world.publish()
        assert world.said() == FIRST

    def test_what_went_to_a_topic_that_somebody_else_made_anew_is_sent_again(self, world: World, bus_url: str) -> None:
        add_run(world.store, FIRST)
        world.publish()
        delete_topic(world.bus, world.names.cluster("c02"))
        world.bus.create_topics(world.config.topics.of_clusters(["c02"]))
        world.publish()
        assert world.said() == FIRST

    @pytest.mark.parametrize("steps", [3, 9, 20])
    def test_a_killed_process_is_taken_up_by_the_next(self, world: World, steps: int) -> None:
        add_run(world.store, FIRST)
        world.publish()
        target = dict.fromkeys(FIRST, "c03")
        add_run(world.store, target)
        process = multiprocessing.get_context("spawn").Process(target=_publish_mortally, args=(world.config, steps))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        world.publish()
        assert world.said() == target

    def test_an_older_job_that_is_still_alive_is_fenced(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(publisher, "CHUNK", 2)
        add_run(world.store, FIRST)
        newer = dict.fromkeys(FIRST, "c03")

        def overtake() -> None:
            add_run(world.store, newer)
            with opened(world.config) as other:
                other.publish()

        with pytest.raises(FencedError):
            world.publish(Mortal(world.bus, 5, overtake))
        assert world.said() == newer
        assert world.publish().sent == 0

    def test_what_the_predecessor_did_until_it_was_fenced_is_known(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        add_run(world.store, FIRST)
        producer = world.bus.producer

        def overtaken(transactional_id: str | None = None, **options: Any) -> Producer:
            with opened(world.config) as other:
                other.publish()
            return producer(transactional_id, **options)

        monkeypatch.setattr(world.bus, "producer", overtaken)
        assert world.publish().sent == 0


ASSIGNMENTS = st.lists(
    st.dictionaries(st.sampled_from("abcdefgh"), st.sampled_from(["c01", "c02", "c03"]), min_size=1),
    min_size=1,
    max_size=5,
)


DEATHS = st.lists(st.integers(0, 30), min_size=5, max_size=5)


class TestAnySequenceOfRuns:
    """The topics say the last of any sequence of runs, wherever the jobs between died."""

    @examples(deadline=None, max_examples=200 if FULL else 25)
    @given(ASSIGNMENTS, DEATHS)
    def test_on_sqlite(self, sequence: list[dict[str, str]], deaths: list[int]) -> None:
        self.check("", sequence, deaths)

    @pytest.mark.servers
    @examples(deadline=None, max_examples=50 if FULL else 5, suppress_health_check=[HealthCheck.too_slow])
    @given(ASSIGNMENTS, DEATHS)
    def test_on_kafka(self, kafka_url: str, sequence: list[dict[str, str]], deaths: list[int]) -> None:
        self.check(kafka_url, sequence, deaths)

    def check(self, bus: str, sequence: list[dict[str, str]], deaths: list[int]) -> None:
        with tempfile.TemporaryDirectory() as folder, opened(settings(Path(folder), bus)) as world:
            for clusters, steps in zip(sequence, deaths, strict=False):
                add_run(world.store, clusters)
                try:
                    world.publish(Mortal(world.bus, steps))
                except JobDiedError:
                    continue
                assert world.said() == clusters
            world.publish()
            assert world.said() == sequence[-1]
            assert {key: entry.cluster_id for key, entry in ledger(world).items()} == sequence[-1]


def test_only_metadata_is_read_of_a_track(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    add_run(world.store, FIRST)
    scanned = []
    scan = world.store.scan

    def watched(kind: Any, **options: Any) -> Any:
        scanned.append((kind, options.get("fields")))
        return scan(kind, **options)

    monkeypatch.setattr(world.store, "scan", watched)
    world.publish()
    of_tracks = [fields for kind, fields in scanned if kind is Track]
    assert of_tracks
    assert all(fields and not {"features", "source"}.intersection(fields) for fields in of_tracks)
