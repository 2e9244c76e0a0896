"""What clustering costs as a library grows: ``scripts/bench scale``.

The whole job `cluster`, cold, in a process of its own, by either engine, on tracks of the default profile in a SQLite
file; at the smaller sizes, by Spark on a MongoDB-wire server too. Of each step there are the seconds, and of the
process that drives the job, of its Java and of its Python workers the most memory, as the system tells it; of all of
them the seconds of processors, which a busy machine changes least. A row is one run; all on one machine, where Java is
driver and executor at once. The table goes to docs/scale.md.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path
from platform import python_version
from subprocess import DEVNULL, PIPE, Popen
from typing import Any

import numpy as np
import pyspark

from benchmarks.streaming import TRACK, shortest
from clustering import cluster
from clustering.neighbours import products
from clustering.place import store_all
from clustering.ranking import Points, neighbourhoods, recommend
from clustering.recordings import RECORDING
from core import open_bus, open_store
from core.blocks import BLOCKS, PROFILES
from core.config import Config, parse_config
from core.jobs import Progress
from core.records import Features, Track
from core.store import Store
from tests import servers

REPORT = Path(__file__).parent.parent / "docs" / "scale.md"
SIZES = (1_000, 10_000, 100_000)
N_WIRE = 10_000
"""Tracks on the MongoDB-wire server at most: it is for semantics, not for speed."""
N_KINDS, N_LATENT = 40, 12
SPREAD = 1.0
"""Of the kinds' centres, in standard deviations of their tracks: they overlap."""
N_CLUSTERS = 50
CORES = 2
BATCH = 1000
SEARCHED = (10_000, 100_000, 1_000_000)
N_ASKED, N_DIMENSIONS = 1_000, 60
STAGES = ("read", "fit", "neighbours", "write")
WHO = ("driver", "Java", "workers")


def main(sizes: Sequence[int]) -> None:
    """Measure, print and write."""
    rows = []
    for n in sizes:
        with tempfile.TemporaryDirectory(prefix="murmuration-") as name:
            url = f"sqlite:///{name}/murmur.db"
            with closing(open_store(url)) as store:
                fill(store, n)
            rows += [measured(n, engine, "SQLite", url, name) for engine in ("sklearn", "spark")]
            if n <= N_WIRE:
                with servers.mongodb(Path(name)) as server:
                    with closing(open_store(f"{server}/music")) as store:
                        fill(store, n)
                    rows.append(measured(n, "spark", "MongoDB-wire", f"{server}/music", name))
    text = PAGE.format(
        python=python_version(),
        spark=pyspark.__version__,
        cores=CORES,
        clusters=N_CLUSTERS,
        processors=os.cpu_count(),
        load=os.getloadavg()[1],
        rows="\n".join(rows),
        searches="\n".join(map(search, SEARCHED)),
        asked=N_ASKED,
    )
    print(text)
    before, begin, rest = REPORT.read_text(encoding="utf-8").partition(BEGIN)
    REPORT.write_text(before + begin + "\n" + text + END + rest.partition(END)[2], encoding="utf-8")


def search(n: int) -> str:
    """Return a row of what the neighbours of some of n rows cost one processor."""
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(N_KINDS, N_LATENT))[np.arange(n) % N_KINDS] + rng.normal(size=(n, N_LATENT))
    X = latent @ rng.normal(size=(N_LATENT, N_DIMENSIONS)) + 0.3 * rng.normal(size=(n, N_DIMENSIONS))
    recordings = np.zeros(n, RECORDING)
    recordings["duration"], recordings["artist"] = 3.0 * np.arange(n), np.arange(n) // 8 + 1
    points = Points(X, products(X), np.ones(n), recordings)
    rows = np.sort(rng.choice(n, N_ASKED, replace=False))
    start = time.process_time()
    neighbourhoods(points, rows)
    between = time.process_time()
    recommend(points, rows[:, None])
    return f"| {n:,} | {between - start:.2f} | {time.process_time() - between:.2f} |"


def measured(n: int, engine: str, what: str, url: str, folder: str) -> str:
    """Run the job in a process of its own; return a row of the table."""
    command = [sys.executable, "-m", "benchmarks.scale", "--job", engine, url, f"sqlite:///{folder}/bus.db"]
    seconds, processor, memory = run(command)
    steps = " | ".join(f"{seconds.get(stage, 0):.1f}" for stage in STAGES)
    peaks = " | ".join(f"{memory[who] / 1024:,.0f}" if who in memory else "" for who in WHO)
    row = f"| {n:,} | {engine}, {what} | {steps} | {sum(seconds.values()):.1f} | {processor:.0f} | {peaks} |"
    print(row, flush=True)
    return row


def run(command: list[str]) -> tuple[dict[str, float], float, dict[str, int]]:
    """Run a job; return the seconds of each step, those of processors, and the most memory at once, KiB.

    The memory is that of each kind of process. The processors' seconds are those of all, which a busy machine changes
    little.
    """
    most: dict[str, int] = defaultdict(int)
    ticks: dict[int, int] = {}
    with Popen(command, stdout=PIPE, stderr=DEVNULL, text=True) as process:
        while process.poll() is None:
            resident: dict[str, int] = defaultdict(int)
            for pid, who in family(process.pid):
                with suppress(OSError):
                    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
                    resident[who] += int(found[1]) if found else 0
                    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
                    ticks[pid] = int(user) + int(system)
            for who, size in resident.items():
                most[who] = max(most[who], size)
            time.sleep(0.2)
        assert process.returncode == 0
        assert process.stdout is not None
        processor = sum(ticks.values()) / os.sysconf("SC_CLK_TCK")
        return json.loads(process.stdout.read()), processor, most


def family(pid: int) -> Iterator[tuple[int, str]]:
    """Yield a process and all below it, each with what it is."""
    children: dict[int, list[tuple[int, str]]] = defaultdict(list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            number, name, parent = re.fullmatch(r"(\d+) \((.*)\) \S (\d+) .*\n", stat.read_text()).groups()
            children[int(parent)].append((int(number), name))
    yield pid, "driver"
    below = [pid]
    while below:
        for number, name in children[below.pop()]:
            yield number, "Java" if name == "java" else "workers"
            below.append(number)


def job(engine: str, store_url: str, bus_url: str) -> None:
    """Cluster, and print the seconds of each step as JSON: what the process runs."""
    config = settings(engine)
    seconds: dict[str, float] = defaultdict(float)
    now = {"stage": "read", "since": time.monotonic()}

    def watch(progress: Progress | None) -> None:
        since, now["since"] = now["since"], time.monotonic()
        seconds[now["stage"]] += now["since"] - since
        if progress and progress.stage in STAGES:
            now["stage"] = progress.stage

    with closing(open_store(store_url)) as store, closing(open_bus(bus_url)) as bus:
        cluster.run(config, store=store, bus=bus, fresh=True, progress=watch)
    watch(None)
    print(json.dumps(seconds))


def settings(engine: str) -> Config:
    """Return the config of the job."""
    tree: dict[str, Any] = {"clustering": {"engine": engine, "n_clusters": N_CLUSTERS}}
    return parse_config(tree | {"spark": {"master": f"local[{CORES}]", "options": {"spark.driver.memory": "4g"}}})


def fill(store: Store, n: int) -> None:
    """Store tracks of kinds that overlap, all blocks of the default profile, float32 in shortest decimal form."""
    tracks = synthesise(n)
    while batch := list(islice(tracks, BATCH)):
        store_all(store, batch)


def synthesise(n: int) -> Iterator[Track]:
    """Yield tracks, no two of one recording."""
    rng = np.random.default_rng(0)
    slots = [(b, s, BLOCKS[b].rows) for b in PROFILES["default"] for s in BLOCKS[b].statistics]
    width = sum(size for *_, size in slots)
    mixture, scales = rng.normal(size=(N_LATENT, width)), rng.uniform(0.1, 1000, size=width)
    centres = SPREAD * rng.normal(size=(N_KINDS, N_LATENT))
    feature_set = Config().feature_set
    for number in range(n):
        latent = centres[number % N_KINDS] + rng.normal(size=N_LATENT)
        values = iter(shortest((latent @ mixture + rng.normal(size=width)) * scales))
        features: Features = {}
        for block, statistic, size in slots:
            features.setdefault(block, {})[statistic] = list(islice(values, size))
        known = {"track_id": f"fma:{number:07d}", "title": f"Track {number}", "artist": f"Artist {number // 8}"}
        yield TRACK.model_copy(update={**known, "rev": 1, "feature_set": feature_set, "features": features})


BEGIN, END = "<!-- measured -->", "<!-- end -->"
PAGE = """
Written by `scripts/bench scale`: Python {python}, Spark {spark} on `local[{cores}]`, {clusters} clusters, a cold start,
on {processors} processors with a load of {load:.0f} when it ended. Seconds of each step, of all, and of the processors;
then the most memory in MiB, looked at five times a second. *read* has the start of Spark in it, *neighbours* how dense
the surroundings of each track are, *write* the lists. Java is driver and executor in one here.

| tracks | engine, store | read | fit | neighbours | write | all | processors | driver | Java | workers |
|---|---|---|---|---|---|---|---|---|---|---|
{rows}

The seconds of one processor for the neighbours of {asked:,} tracks: they grow with the library, and all its tracks
ask, so that the whole grows with the square.

| tracks in the library | how dense the surroundings are | the lists |
|---|---|---|
{searches}

"""

if __name__ == "__main__":
    if sys.argv[1:2] == ["--job"]:
        job(*sys.argv[2:])
    else:
        main([int(size) for size in sys.argv[1:]] or SIZES)
