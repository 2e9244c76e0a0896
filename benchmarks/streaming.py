"""What streaming costs, against the bare drivers; written to docs/benchmarks.md: ``scripts/bench streaming``.

The servers are those of the tests, started here, and SQLite files. The records are tracks of the default profile with
values at random, as no two tracks have the same. Each contestant is as durable as the other, and is medians of
interleaved rounds, so that a busy machine slows both alike.

* producing: what `extract` does with finished tracks, their serialisation and headers included, against kafka-python
  that is handed the same bytes, with the same settings, and looks at every acknowledgement at the end;
* loading: the job `load`, from joining its group to leaving it, but for the daily sweep of old marks, against
  `bulk_write` of the same guarded upserts of ready documents, in batches of the same size;
* the same on SQLite, against a loop of select, `model_validate_json` and `executemany`, that validates a batch before
  it writes it, or each record as it is written;
* memory: the peak of `murmur load`, a process of its own, as the system tells it.
"""

from __future__ import annotations

import gc
import re
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from itertools import count, islice
from pathlib import Path
from platform import python_version
from subprocess import DEVNULL, Popen
from types import SimpleNamespace

import kafka
import numpy as np
import orjson
import pydantic
import pymongo

from benchmarks.report import Measured, conclude, medians, table
from core import open_bus, open_store
from core.bus import Bus, Headers
from core.config import Config, parse_config
from core.kafka import BATCH_BYTES, REQUEST_BYTES
from core.names import Names
from core.records import Features, Source, Track, next_rev
from etl.load import Loader
from etl.messages import create_topics, send
from etl.outbox import Outbox
from features import descriptors, extraction
from tests import servers

N_PRODUCED, N_LOADED, N_EMBEDDED = 10_000, 5_000, 10_000
FEW, MANY = 10_000, 200_000
"""Records, of which `load` must take the same memory."""
ROUNDS = 5
MURMUR = Path(sys.executable).with_name("murmur")
BATCH = Config().load.batch
UPSERT = """INSERT INTO tracks VALUES (?, ?, ?) ON CONFLICT (_id) DO UPDATE
SET rev = excluded.rev, document = excluded.document WHERE excluded.rev > rev"""
SELECT = """SELECT offset, value FROM messages JOIN topics USING (topic_id)
WHERE name = ? AND offset >= ? ORDER BY offset LIMIT ?"""

TRACK = Track(
    rev=0,
    track_id="fma:0",
    title="Night Train to the Harbour",
    artist="The Quiet Lights",
    album="Between Stations",
    genre="Electronic",
    year=2014,
    duration=241.3,
    extra={"licence": "CC BY 4.0", "listens": "1843"},
    source=Source(
        path="/srv/music/fma/000/000002.mp3",
        size=9_650_123,
        mtime_ns=1_400_000_000_000_000_000,
        digest="0123456789abcdef0123456789abcdef",
        row_digest="fedcba9876543210fedcba9876543210",
        codec="mp3",
        sample_rate=44_100,
        channels=2,
        decoder="libsndfile 1.2.2",
        librosa="0.11.0",
    ),
    feature_set="0123456789abcdef",
    features={},
)

Sent = tuple[str, bytes, bytes, Headers]
Validated = tuple[Track, str]
"""What a message says, and its value."""


def main() -> None:
    """Measure, print and write."""
    tracks = list(synthesise(max(N_PRODUCED, N_LOADED, N_EMBEDDED)))
    gc.collect()
    gc.freeze()  # else the collector walks through all of these in either contestant
    with (
        tempfile.TemporaryDirectory(prefix="murmuration-") as name,
        servers.kafka(Path(name)) as bus_url,
        servers.mongodb(Path(name)) as store_url,
    ):
        rows = [
            producing(bus_url, tracks[:N_PRODUCED]),
            loading(bus_url, store_url, tracks[:N_LOADED]),
            *embedded(Path(name), tracks[:N_EMBEDDED]),
            memory(name, "SQLite", None, tracks),
            memory(name, "Kafka", bus_url, tracks),
        ]
    text = PAGE.format(
        python=python_version(),
        kafka=kafka.__version__,
        pymongo=pymongo.version,
        pydantic=pydantic.VERSION,
        sqlite=sqlite3.sqlite_version,
        size=len(tracks[0].to_json()),
        rounds=ROUNDS,
        produced=N_PRODUCED,
        loaded=N_LOADED,
        rows=table(rows),
    )
    conclude("Streaming", text, rows)


def producing(url: str, tracks: list[Track]) -> Measured:
    """Compare with the driver's own producer; each of the two is open all the time."""
    with closing(open_bus(url)) as bus:
        names = create_topics(bus, parse_config({"topics": {"prefix": "produced."}}))
        messages = as_sent(names.tracks, tracks)
        producer = bus.producer()
        outbox = Outbox(producer, names, {}, tracks[0].feature_set)
        bare = kafka.KafkaProducer(
            bootstrap_servers=url.removeprefix("kafka://"),
            acks="all",
            enable_idempotence=True,
            compression_type="zstd",
            batch_size=BATCH_BYTES,
            max_request_size=REQUEST_BYTES,
        )

        def ours() -> None:
            for track in tracks:
                outbox.track(track)
            producer.flush()

        def theirs() -> None:
            futures = [bare.send(topic, value, key, list(headers)) for topic, key, value, headers in messages]
            bare.flush()
            assert all(future.succeeded() for future in futures)

        with closing(outbox), closing(bare):
            return compared("producing, to Kafka", len(tracks), *medians(ROUNDS, ours, theirs), least=0.7)


def loading(bus_url: str, store_url: str, tracks: list[Track]) -> Measured:
    """Compare with writing ready documents."""
    with closing(open_bus(bus_url)) as bus, closing(pymongo.MongoClient(store_url, w="majority", journal=True)) as bare:
        collections = (bare[f"bare{number}"].tracks for number in count())
        documents = [{"_id": track.key, **track.model_dump()} for track in tracks]

        def theirs() -> None:
            collection = next(collections)
            for start in range(0, len(documents), BATCH):
                requests = [
                    pymongo.ReplaceOne({"_id": one["_id"], "rev": {"$lt": one["rev"]}}, one, upsert=True)
                    for one in documents[start : start + BATCH]
                ]
                collection.bulk_write(requests, ordered=False)

        ours = loads(bus, tracks, (f"{store_url}/ours{number}" for number in count()))
        return compared("loading, Kafka to MongoDB", len(tracks), *medians(ROUNDS, ours, theirs), least=0.8)


def embedded(folder: Path, tracks: list[Track]) -> Iterator[Measured]:
    """Compare with loops that read, validate and write what they have read."""
    topics = {number: Names(prefix(number)).tracks for number in range(ROUNDS + 1)}

    def theirs(name: str, validated: Callable[[Iterable[Validated]], Iterable[Validated]]) -> Callable[[], None]:
        rounds = iter(topics.items())

        def run() -> None:
            number, topic = next(rounds)
            copy(folder / "bus.db", folder / f"{name}{number}.db", topic, validated)

        return run

    with closing(open_bus(f"sqlite:///{folder}/bus.db")) as bus:
        ours = loads(bus, tracks, (f"sqlite:///{folder}/ours{number}.db" for number in topics))
        what = "loading, SQLite to SQLite, against the loop"
        mine, batches, singly = medians(ROUNDS, ours, theirs("batches", list), theirs("singly", iter))
        yield compared(f"{what} over batches", len(tracks), mine, batches, least=0.8)
        yield compared(f"{what} that keeps no record", len(tracks), mine, singly, least=0.6)


def copy(bus: Path, store: Path, topic: str, validated: Callable[[Iterable[Validated]], Iterable[Validated]]) -> None:
    """Write the messages of a topic into a table, once they are found to be tracks."""
    with closing(sqlite3.connect(bus)) as source, closing(sqlite3.connect(store)) as target:
        target.execute("PRAGMA journal_mode=WAL")
        target.execute("PRAGMA synchronous=FULL")
        target.execute("CREATE TABLE tracks (_id TEXT PRIMARY KEY, rev INTEGER, document TEXT)")
        position = 0
        while rows := source.execute(SELECT, (topic, position, BATCH)).fetchall():
            tracks = validated((Track.model_validate_json(value), value) for _, value in rows)
            with target:
                target.executemany(UPSERT, ((track.key, track.rev, value) for track, value in tracks))
            position = rows[-1][0] + 1


def memory(place: str, what: str, bus_url: str | None, tracks: list[Track]) -> Measured:
    """Compare the memory that `murmur load` takes for many and for few records, into SQLite."""
    peaks = []
    for n in (FEW, MANY):
        with tempfile.TemporaryDirectory(dir=place) as folder:
            file = f"sqlite:///{folder}/murmur.db"
            config = Path(folder) / "config.yaml"
            config.write_text(
                f"topics: {{prefix: memory{n}.}}\nbus: {{url: '{bus_url or file}'}}\nstore: {{url: '{file}'}}\n"
            )
            with closing(open_bus(bus_url or file)) as bus:
                fill(bus, f"memory{n}.", (renamed(tracks[number % len(tracks)], number) for number in range(n)))
            peaks.append(peak([str(MURMUR), "--config", str(config), "load"]))
            with closing(open_store(file)) as store:
                assert store.count(Track) == n
    few, many = peaks
    title = f"memory of `load`, {what} to SQLite, {MANY:,} records against {FEW:,}"
    return Measured(title, f"{many / 1024:.0f} : {few / 1024:.0f} MiB", many / few, most=1.1)


def compared(what: str, n_records: int, ours: float, theirs: float, *, least: float) -> Measured:
    """Return the ratio of two rates."""
    times = f"{n_records / ours:,.0f} : {n_records / theirs:,.0f} per s"
    return Measured(what, times, theirs / ours, least=least)


def loads(bus: Bus, tracks: list[Track], store_urls: Iterator[str]) -> Callable[[], None]:
    """Return what loads the tracks from topics of its own each time, of as many as there are rounds."""
    configs = iter([fill(bus, prefix(number), tracks) for number in range(ROUNDS + 1)])

    def run() -> None:
        config, written = next(configs), 0
        with (
            closing(open_store(next(store_urls))) as store,
            closing(Loader(config, Names(config.topics.prefix), store=store, bus=bus)) as loader,
        ):
            while not loader.has_caught_up():
                written += loader.load().written
        assert written == len(tracks)

    return run


def prefix(number: int) -> str:
    """Return what the topics of a round begin with."""
    return f"round{number}."


def fill(bus: Bus, prefix: str, tracks: Iterable[Track]) -> Config:
    """Send tracks to topics of that prefix; return the config that names them."""
    config = parse_config({"topics": {"prefix": prefix}})
    names = create_topics(bus, config)
    with closing(bus.producer()) as producer:
        for track in tracks:
            send(producer, names.tracks, track)
        producer.flush()
    return config


def as_sent(topic: str, tracks: Iterable[Track]) -> list[Sent]:
    """Return the messages that our side sends, as bytes."""
    messages: list[Sent] = []
    for track in tracks:
        send(SimpleNamespace(send=lambda *message: messages.append(message)), topic, track)
    return messages


def synthesise(n_tracks: int) -> Iterator[Track]:
    """Yield tracks of the default profile; each value varies by a fifth, as float32 in shortest decimal form."""
    random = np.random.default_rng(0)
    noise = random.normal(0, 0.1, 22_050 * 8).astype(np.float32)
    features = extraction.describe(noise, 22_050, descriptors.blocks(["default"]))
    shape = [(block, name, len(values)) for block, found in features.items() for name, values in found.items()]
    means = np.concatenate([values for found in features.values() for values in found.values()])
    for number in range(n_tracks):
        varied = iter(shortest(means * random.normal(1, 0.2, means.shape)))
        blocks: Features = {block: {} for block in features}
        for block, name, length in shape:
            blocks[block][name] = list(islice(varied, length))
        yield TRACK.model_copy(update={"track_id": f"fma:{number}", "rev": next_rev(), "features": blocks})


def shortest(values: np.ndarray) -> list[float]:
    """Return float32 in shortest decimal form, as `features` does."""
    return orjson.loads(orjson.dumps(values.astype(np.float32), option=orjson.OPT_SERIALIZE_NUMPY))


def renamed(track: Track, number: int) -> Track:
    """Return a track of another name."""
    return track.model_copy(update={"track_id": f"fma:{number}"})


def peak(command: list[str]) -> int:
    """Run a command; return the most memory that it took, KiB.

    Of the file of the system, which begins anew with the program: what `wait4` tells has seen its parent's memory.
    """
    most = 0
    with Popen(command, stdout=DEVNULL, stderr=DEVNULL) as process:
        while process.poll() is None:
            with suppress(OSError):
                found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
                most = int(found[1]) if found else most
            time.sleep(0.02)
    assert process.returncode == 0
    return most


PAGE = """Written by `scripts/bench streaming`, as medians of interleaved rounds; Python {python}, kafka-python {kafka},
pymongo {pymongo}, pydantic {pydantic}, SQLite {sqlite}. Rates are ours : theirs, of tracks of the default profile: 867
values at random, {size:,} bytes of JSON. There are {rounds} rounds of {produced:,} records, for MongoDB of {loaded:,}.
The servers are those of the tests: a real Kafka broker, and one that speaks MongoDB's protocol but is slower.

* *producing*: from finished `Track`s to the last acknowledgement, as `extract` does it; serialisation and headers
  count. Theirs is kafka-python, handed the same bytes, with the same settings (idempotent, zstd, crc32c, batches);
* *loading*: the job `load`, from joining its group to leaving it, but for the daily sweep of old marks: poll, validate,
  coalesce, guarded upserts, commit. Theirs is `bulk_write` of the same guarded upserts of ready documents, in batches
  of the same size, as durable;
* *loading, SQLite*: the same job. Theirs is a loop of select, `model_validate_json` and `executemany` over batches of
  the same size at `synchronous=FULL`, that writes the JSON as it came, and commits no position. It validates a batch
  before it writes it, or keeps no record and validates each as it is written;
* *memory*: the most that the process `murmur load` had resident.

{rows}
"""

if __name__ == "__main__":
    main()
