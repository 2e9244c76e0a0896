"""A library of tracks and runs for the tests of the topics, and what the topics say of it."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

import kafka

from clustering.identity import number
from core import open_bus, open_store
from core.bus import Bus, Consumer, Message, Producer, TopicPartition, read_to_end
from core.config import Config, parse_config
from core.jobs import Report
from core.names import Names
from core.records import Assignment, Cluster, File, Group, Neighbour, Run, Source, Track, next_rev
from core.store import Store
from topics import publish

FOLDER = "/music/of/the/operator"
RUN_IDS = count()
LINE = Group(
    name="line",
    weight=1.0,
    clip=1e9,
    columns=["mfcc.mean[0]"],
    mean=[0.0],
    std=[1.0],
    pca_mean=[0.0],
    components=[[1.0]],
    scale=1.0,
)
"""The space of every run here: a line, on which a cluster's centre is the number in its id."""


def track(track_id: str, place: float = 1.0, **changed: object) -> Track:
    """Return a track that is at a place of the line."""
    source = Source(
        path=f"{FOLDER}/{track_id}.flac",
        size=1,
        mtime_ns=1,
        digest=track_id,
        codec="flac",
        sample_rate=44_100,
        channels=2,
        decoder="soundfile 0.13",
        librosa="0.11.0",
    )
    fields = {
        "title": f"Title of {track_id}",
        "artist": "Quartet",
        "genre": "folk",
        "year": 1999,
        "extra": {"mood": "calm"},
    }
    return Track(
        track_id=track_id,
        rev=next_rev(),
        duration=180.5,
        source=source,
        copies=[File(path=f"{FOLDER}/copy of {track_id}.flac", size=1, mtime_ns=1)],
        feature_set="f0",
        features={"mfcc": {"mean": [place]}},
        **(fields | changed),
    )


def add_run(
    store: Store, clusters: Mapping[str, str], scores: Mapping[str, float] | None = None, p99: float | None = None
) -> Run:
    """Make these the tracks, and write a complete run: track_id → cluster id; neighbours are the next two."""
    there = {document["track_id"] for document in store.scan(Track, fields=("track_id",))}
    store.upsert([track(one, number(name)) for one, name in clusters.items() if one not in there])
    store.delete(Track, dict.fromkeys(there - clusters.keys(), next_rev()))
    revs = {document["track_id"]: document["rev"] for document in store.scan(Track, fields=("track_id", "rev"))}
    ids = sorted(set(clusters.values()))
    run = Run(
        rev=next_rev(),
        run_id=f"20260101T000000.{next(RUN_IDS):06}Z",
        created_at="2026-01-01T00:00:00Z",
        engine="sklearn",
        feature_set="f0",
        random_state=0,
        n_init=10,
        n_clusters=len(ids),
        n_tracks=len(clusters),
        input_digest="i",
        settings_digest="s",
        space=[LINE],
        clusters=[
            Cluster(
                cluster_id=name, size=list(clusters.values()).count(name), radius=1.0, p99=p99, centre=[number(name)]
            )
            for name in ids
        ],
        metrics={"inertia": 1.0},
    )
    store.upsert([run])
    placed = [track_id for track_id in clusters if track_id in revs]  # a follower may have deleted one meanwhile
    store.upsert([_assignment(run, track_id, clusters, scores or {}, revs[track_id]) for track_id in placed])
    complete = run.model_copy(update={"complete": True, "rev": next_rev(run.rev)})
    store.upsert([complete])
    return complete


def _assignment(
    run: Run, track_id: str, clusters: Mapping[str, str], scores: Mapping[str, float], track_rev: int
) -> Assignment:
    order = sorted(clusters)
    place = order.index(track_id)
    near = [*order[place + 1 :], *order[:place]][:2]
    return Assignment(
        rev=run.rev,
        run_id=run.run_id,
        track_id=track_id,
        track_rev=track_rev,
        cluster_id=clusters[track_id],
        distance=1.0,
        score=scores.get(track_id, 0.5),
        neighbours=[Neighbour(track_id=other, score=0.9) for other in near],
    )


def cluster_topics(bus: Bus, names: Names) -> list[str]:
    return [topic for topic in bus.topics() if names.cluster_of(topic)]


def messages(bus: Bus, names: Names) -> list[Message]:
    """Return everything on the cluster topics."""
    return list(read_to_end(bus, cluster_topics(bus, names)))


def said(bus: Bus, names: Names, below: Mapping[TopicPartition, int] | None = None) -> dict[str, str]:
    """Return track_id → cluster as the cluster topics have it, read to their ends or to the offsets `below`."""
    members = set()
    for message in messages(bus, names):
        if below is not None and message.offset >= below[TopicPartition(message.topic, message.partition)]:
            continue
        assert message.key is not None
        entry = (message.key.decode(), names.cluster_of(message.topic) or "")
        if message.value is None:
            members.discard(entry)
        else:
            members.add(entry)
    assert len(members) == len({track_id for track_id, _ in members}), "a track is in two clusters"
    return dict(members)


@dataclass
class World:
    """A store, a bus, and the names of one test's topics."""

    config: Config
    store: Store
    bus: Bus

    @property
    def names(self) -> Names:
        return Names(self.config.topics.prefix)

    def publish(self, bus: Bus | None = None, run_id: str | None = None) -> Report:
        return publish.run(self.config, store=self.store, bus=bus or self.bus, run_id=run_id)

    def said(self) -> dict[str, str]:
        return said(self.bus, self.names)


@contextmanager
def opened(config: Config) -> Iterator[World]:
    with closing(open_store(config.store.url)) as store, closing(open_bus(config.bus.url)) as bus:
        yield World(config, store, bus)


def settings(folder: Path, bus: str) -> Config:
    """Return a configuration of its own: the store in `folder`, the bus at the URL `bus` or, if empty, there too."""
    prefix, partitions = (f"t{uuid4().hex[:8]}.", 3) if bus else ("", 1)
    file = f"sqlite:///{folder / 'murmur.db'}"
    return parse_config(
        {"store": file, "bus": bus or file, "topics": {"prefix": prefix, "partitions": partitions, "replication": -1}}
    )


def delete_topic(bus: Bus, topic: str) -> None:
    """Delete a topic, as somebody with the tools of the bus does, and wait until it is gone."""
    url = bus.url
    if not url.startswith("kafka:"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection, connection:
            connection.execute("DELETE FROM topics WHERE name = ?", (topic,))
        return
    with closing(kafka.KafkaAdminClient(bootstrap_servers=url.removeprefix("kafka://").split(","))) as admin:
        admin.delete_topics([topic])
    while topic in bus.topics():
        time.sleep(0.05)


class JobDiedError(Exception):
    """A job ends here, without a word."""


class Mortal:
    """A bus whose producer dies at its n-th step: a message, a flush, or just before or after a commit."""

    def __init__(self, bus: Bus, steps: int, die: Callable[[], None] | None = None) -> None:
        self._bus = bus
        self._left = steps
        self._die = die or _raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    def producer(self, transactional_id: str | None = None, *, commits: Consumer | None = None) -> MortalProducer:
        return MortalProducer(self._bus.producer(transactional_id, commits=commits), self.step)

    def step(self) -> None:
        if self._left == 0:
            self._die()
        self._left -= 1


class MortalProducer:
    def __init__(self, producer: Producer, step: Callable[[], None]) -> None:
        self._producer = producer
        self._step = step

    def send(self, *message: Any) -> None:
        self._step()
        self._producer.send(*message)

    def flush(self) -> None:
        self._step()
        self._producer.flush()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with self._producer.transaction():
            yield
            self._step()
        self._step()

    def close(self) -> None:
        self._producer.close()


def _raise() -> None:
    raise JobDiedError
