"""What publishing costs where nothing changes, and how soon a track is routed: ``scripts/bench publishing``.

A library of tracks drawn around centres is clustered by scikit-learn and published to the tests' Kafka broker, from a
SQLite store; the results go to docs/benchmarks.md.

* *unchanged*: publishing the same run again, against the first publication;
* *due*: the share of the tracks that a warm re-clustering has to send after 1 % new ones;
* *live*: from a track's arrival to its message on a cluster topic, routed by `murmur publish --follow`.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from platform import python_version
from subprocess import DEVNULL, Popen
from threading import Event, Thread

import kafka
import numpy as np

from benchmarks.report import Measured, clock, conclude, table
from benchmarks.streaming import MURMUR, TRACK, shortest
from clustering import cluster
from clustering.place import store_all
from core import open_bus, open_store
from core.blocks import BLOCKS
from core.bus import Bus, Offsets
from core.config import Config, parse_config
from core.names import Names, path_text
from core.records import Track, next_rev
from core.store import Store
from etl.messages import create_topics, send
from tests import servers
from topics import publish
from topics.publisher import cluster_topics

N_TRACKS, N_KINDS = 100_000, 12
NEW_SHARE = 0.01
N_MFCC = 20
SPREAD = 1.0
"""Of the kinds' centres, in standard deviations of their tracks: they overlap."""
BATCH = 1000
RATE, SECONDS = 50, 60
"""Tracks a second, and for how long."""
WARM = 20
"""Tracks that arrive before the clock runs."""
LONGEST = 120.0
"""Seconds to wait for a track: the first one waits until the library is read."""


def main() -> None:
    """Measure, print and write."""
    n_new, n_live = int(NEW_SHARE * N_TRACKS), RATE * SECONDS
    tracks = synthesise(N_TRACKS + n_new + n_live + WARM)
    with tempfile.TemporaryDirectory(prefix="murmuration-") as name, servers.kafka(Path(name)) as url:
        config = settings(Path(name), url)
        with closing(open_store(config.store.url)) as store, closing(open_bus(url)) as bus:
            add(config, store, tracks, N_TRACKS)
            first = clock(lambda: publish.run(config, store=store, bus=bus))
            before = ends(config, bus)
            again = clock(lambda: publish.run(config, store=store, bus=bus))
            n_sent = sum(ends(config, bus).values()) - sum(before.values())
            add(config, store, tracks, n_new)
            report = publish.run(config, store=store, bus=bus)
        delays = np.array(live(config, Path(name), tracks))
    n_due = report.read - report.unchanged
    p50, p99 = np.percentile(delays, [50, 99])
    rows = [
        Measured(f"publishing {N_TRACKS:,} tracks again", f"{again:.1f} : {first:.1f} s", again / first, most=0.15),
        Measured("messages on cluster topics of that", f"{n_sent:,}", n_sent / N_TRACKS, most=0.0),
        Measured(f"due after {n_new:,} new tracks", f"{n_due:,} : {report.read:,}", n_due / report.read, most=0.05),
        Measured(
            f"live, {RATE} tracks/s for {SECONDS} s, 99th percentile against 1 s",
            f"{1000 * p99:.0f} ms, median {1000 * p50:.0f}",
            p99,
            most=1.0,
        ),
    ]
    text = PAGE.format(
        python=python_version(),
        kafka=kafka.__version__,
        tracks=N_TRACKS,
        kinds=N_KINDS,
        rate=RATE,
        seconds=SECONDS,
        rows=table(rows),
    )
    conclude("Publishing", text, rows)


def settings(folder: Path, url: str) -> Config:
    """Return a configuration of one group of columns, with the store in a folder."""
    return parse_config(
        {
            "store": f"sqlite:///{folder}/murmur.db",
            "bus": url,
            "clustering": {
                "engine": "sklearn",
                "n_clusters": N_KINDS,
                "groups": {"timbre": {"blocks": ["mfcc"]}, "rhythm": {"weight": 0}},
            },
        }
    )


def synthesise(n_tracks: int) -> Iterator[Track]:
    """Yield tracks of several kinds that overlap, four to an artist, each of a recording of its own."""
    random = np.random.default_rng(0)
    statistics = BLOCKS["mfcc"].statistics
    centres = random.normal(0, SPREAD, (N_KINDS, len(statistics), N_MFCC))
    feature_set = Config().feature_set
    for number in range(n_tracks):
        kind = random.integers(N_KINDS)
        rows = centres[kind] + random.normal(0, 1, centres[kind].shape)
        values = {name: shortest(row) for name, row in zip(statistics, rows, strict=True)}
        changed = {
            "track_id": f"fma:{number:07}",
            "rev": next_rev(),
            "title": f"Title {number}",
            "artist": f"Artist {number // 4}",
            "duration": float(random.uniform(120, 360)),
            "feature_set": feature_set,
            "features": {"mfcc": values},
        }
        yield TRACK.model_copy(update=changed)


def add(config: Config, store: Store, tracks: Iterator[Track], n_tracks: int) -> None:
    """Store so many more tracks, and cluster all."""
    left = n_tracks
    while left:
        batch = list(islice(tracks, min(BATCH, left)))
        store_all(store, batch)
        left -= len(batch)
    with closing(open_bus(config.bus.url)) as bus:
        cluster.run(config, store=store, bus=bus)


def ends(config: Config, bus: Bus) -> Offsets:
    """Return the ends of the cluster topics."""
    return bus.ends(cluster_topics(bus, Names(config.topics.prefix)))


def live(config: Config, folder: Path, tracks: Iterator[Track]) -> list[float]:
    """Return for each track the seconds from its arrival to its message on a cluster topic."""
    sent: dict[str, float] = {}

    def arrive(track: Track) -> None:
        sent[track.track_id] = time.monotonic()
        send(producer, names.tracks, track)
        producer.flush()

    with closing(open_bus(config.bus.url)) as bus:
        names = create_topics(bus, config)
        with (
            follower(config, folder),
            Subscriber(config.bus.url, ends(config, bus)) as subscriber,
            closing(bus.producer()) as producer,
        ):
            for track in islice(tracks, WARM):
                arrive(track)
                subscriber.wait_for(track.track_id)
            measured = list(tracks)
            began = time.monotonic()
            for number, track in enumerate(measured):
                time.sleep(max(0.0, began + number / RATE - time.monotonic()))
                arrive(track)
            for track in measured:
                subscriber.wait_for(track.track_id)
    return [subscriber.seen[track.track_id] - sent[track.track_id] for track in measured]


@contextmanager
def follower(config: Config, folder: Path) -> Iterator[None]:
    """Have `murmur publish --follow` at work."""
    file = folder / "config.yaml"
    file.write_text(json.dumps(config.model_dump(mode="json", exclude_defaults=True)))
    command = [str(MURMUR), "--config", path_text(file), "publish", "--follow"]
    with Popen(command, stdout=DEVNULL, stderr=sys.stderr) as process:
        try:
            yield
        finally:
            process.terminate()
            process.wait(LONGEST)


class Subscriber:
    """Notes in a thread when each key comes on any of the topics, from their ends on."""

    def __init__(self, url: str, ends: Offsets) -> None:
        self.seen: dict[str, float] = {}
        self._consumer = kafka.KafkaConsumer(
            bootstrap_servers=url.removeprefix("kafka://"),
            enable_auto_commit=False,
            isolation_level="read_committed",
            allow_auto_create_topics=False,
        )
        self._consumer.assign([kafka.TopicPartition(*partition) for partition in ends])
        for partition, end in ends.items():
            self._consumer.seek(kafka.TopicPartition(*partition), end)
        self._end = Event()
        self._thread = Thread(target=self._read)

    def __enter__(self) -> Subscriber:
        """Begin to read."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Read no more."""
        self._end.set()
        self._thread.join()
        self._consumer.close()

    def wait_for(self, track_id: str) -> None:
        """Return once the track has come."""
        deadline = time.monotonic() + LONGEST
        while track_id not in self.seen:
            assert time.monotonic() < deadline, f"{track_id} does not come"
            time.sleep(0.005)

    def _read(self) -> None:
        while not self._end.is_set():
            for messages in self._consumer.poll(timeout_ms=50).values():
                now = time.monotonic()
                for message in messages:
                    self.seen.setdefault(message.key.decode(), now)


PAGE = """Written by `scripts/bench publishing`; Python {python}, kafka-python {kafka}. {tracks:,} tracks of {kinds}
kinds that overlap, each 140 values (the statistics of 20 MFCCs), are clustered with scikit-learn and published from
SQLite to the tests' Kafka broker, once each.

* *again*: the same run published a second time, against the first publication;
* *due*: what a warm re-clustering has to send after new tracks: joins, moves and changes, the new ones among them;
* *live*: from just before a track is sent to `tracks.features.v1` to its message at a `read_committed` consumer of the
  cluster topics, with `murmur publish --follow` as a process of its own; {rate} new tracks a second for {seconds} s.

{rows}
"""

if __name__ == "__main__":
    main()
