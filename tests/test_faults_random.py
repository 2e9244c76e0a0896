"""Two `load`s follow while one sends, and at random moments something is killed, stopped or cut off."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kafka
import pytest
import servers
from conftest import Run
from kafka.admin import MemberToRemove
from proxy import cutting_off
from test_etl_load import BAD, failure, track
from test_faults import AHEAD, Line, abort_sooner, await_, config_of, opened

import core.kafka
import core.patience
from core import open_bus, open_store
from core.config import Config
from core.jobs import Progress
from core.records import Failure, Track
from etl import load
from etl.messages import send, send_tombstone

pytestmark = pytest.mark.servers
ROUNDS = 50 if "MURMUR_FULL" in os.environ else 3
N_STRIKES = 4
N_KEYS = 40


# The servers


@dataclass
class Servers:
    """A broker and a MongoDB-wire server that can be killed, and started again on what they have kept."""

    folder: Path
    runs: dict[str, Run]
    urls: dict[str, str] = field(default_factory=dict)
    running: dict[str, ExitStack] = field(default_factory=dict)

    def start(self, name: str) -> None:
        stack = self.running[name] = ExitStack()
        self.urls[name] = stack.enter_context(self.runs[name](self.folder))

    def restart(self, name: str) -> None:
        servers.kill(self.folder, name)
        self.running.pop(name).close()
        self.start(name)

    def stop(self) -> None:
        for stack in self.running.values():
            stack.close()


@pytest.fixture(scope="module")
def own(own_kafka: Run, own_mongodb: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    own = Servers(tmp_path_factory.mktemp("servers"), {"kafka": own_kafka, "mongodb": own_mongodb})
    try:
        for name in own.runs:
            own.start(name)
        yield own
    finally:
        own.stop()


# What loads


def follow(config: Config, read: Any) -> None:
    """Load until SIGTERM, and tell how much was read, at first 0: what a process runs, with short time limits."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    core.kafka.SESSION_TIMEOUT_MS, core.patience.LONGEST_WAIT = 6000, 1.0
    abort_sooner()

    def tell(progress: Progress) -> None:
        read.value = progress.done

    def until() -> bool:
        read.value = max(read.value, 0)
        return stop.is_set()

    with closing(open_store(config.store.url)) as store, closing(open_bus(config.bus.url)) as bus:
        load.run(config, store=store, bus=bus, progress=tell, until=until)


class Follower:
    """A process that loads, and the one that takes its place once it is killed or stopped."""

    def __init__(self, config: Config) -> None:
        self.config, self.former = config, 0
        self.start()

    def start(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.counter = spawn.Value("q", -1, lock=False)  # a killed process would keep a lock
        self.process = spawn.Process(target=follow, args=(self.config, self.counter))
        self.process.start()

    @property
    def read(self) -> int:
        return self.former + max(self.counter.value, 0)

    @property
    def has_begun(self) -> bool:
        return self.counter.value >= 0

    def strike(self, number: signal.Signals) -> None:
        os.kill(self.process.pid or 0, number)

    def end(self, number: signal.Signals) -> int | None:
        """End it, and return its exit code."""
        self.strike(number)
        self.process.join(60)
        self.former = self.read
        return self.process.exitcode


# What sends


def send_at_random(line: Line, rng: random.Random, is_too_early: Callable[[int], bool], stop: threading.Event) -> None:
    """Send records in no strict order of their revisions, some again, tombstones, and what is bad."""
    with closing(open_bus(line.config.bus.url)) as bus, closing(bus.producer()) as producer:
        for n in range(1, 10**6):
            key, rev = f"k{rng.randrange(N_KEYS)}", max(1, n + rng.randint(-60, 3))
            what = rng.random()
            if what < 0.05:
                bad_key, value, headers, _ = rng.choice(list(BAD.values()))
                producer.send(line.names.tracks, bad_key, value, headers)
            elif what < 0.15:
                send_tombstone(producer, line.names.tracks, Track, key, rev)
            elif what < 0.25:
                send(producer, line.names.failed, failure(key, rev))
            elif what < 0.3:
                send_tombstone(producer, line.names.failed, Failure, key, rev)
            else:
                for _ in range(rng.choice((1, 1, 1, 2))):
                    send(producer, line.names.tracks, track(key, rev, title=f"at {n}"))
            if rng.random() < 0.05:
                producer.flush()
                while not stop.wait(0.05) and is_too_early(n):
                    pass
                if stop.is_set():
                    break


# What strikes


@dataclass
class Scene:
    """What there is to strike at."""

    own: Servers
    line: Line
    followers: list[Follower]
    cuts: list[None]
    """For each one, an answer of the store that is to be cut off."""
    rng: random.Random
    until: Callable[[Callable[[], bool]], None]

    def read(self) -> int:
        return sum(follower.read for follower in self.followers)

    def is_behind(self, sent: int) -> bool:
        return sent - self.read() > AHEAD

    def until_read(self, n_messages: int) -> None:
        wanted = self.read() + n_messages
        self.until(lambda: self.read() >= wanted)

    def until_all_have_begun(self) -> None:
        """Wait: one that has not yet begun would rightly end with an error."""
        self.until(lambda: all(follower.has_begun for follower in self.followers))


def kill_a_load(scene: Scene) -> None:
    follower = scene.rng.choice(scene.followers)
    assert follower.end(signal.SIGKILL) == -signal.SIGKILL
    follower.start()


def stop_a_load(scene: Scene) -> None:
    follower = scene.rng.choice(scene.followers)
    scene.until(lambda: follower.has_begun)
    assert follower.end(signal.SIGTERM) == 0
    follower.start()


def overtake_a_load(scene: Scene) -> None:
    """Have it stand still until the other has done its work."""
    follower = scene.rng.choice(scene.followers)
    follower.strike(signal.SIGSTOP)
    expel_all(scene.line)
    scene.until_read(scene.rng.randint(1, 100))
    follower.strike(signal.SIGCONT)


def kill_both_loads(scene: Scene) -> None:
    for follower in scene.followers:
        assert follower.end(signal.SIGKILL) == -signal.SIGKILL
    expel_all(scene.line)
    for follower in scene.followers:
        follower.start()


def kill_the_broker(scene: Scene) -> None:
    scene.until_all_have_begun()
    scene.own.restart("kafka")


def kill_the_store(scene: Scene) -> None:
    scene.until_all_have_begun()
    scene.own.restart("mongodb")


def cut_answers_off(scene: Scene) -> None:
    scene.cuts += [None] * scene.rng.randint(1, 3)
    scene.until(lambda: not scene.cuts)


def expel_all(line: Line) -> None:
    """Have the dead members go at once; the living come again."""
    group = line.names.load_group
    with kafka.KafkaAdminClient(bootstrap_servers=line.config.bus.url.removeprefix("kafka://")) as admin:
        members = admin.describe_groups([group])[group]["members"]
        with suppress(kafka.errors.UnknownMemberIdError):
            admin.remove_group_members(group, [MemberToRemove(member_id=member["member_id"]) for member in members])


STRIKES = [
    kill_a_load,
    stop_a_load,
    overtake_a_load,
    kill_both_loads,
    kill_the_broker,
    kill_the_store,
    cut_answers_off,
]


@pytest.mark.parametrize("number", range(ROUNDS))
def test_whatever_is_struck_at_random_nothing_is_lost_and_nothing_doubled(number: int, own: Servers) -> None:
    """A `load`, both, the broker or the store is killed; a `load` is stopped or overtaken; answers are cut off."""
    seed = f"{os.environ['MURMUR_SEED']}/{number}"
    rng, cuts, stop = random.Random(seed), list[None](), threading.Event()

    config = config_of(own.urls["mongodb"], own.urls["kafka"], batch=rng.randint(5, 60), partitions=rng.randint(1, 3))
    with (
        opened(config) as line,
        cutting_off(config.store.url, cuts) as url,
        ThreadPoolExecutor() as pool,
    ):
        through = config.model_copy(update={"store": config.store.model_copy(update={"url": url})})
        followers = [Follower(through) for _ in range(2)]
        scene = Scene(own, line, followers, cuts, rng, lambda condition: await_(condition, sending))
        sending = pool.submit(send_at_random, line, random.Random(f"{seed}/sent"), scene.is_behind, stop)
        try:
            for strike in rng.sample(STRIKES, N_STRIKES):
                scene.until_read(rng.randint(1, 150))
                time.sleep(delay := rng.uniform(0, 0.1))  # no condition: that is what is drawn
                print(f"seed {seed}: {strike.__name__} {delay:.3f} s after {scene.read()} messages")
                strike(scene)
            scene.until_read(50)
            scene.until_all_have_begun()
            stop.set()
            sending.result(90)
            await_(lambda: line.lag() == 0)
            assert [follower.end(signal.SIGTERM) for follower in followers] == [0, 0]
        finally:
            stop.set()
            for follower in followers:
                follower.process.kill()
                follower.process.join()
        line.assert_nothing_lost()
