"""A view is the cluster as the store has it, whatever is published, and says what became of a cluster that ended."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_topics_news import Flaky
from topics_library import JobDiedError, Mortal, World, add_run, delete_topic, opened, settings

import topics
from clustering.identity import trace
from clustering.members import recall
from core.bus import Bus, Consumer, Message
from core.errors import BackendError, ConfigError
from core.records import Assignment, Run, next_rev
from topics import publisher

FIRST = {"a": "c01", "b": "c01", "c": "c01", "d": "c02"}
RUNS = 6


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.patience.LONGEST_WAIT", 0.01)


def publish(world: World, clusters: dict[str, str]) -> Run:
    run = add_run(world.store, clusters)
    world.publish()
    return run


def publish_after(world: World, former: Run, clusters: dict[str, str]) -> Run:
    """Publish a run that knows what became of the clusters of the one before."""
    run = add_run(world.store, clusters)
    ids, track_ids = [cluster.cluster_id for cluster in run.clusters], sorted(clusters)
    labels = np.array([ids.index(clusters[one]) for one in track_ids], dtype=np.int64)
    lineage = trace(recall(track_ids, assigned(world, former)), labels, ids, former.run_id)
    world.store.upsert([run.model_copy(update={"lineage": lineage, "rev": next_rev(run.rev)})])
    world.publish()
    return run


def assigned(world: World, run: Run) -> dict[str, str]:
    """Return track id → cluster id as the store has it."""
    found = world.store.scan(Assignment, prefix=f"{run.run_id}/")
    return {one["track_id"]: one["cluster_id"] for one in found}


def view(world: World, cluster_id: str) -> topics.View:
    return topics.view(world.config.bus.url, cluster_id, prefix=world.names.prefix)


def run_of(view: topics.View) -> str | None:
    return view.run.run_id if view.run else None


def test_a_view_has_the_members_of_the_cluster_and_what_is_known_of_each(world: World) -> None:
    run = publish(world, FIRST)
    with view(world, "c01") as cluster:
        assert sorted(cluster) == ["a", "b", "c"]
        assert (cluster["a"].title, cluster["a"].cluster_id) == ("Title of a", "c01")
        assert "d" not in cluster
        assert (run_of(cluster), cluster.successors) == (run.run_id, [])


def test_after_each_publication_views_of_all_clusters_are_the_assignment_of_the_store(world: World) -> None:
    rng = random.Random(int(os.environ["MURMUR_SEED"]))
    names = ["c01", "c02", "c03", "c04"]
    publish(world, {f"t{n:02}": names[n % 4] for n in range(24)})
    with ExitStack() as opened_views:
        views = [opened_views.enter_context(view(world, name)) for name in names]
        for _ in range(RUNS):
            clusters = rng.sample(names, rng.randint(1, 4))
            run = publish(world, {f"t{n:02}": rng.choice(clusters) for n in range(24) if rng.random() < 0.9})
            for one in views:
                one.refresh()
            found = [(track_id, member.cluster_id) for one in views for track_id, member in one.items()]
            assert sorted(found) == sorted(assigned(world, run).items())
            assert [run_of(one) for one in views] == [run.run_id] * 4


def test_a_refresh_returns_what_joined_changed_or_left_and_nothing_the_next_time(world: World) -> None:
    publish(world, FIRST)
    with view(world, "c01") as cluster:
        assert cluster.refresh() == []
        publish(world, {"b": "c01", "c": "c02", "d": "c01"})
        changes = {new.track_id: new.member for new in cluster.refresh()}
        assert (changes["a"], changes["c"]) == (None, None)
        assert changes["d"] == cluster["d"]
        assert sorted(cluster) == ["b", "d"]
        assert cluster.refresh() == []


def test_what_is_iterated_over_is_of_one_moment_whatever_a_refresh_brings_meanwhile(world: World) -> None:
    publish(world, FIRST)
    with view(world, "c01") as cluster:
        parts = [cluster.keys(), cluster.values(), cluster.items()]
        before = [list(one) for one in parts]
        begun = [iter(one) for one in parts]
        first = [next(one) for one in begun]
        publish(world, {"d": "c01"})
        cluster.refresh()
        assert list(cluster) == ["d"]
        assert [[one, *rest] for one, rest in zip(first, begun, strict=True)] == before
        assert before[2] == list(zip(before[0], before[1], strict=True))


def test_where_nothing_came_no_member_is_looked_at(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(world, FIRST)
    with view(world, "c01") as cluster:
        monkeypatch.delattr("topics.views._differences")
        assert cluster.refresh() == []
        publish(world, FIRST | {"a": "c02"})
        with pytest.raises(NameError):
            cluster.refresh()


def test_what_left_before_the_view_was_opened_is_not_in_it(world: World) -> None:
    publish(world, FIRST)
    publish(world, FIRST | {"a": "c02"})
    with view(world, "c01") as cluster:
        assert sorted(cluster) == ["b", "c"]


def test_a_cluster_that_ended_is_empty_and_names_those_that_took_its_members(world: World) -> None:
    first = publish(world, {"a": "c01", "b": "c01", "c": "c01", "d": "c02", "e": "c03"})
    with view(world, "c01") as cluster:
        publish_after(world, first, {"a": "c02", "b": "c03", "c": "c03", "d": "c02", "e": "c03"})
        cluster.refresh()
        assert (len(cluster), cluster.successors) == (0, ["c03", "c02"])


def test_the_successors_of_successors_that_ended_too_are_those_that_live(world: World) -> None:
    first = publish(world, {"a": "c01", "b": "c02", "c": "c03"})
    second = publish_after(world, first, {"a": "c02", "b": "c02", "c": "c03"})
    third = publish_after(world, second, {"a": "c04", "b": "c04", "c": "c03"})
    with view(world, "c01") as cluster, view(world, "c02") as other, view(world, "c04") as heir:
        assert (cluster.successors, other.successors, heir.successors) == (["c04"], ["c04"], [])
        publish_after(world, third, {"c": "c03"})
        for one in (cluster, heir):
            one.refresh()
            assert one.successors == []


def test_after_going_back_to_an_earlier_run_a_cluster_that_had_ended_lives(world: World) -> None:
    first = publish(world, FIRST)
    publish_after(world, first, dict.fromkeys(FIRST, "c01"))
    with view(world, "c02") as cluster:
        assert cluster.successors == ["c01"]
        world.publish(run_id=first.run_id)
        cluster.refresh()
        assert (list(cluster), cluster.successors, run_of(cluster)) == (["d"], [], first.run_id)


def test_a_cluster_whose_members_all_left_the_library_has_ended_without_successors(world: World) -> None:
    first = publish(world, FIRST)
    with view(world, "c02") as cluster, view(world, "c01") as other:
        assert not cluster.has_ended
        publish_after(world, first, {"a": "c01", "b": "c01", "c": "c01"})
        for one in (cluster, other):
            one.refresh()
        assert (cluster.has_ended, cluster.successors, len(cluster)) == (True, [], 0)
        assert not other.has_ended


def test_a_cluster_has_ended_in_an_earlier_run_that_never_had_it_and_lives_again_when_its_run_is_back(
    world: World,
) -> None:
    first = publish(world, FIRST)
    second = publish_after(world, first, FIRST | {"a": "c03", "b": "c03"})
    with view(world, "c03") as cluster:
        assert not cluster.has_ended
        for run, has_ended in ((first, True), (second, False)):
            world.publish(run_id=run.run_id)
            cluster.refresh()
            assert (run_of(cluster), cluster.has_ended, cluster.successors) == (run.run_id, has_ended, [])


def test_a_cluster_that_is_being_born_has_not_ended_and_one_whose_birth_was_given_up_has(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "CHUNK", 1)
    first = publish(world, FIRST)
    publish_after(world, first, FIRST)
    add_run(world.store, FIRST | {"a": "c03"})
    with pytest.raises(JobDiedError):
        world.publish(Mortal(world.bus, 5))
    with view(world, "c03") as cluster:
        assert not cluster.has_ended
        publish(world, FIRST)
        cluster.refresh()
        assert cluster.has_ended


def test_tracks_in_no_cluster_are_a_topic_that_never_ends(world: World) -> None:
    publish(world, FIRST)
    with view(world, "unclustered") as cluster:
        assert (run_of(cluster) is not None, len(cluster), cluster.has_ended) == (True, 0, False)


def test_until_a_publication_has_ended_the_run_is_the_one_before(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "CHUNK", 1)
    first = publish(world, FIRST)
    with view(world, "c01") as cluster:
        second = add_run(world.store, {"a": "c02", "b": "c02", "d": "c01"})
        with pytest.raises(JobDiedError):
            world.publish(Mortal(world.bus, 8))
        cluster.refresh()
        assert run_of(cluster) == first.run_id
        world.publish()
        cluster.refresh()
        assert (run_of(cluster), list(cluster)) == (second.run_id, ["d"])


def test_before_the_first_publication_has_ended_there_is_no_run(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "CHUNK", 1)
    add_run(world.store, FIRST)
    with pytest.raises(JobDiedError):
        world.publish(Mortal(world.bus, 8))
    with view(world, "c01") as cluster:
        assert (run_of(cluster), cluster.successors) == (None, [])


def test_an_unknown_cluster_is_one_clear_error_that_names_those_there_are(world: World) -> None:
    publish(world, FIRST)
    with pytest.raises(ConfigError, match=r"no cluster 'c99' on .*; there are c01, c02"):
        view(world, "c99")


def test_a_file_that_is_missing_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no murmur\.db in"):
        topics.view(f"sqlite:///{tmp_path / 'murmur.db'}", "c01")
    assert list(tmp_path.iterdir()) == []


def test_over_a_broken_connection_nothing_is_lost(world: World, caplog: pytest.LogCaptureFixture) -> None:
    publish(world, FIRST)
    bus: Any = Flaky(world.bus)
    cluster = topics.View(bus, world.names, "c01")
    assert sorted(cluster) == ["a", "b", "c"]
    publish(world, {"b": "c01", "c": "c02", "d": "c01"})
    cluster.refresh()
    assert sorted(cluster) == ["b", "d"]
    assert "the server went away: trying again" in caplog.text


class Breakable:
    """A bus whose consumers, once it is `broken`, fail after the messages were read, and not for a moment only."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.broken = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    def consumer(self, topics: Iterable[str]) -> Consumer:
        consumer = self._bus.consumer(topics)
        poll = consumer.poll

        def poll_or_fail(timeout: float = 1.0, max_records: int = 500) -> list[Message]:
            messages = poll(timeout, max_records)
            if self.broken:
                raise BackendError("the disk is full")
            return messages

        consumer.poll = poll_or_fail  # type: ignore[method-assign]
        return consumer


def test_a_refresh_that_fails_leaves_the_view_as_it_was_and_the_next_goes_on(world: World) -> None:
    first = publish(world, FIRST)
    bus: Any = Breakable(world.bus)
    cluster = topics.View(bus, world.names, "c01")
    second = publish(world, {"b": "c01", "c": "c02", "d": "c01"})
    bus.broken = True
    with pytest.raises(BackendError, match="the disk is full"):
        cluster.refresh()
    assert (sorted(cluster), run_of(cluster)) == (["a", "b", "c"], first.run_id)
    bus.broken = False
    cluster.refresh()
    assert (sorted(cluster), run_of(cluster)) == (["b", "d"], second.run_id)


def test_what_was_read_stays_readable_after_the_view_is_closed(world: World) -> None:
    publish(world, FIRST)
    with view(world, "c01") as cluster:
        pass
    assert sorted(cluster) == ["a", "b", "c"]


@pytest.mark.servers
def test_where_the_topic_was_deleted_and_made_anew_the_view_begins_again_empty(tmp_path: Path, kafka_url: str) -> None:
    with opened(settings(tmp_path, kafka_url)) as world, ExitStack() as stack:
        first = publish(world, FIRST)
        cluster = stack.enter_context(view(world, "c01"))
        delete_topic(world.bus, world.names.cluster("c01"))
        world.bus.create_topics(world.config.topics.of_clusters(["c01"]))
        assert {(new.track_id, new.member) for new in cluster.refresh()} == {("a", None), ("b", None), ("c", None)}
        assert (len(cluster), run_of(cluster)) == (0, None)
        delete_topic(world.bus, world.names.cluster("c01"))
        second = publish_after(world, first, {f"t{n}": "c01" for n in range(50)} | {"b": "c01", "d": "c02"})
        cluster.refresh()
        expected = {track_id for track_id, name in assigned(world, second).items() if name == "c01"}
        assert (set(cluster), run_of(cluster)) == (expected, second.run_id)


def test_importing_the_library_loads_nothing_heavy() -> None:
    heavy = ("sklearn", "pyspark", "librosa", "scipy", "numpy", "pandas", "kafka", "pymongo")
    program = f"import sys, topics; print([one for one in {heavy} if one in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
