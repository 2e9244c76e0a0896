"""With a live follower that is killed too, a subscriber still ends with the store's assignment."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from math import inf
from multiprocessing.synchronize import Event as Told
from pathlib import Path
from threading import Event, Thread

import pytest
from test_topics_publish_killed import (
    SECONDS,
    Subscriber,
    clustering,
    die,
    exit_code,
    following,
    forkserver,
    kill_a_publisher,
    offsets_of,
)
from topics_library import Mortal, World, add_run, cluster_topics, opened, settings, track

from core import kafka
from core.bus import lag
from core.config import Config
from core.errors import FencedError
from core.records import Assignment, RunInForce, Track, next_rev
from core.store import Document
from etl.messages import create_topics, send, send_tombstone
from topics import follow, publish, publisher

ROUNDS = 50 if "MURMUR_FULL" in os.environ else 3
RUNS = 3
"""Re-clusterings in a round."""
FENCED = 3
"""The exit code of a follower that another publisher has fenced."""


def follow_until(config: Config, steps: int | None, told: Told) -> None:
    """Follow, and be killed at a step, or stop when told: what the child process runs."""
    be_quick()
    with opened(config) as world:
        bus = world.bus if steps is None else Mortal(world.bus, steps, die)
        try:
            follow.run(config, store=world.store, bus=bus, until=told.is_set)  # type: ignore[arg-type]  # it delegates
        except FencedError:
            os._exit(FENCED)


def be_quick() -> None:
    """Notice a death within a second or two, and let many transactions be killed in."""
    kafka.SESSION_TIMEOUT_MS, kafka.HEARTBEAT_MS = 1500, 300
    follow.SESSION_SECONDS, publish.LOOK_SECONDS = 6.0, 0.5
    publisher.CHUNK = follow.CHUNK = 3


class Supervisor:
    """Starts a follower again and again, each one to be killed at some step; the one at the end is spared."""

    def __init__(self, config: Config, seed: str) -> None:
        self._config, self._rng = config, random.Random(seed)
        self._spare, self._end = Event(), Event()
        self._told = forkserver().Event()
        self.killed = 0
        self.error: BaseException | None = None
        self._thread = Thread(target=self._supervise)
        self._thread.start()

    def spare(self) -> None:
        """Have no follower killed that is started from now on."""
        self._spare.set()

    def close(self) -> None:
        self._spare.set()
        self._end.set()
        self._told.set()
        self._thread.join(SECONDS)
        assert not self._thread.is_alive(), "the follower does not stop"
        if self.error:
            raise self.error

    def _supervise(self) -> None:
        try:
            while not self._end.is_set():
                steps = None if self._spare.is_set() else self._rng.randrange(100)
                code = exit_code(inf, follow_until, self._config, steps, self._told)
                assert code in (0, -signal.SIGKILL, FENCED), code
                self.killed += code == -signal.SIGKILL
        except AssertionError as error:
            self.error = error


@contextmanager
def supervised(world: World, seed: str) -> Iterator[Supervisor]:
    supervisor = Supervisor(world.config, seed)
    try:
        yield supervisor
    finally:
        supervisor.close()


def arrive(world: World, rng: random.Random) -> None:
    """Have some tracks arrive: new ones, some that have changed, and deletions."""
    with closing(world.bus.producer()) as producer:
        for number in rng.sample(range(30), rng.randint(1, 6)):
            if rng.random() < 0.2:
                send_tombstone(producer, world.names.tracks, Track, f"t{number:02}", next_rev())
            else:
                send(producer, world.names.tracks, track(f"t{number:02}", rng.uniform(0.6, 5.4)))
        producer.flush()


def in_force(world: World) -> str:
    current = world.store.get(RunInForce, RunInForce.current)
    assert current is not None
    return current.run_id


def expected(world: World) -> set[tuple[str, str]]:
    """Return (topic, track id) as the store has it: the tracks there are, by the run in force."""
    there = {one["track_id"] for one in world.store.scan(Track, fields=["track_id"])}
    found: Iterator[Document] = world.store.scan(Assignment, prefix=f"{in_force(world)}/")
    assigned = {one["track_id"]: one["cluster_id"] for one in found}
    assert there <= assigned.keys(), "a track is not assigned"
    return {(world.names.cluster(assigned[track_id]), track_id) for track_id in there}


def await_rest(world: World, subscriber: Subscriber) -> None:
    """Wait until the follower has routed all that arrived, and the subscriber has read all that was sent."""
    deadline = time.monotonic() + SECONDS
    while lag(world.bus, world.names.follow_group, [world.names.tracks]):
        assert time.monotonic() < deadline, "the follower lags behind"
        time.sleep(0.1)
    subscriber.read_up_to(world.bus.ends(cluster_topics(world.bus, world.names)))


@pytest.mark.servers
def test_with_a_live_follower_that_is_killed_too_a_subscriber_ends_with_the_assignment_of_the_store(
    tmp_path: Path, kafka_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "CHUNK", 3)
    monkeypatch.setattr(publish, "LOOK_SECONDS", 0.5)
    rng = random.Random(int(os.environ["MURMUR_SEED"]))
    killed = 0
    with opened(settings(tmp_path, kafka_url)) as world, following(world) as subscriber:
        create_topics(world.bus, world.config)
        add_run(world.store, clustering(rng))
        world.publish()
        for number in range(ROUNDS):
            with supervised(world, f"{os.environ['MURMUR_SEED']}/{number}") as follower:
                for _ in range(RUNS):
                    arrive(world, rng)
                    run = add_run(world.store, clustering(rng))
                    for _ in range(rng.randint(0, 1)):
                        kill_a_publisher(world.config, rng.randrange(60))
                    arrive(world, rng)
                    world.publish(run_id=run.run_id)
                follower.spare()
                arrive(world, rng)
                await_rest(world, subscriber)
                assert subscriber.members == expected(world)
            killed += follower.killed
            world.publish(run_id=in_force(world))  # the last follower may have been killed at its last step
            subscriber.read_up_to(named := offsets_of(world, in_force(world)))
            assert subscriber.members == expected(world)
            assert named == world.bus.ends(cluster_topics(world.bus, world.names))
    assert killed
