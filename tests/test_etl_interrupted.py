"""The whole job, interrupted at random and started again: at the end the store of a run that nobody disturbed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from bisect import bisect
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from etl_library import tone

from core import open_bus, open_store
from core.bus import read_to_end
from core.records import Assignment, Failure, Run, RunInForce, Track

ROUNDS = 20 if "MURMUR_FULL" in os.environ else 3
VARYING = {"_id", "rev", "track_rev", "run_id", "since_run", "input_digest", "created_at", "failed_at"}
"""Revisions and times, and what is made of them."""
HALF_BORN = "EOFError: Ran out of input\n"
"""What Python says in a worker whose parent was killed before it had told it what to do; no code of ours runs yet."""
SECONDS = 60.0
"""How long a process may take to end before it counts as left behind."""


@dataclass
class Command:
    """The command, the leader of a session of its own, and what it says."""

    process: subprocess.Popen[str]
    heard: list[tuple[float, str]] = field(default_factory=list)
    """When, s, and the line."""

    @property
    def lines(self) -> list[str]:
        return [line for _, line in self.heard]

    @property
    def is_done(self) -> bool:
        """Whether it has said the last line of a run that nobody disturbed."""
        return self.lines[-1].endswith(" status\n")

    def listen(self) -> None:
        began = time.monotonic()
        assert self.process.stdout
        for line in self.process.stdout:
            self.heard.append((time.monotonic() - began, line))

    def wait_for(self, n_lines: int, delay: float) -> None:
        """Wait for so many lines and then for a while, but not longer than for the next line or the end."""
        for n, seconds in ((n_lines, SECONDS), (n_lines + 1, delay)):
            deadline = time.monotonic() + seconds
            while len(self.heard) < n and time.monotonic() < deadline and self.process.poll() is None:
                time.sleep(0.002)

    def others(self) -> dict[int, str]:
        """Return the other processes of the session: pid → command line."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                state, _, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(session) == self.process.pid != int(folder.name) and state != "Z":
                    found[int(folder.name)] = (folder / "cmdline").read_text()
        return found

    def left_behind(self) -> dict[int, str]:
        """Return the processes that do not end after the command."""
        deadline = time.monotonic() + SECONDS
        while (found := self.others()) and time.monotonic() < deadline:
            time.sleep(0.01)
        return found


@contextmanager
def murmur(library: Path, folder: Path) -> Iterator[Command]:
    """Run the command in a folder; at the end it has ended."""
    audio, catalogue, config = (library / name for name in ("audio", "tracks.csv", "config.yaml"))
    program = (Path(sys.executable).with_name("murmur"), "-vv", "--config", config)  # a line for each track
    with subprocess.Popen(
        [*program, "run", audio, "--metadata", catalogue],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        command = Command(process)
        listener = Thread(target=command.listen)
        listener.start()
        try:
            yield command
            process.wait(SECONDS)
            assert command.left_behind() == {}
        finally:
            for pid in (process.pid, *command.others()):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            listener.join()


@dataclass(frozen=True)
class Undisturbed:
    """A run that nobody disturbed."""

    contents: dict[str, list[Any]]
    heard: list[tuple[float, str]]

    def moment(self, rng: random.Random, last: str) -> tuple[int, float]:
        """Draw a line before the last one that says this, or the time; return how many lines come first, and a delay.

        The lines come fast while tracks are sent; most of the time passes where nothing is said.
        """
        times = [when for when, _ in self.heard]
        before = [when for when, line in self.heard if last in line][-1]
        moment = rng.choice([rng.uniform(times[0], before), rng.choice(times[: times.index(before)])])
        n_lines = bisect(times, moment)
        return n_lines, moment - times[n_lines - 1]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `audio`, `tracks.csv` and `config.yaml`: 12 tracks of 2 to 8 s, a copy, and a bad file."""
    folder = tmp_path_factory.mktemp("library")
    for n in range(12):
        tone(folder / "audio" / f"{n}.{('wav', 'flac', 'mp3')[n % 3]}", 150 * 1.2**n, seconds=2 + n / 2)
    shutil.copy(folder / "audio" / "7.flac", folder / "audio" / "copy of 7.flac")
    (folder / "audio" / "words.mp3").write_text("These are words, no music.\n" * 99)
    rows = "".join(f"{n},Title {n},{('low', 'high')[n // 6]}\n" for n in range(10))
    (folder / "tracks.csv").write_text(f"id,title,genre\n{rows}")
    (folder / "config.yaml").write_text(
        "clustering: {engine: sklearn, n_clusters: 3}\nworkers: 2\n"
        "max_failures: 1  # where all but the bad file are done before, it is all that the last run tries\n"
    )
    return folder


@pytest.fixture(scope="module")
def undisturbed(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """Return the outcome of one run from the beginning to the end."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with murmur(library, folder) as command:
        pass
    assert command.process.returncode == 0, command.lines
    return Undisturbed(contents(folder), command.heard)


@pytest.mark.parametrize("number", range(ROUNDS))
def test_interrupted_at_random_and_started_again_it_ends_with_the_same_store(
    number: int, library: Path, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """By Ctrl-C, SIGTERM, or SIGKILL of the command or of a worker; no process is left behind, no traceback shown."""
    seed = f"{os.environ['MURMUR_SEED']}/{number}"
    rng = random.Random(seed)
    struck = []
    for what in rng.sample([ctrl_c, terminate, kill, kill_a_worker], 3):
        last = "etl.outbox" if what is kill_a_worker else "status" if struck else "load"
        n_lines, delay = undisturbed.moment(rng, last)
        print(f"seed {seed}: {what.__name__} {delay:.3f} s after {undisturbed.heard[n_lines - 1][1].strip()}")
        with murmur(library, tmp_path) as command:
            command.wait_for(n_lines, delay)
            expected = what(command, rng)
        tracebacks = sum(line.startswith(("Traceback", "Exception")) for line in command.lines)
        assert tracebacks == (command.lines.count(HALF_BORN) if what is kill else 0), "".join(command.lines[-20:])
        if expected == 130 and not command.is_done:
            assert command.lines[-1] == "murmur: stopped; the same command goes on from here\n"
        if expected == 0 or (expected and not command.is_done):
            assert command.process.returncode == expected, command.lines
            struck.append(what)
    assert struck
    with murmur(library, tmp_path) as command:
        pass
    assert command.process.returncode == 0, command.lines
    assert contents(tmp_path) == undisturbed.contents


def ctrl_c(command: Command, _: random.Random) -> int:
    """Interrupt all processes, as a terminal does; return the exit code."""
    with suppress(ProcessLookupError):
        os.killpg(command.process.pid, signal.SIGINT)
    return 130


def terminate(command: Command, _: random.Random) -> int:
    command.process.terminate()
    return 130


def kill(command: Command, _: random.Random) -> int:
    command.process.kill()
    return -signal.SIGKILL


def kill_a_worker(command: Command, rng: random.Random) -> int | None:
    """Kill one as soon as there is one; the command goes on. None: there was none any more."""
    while command.process.poll() is None:
        if workers := [pid for pid, line in command.others().items() if "spawn_main" in line]:
            with suppress(ProcessLookupError):
                os.kill(rng.choice(workers), signal.SIGKILL)
            return 0
        time.sleep(0.002)
    return None


def contents(folder: Path) -> dict[str, list[Any]]:
    """Return what the store has of each collection, and what the topics say, but for what may vary."""
    url = f"sqlite:///{folder}/murmur.db"
    with closing(open_store(url, create=False)) as store:
        found = {kind.collection: _sorted(store.scan(kind)) for kind in (Track, Failure, Run, RunInForce, Assignment)}
    with closing(open_bus(url, create=False)) as bus:
        topics = [topic for topic in bus.topics() if topic not in ("clusters.runs.v1", "clusters.spaces.v1")]
        latest = {(message.topic, message.key): message.value for message in read_to_end(bus, topics)}
    for topic in topics:
        found[topic] = _sorted(json.loads(value) for (name, _), value in latest.items() if value and name == topic)
    return found


def _sorted(documents: Any) -> list[Any]:
    return sorted((_without(document) for document in documents), key=json.dumps)


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without(one) for name, one in value.items() if name not in VARYING}
    return [_without(one) for one in value] if isinstance(value, list) else value
