"""A subscriber who follows all cluster topics ends with the store's assignment, wherever publishers were killed."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

import kafka
import pytest
from topics_library import Mortal, World, add_run, opened, settings

from core.bus import Offsets, TopicPartition, read_to_end
from core.config import Config
from core.names import CURRENT, REQUESTED, Names
from core.records import Assignment, PublishedRun
from topics import publisher
from topics.fold import fold

ROUNDS = 50 if "MURMUR_FULL" in os.environ else 3
RUNS = 3
"""Re-clusterings in a round."""
SECONDS = 30.0
"""How long the subscriber may take to come as far as it is told."""
PATIENCE = 180.0
"""How long a publisher may take: it waits for a follower, which may be killed again and again before it answers."""


TURN = Lock()
"""To look after processes."""


class Subscriber:
    """Follows every cluster topic in a thread, from its beginning and from when it is there.

    It looks for the topics itself: the driver's subscription to a pattern does not always find a new one.
    """

    def __init__(self, url: str, names: Names) -> None:
        self._names = names
        self.members: set[tuple[str, str]] = set()
        """(topic, track id)."""
        self.positions: Offsets = {}
        self._consumer = kafka.KafkaConsumer(
            bootstrap_servers=url.removeprefix("kafka://").split(","),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            allow_auto_create_topics=False,
        )
        self._end = Event()
        self._thread = Thread(target=self._follow)
        self._thread.start()

    def read_up_to(self, offsets: Offsets) -> None:
        deadline = time.monotonic() + SECONDS
        while any(self.positions.get(partition, 0) < end for partition, end in offsets.items()):
            assert time.monotonic() < deadline, f"at {self.positions} of {offsets}"
            time.sleep(0.02)

    def close(self) -> None:
        self._end.set()
        self._thread.join()
        self._consumer.close()

    def _follow(self) -> None:
        while not self._end.is_set():
            self._find_topics()
            for messages in self._consumer.poll(timeout_ms=50).values():
                for message in messages:
                    change = self.members.discard if message.value is None else self.members.add
                    change((message.topic, message.key.decode()))
            for partition in self._consumer.assignment():
                self.positions[TopicPartition(*partition)] = self._consumer.position(partition, timeout_ms=0) or 0

    def _find_topics(self) -> None:
        topics = [topic for topic in self._consumer.topics() if self._names.cluster_of(topic)]
        found = {kafka.TopicPartition(one, n) for one in topics for n in self._consumer.partitions_for_topic(one) or ()}
        if found != self._consumer.assignment():
            self._consumer.assign(list(found))


@contextmanager
def following(world: World) -> Iterator[Subscriber]:
    subscriber = Subscriber(world.bus.url, world.names)
    try:
        yield subscriber
    finally:
        subscriber.close()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def publish_until(config: Config, steps: int) -> None:
    """Publish, and be killed at a step: what the child process runs."""
    publisher.CHUNK = 3
    with opened(config) as world:
        world.publish(Mortal(world.bus, steps, die))


def forkserver() -> ForkServerContext:
    """Return what starts processes that have imported the most of it already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["topics_library", "core.kafka", "core.sqlite_store"])
    return context


def exit_code(patience: float, function: Callable[..., None], *arguments: Any) -> int:
    """Call a function in a process of its own, and wait.

    Threads take turns: each start looks after all processes of multiprocessing, and of two threads that see one end
    only one is told how.
    """
    process = forkserver().Process(target=function, args=arguments)
    with TURN:
        process.start()
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        with TURN:
            if process.exitcode is not None:
                return process.exitcode
        time.sleep(0.01)
    raise AssertionError(f"{function.__name__} does not end")


def kill_a_publisher(config: Config, steps: int) -> bool:
    """Return whether it was killed, and had not ended before."""
    code = exit_code(PATIENCE, publish_until, config, steps)
    assert code in (0, -signal.SIGKILL)
    return code != 0


def clustering(rng: random.Random) -> dict[str, str]:
    """Draw a library, most of it as always, and its clusters, some of them born or ended."""
    clusters = rng.sample(["c01", "c02", "c03", "c04", "c05"], rng.randint(1, 4))
    return {f"t{n:02}": rng.choice(clusters) for n in range(24) if rng.random() < 0.9}


def offsets_of(world: World, run_id: str) -> Offsets:
    """Return the offsets that a run names once it is complete."""
    messages = [
        one
        for one in read_to_end(world.bus, [world.names.runs])
        if one.key not in (CURRENT.encode(), REQUESTED.encode())
    ]
    run = fold(messages, PublishedRun)[run_id]
    assert run.published
    return {
        TopicPartition(topic, int(number)): end for topic, ends in run.offsets.items() for number, end in ends.items()
    }


@pytest.mark.servers
def test_a_follower_of_all_topics_has_the_assignment_once_it_has_read_as_far_as_told(
    tmp_path: Path, kafka_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "CHUNK", 3)
    rng = random.Random(int(os.environ["MURMUR_SEED"]))
    killed = 0
    with opened(settings(tmp_path, kafka_url)) as world, following(world) as subscriber:
        for _ in range(ROUNDS * RUNS):
            run = add_run(world.store, clustering(rng))
            for _ in range(rng.randint(1, 2)):
                killed += kill_a_publisher(world.config, rng.randrange(60))
            world.publish()
            subscriber.read_up_to(offsets_of(world, run.run_id))
            assigned = world.store.scan(Assignment, prefix=f"{run.run_id}/")
            expected = {(world.names.cluster(one["cluster_id"]), one["track_id"]) for one in assigned}
            assert subscriber.members == expected
    assert killed
