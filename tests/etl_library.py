"""A small folder of synthesised audio, and the embedded store and bus, for the tests of the jobs."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from core import open_bus, open_store
from core.bus import Bus, Message, read_to_end
from core.config import Config
from core.jobs import Report, Watch, ignore
from core.names import Names
from core.records import Failure, Record, Track
from core.store import Store
from etl import extract, load
from etl.dead_letters import Place
from etl.engine import EngineName
from etl.extract import ExtractReport
from etl.failures import RetryReport, retry
from etl.messages import Decoded, decode

CONFIG = Config(workers=1)
NAMES = Names()


def tone(path: Path, frequency: float, *, seconds: float = 0.5, **tags: str) -> None:
    """Write a sine with a little noise at 22,050 Hz; the same arguments give the same audio packets."""
    time = np.arange(int(22_050 * seconds)) / 22_050
    y = 0.4 * np.sin(2 * np.pi * frequency * time) + 0.01 * np.random.default_rng(0).normal(size=len(time))
    path.parent.mkdir(parents=True, exist_ok=True)
    with soundfile.SoundFile(path, "w", 22_050, 1, format=path.suffix[1:].upper()) as file:
        for name, text in tags.items():
            setattr(file, name, text)
        file.write(y)


def assert_nothing_lost(bus: Bus, store: Store, names: Names = NAMES) -> list[Place]:
    """For each record of the log the store has its key at that `rev` or higher, or one dead letter has its place.

    What the store has at the highest `rev` of the log is what the first record of that `rev` says. Return the places of
    the dead letters, in order.
    """
    letters = Counter(_place_of(letter) for letter in read_to_end(bus, [names.dead_letters]))
    assert [place for place, count in letters.items() if count > 1] == []
    for topic, kind in ((names.tracks, Track), (names.failed, Failure)):
        messages = list(read_to_end(bus, [topic]))
        latest = _fold(kind, [one for one in messages if Place(one.topic, one.partition, one.offset) not in letters])
        stored = {record.key: record for record in map(kind.from_document, store.scan(kind))}
        older = {
            key: (one.rev, key in stored and stored[key].rev)
            for key, one in latest.items()
            if (key not in stored and one.record) or (key in stored and stored[key].rev < one.rev)
        }
        assert older == {}
        for key, one in latest.items():
            if key in stored and stored[key].rev == one.rev:
                assert stored[key] == one.record
        deleted = {key: one.rev for key, one in latest.items() if key not in stored}
        assert store.delete(kind, deleted).written == 0, "a tombstone has left no mark of its rev"
    return sorted(letters)


def _place_of(letter: Message) -> Place:
    topic, partition, offset = (letter.header(f"dlq_{name}") or "" for name in ("topic", "partition", "offset"))
    return Place(topic, int(partition), int(offset))


def _fold(kind: type[Record], messages: list[Message]) -> dict[str, Decoded[Record]]:
    """Return what the highest `rev` of each key says; a message that cannot be read should have a dead letter."""
    latest: dict[str, Decoded[Record]] = {}
    for one in sorted((decode(kind, message) for message in messages), key=lambda one: -one.rev):
        latest.setdefault(one.key, one)
    return latest


@dataclass(frozen=True)
class Library:
    """A folder with `audio`, `tracks.csv`, and `murmur.db` for store and bus unless they are elsewhere."""

    folder: Path
    config: Config = CONFIG
    store_url: str = ""
    bus_url: str = ""

    @property
    def audio(self) -> Path:
        return self.folder / "audio"

    @property
    def csv(self) -> Path:
        return self.folder / "tracks.csv"

    @property
    def names(self) -> Names:
        return Names(self.config.topics.prefix)

    @contextmanager
    def opened(self) -> Iterator[tuple[Store, Bus]]:
        url = f"sqlite:///{self.folder}/murmur.db"
        with closing(open_store(self.store_url or url)) as store, closing(open_bus(self.bus_url or url)) as bus:
            yield store, bus

    def extract(
        self,
        config: Config | None = None,
        progress: Watch = ignore,
        *,
        catalogue: bool = True,
        prune: bool = False,
        engine: EngineName = "local",
    ) -> ExtractReport:
        metadata = self.csv if catalogue and self.csv.exists() else None
        with self.opened() as (store, bus):
            return extract.run(
                config or self.config,
                self.audio,
                metadata=metadata,
                prune=prune,
                engine=engine,
                store=store,
                bus=bus,
                progress=progress,
            )

    def retry(self, *texts: str) -> RetryReport:
        with self.opened() as (store, bus):
            return retry(self.config, texts, store=store, bus=bus)

    def load(self) -> Report:
        with self.opened() as (store, bus):
            return load.run(self.config, store=store, bus=bus)

    def messages(self, topic: str = "") -> list[Message]:
        with self.opened() as (_, bus):
            return list(read_to_end(bus, [topic or self.names.tracks]))

    def sent(self) -> dict[str, Track | None]:
        """Return the latest `Track` on the topic by the name of its file; tombstones by their key."""
        tracks = {}
        for message in self.messages():
            track = Track.from_json(message.value) if message.value else None
            tracks[Path(track.source.path).name if track else (message.key or b"").decode()] = track
        return tracks

    def failures_sent(self) -> dict[str, Failure | None]:
        """Return the latest `Failure` on the topic by the name of its file; tombstones by their key."""
        found: dict[str, Failure | None] = {}
        for message in self.messages(self.names.failed):
            failure = Failure.from_json(message.value) if message.value else None
            found[Path(failure.path).name if failure else (message.key or b"").decode()] = failure
        return found

    def stored(self) -> dict[str, Track]:
        """Return the stored tracks by the name of their file."""
        with self.opened() as (store, _):
            tracks = map(Track.from_document, store.scan(Track))
            return {Path(track.source.path).name: track for track in tracks}

    def failed(self) -> dict[str, Failure]:
        """Return the stored failures by the name of their file."""
        with self.opened() as (store, _):
            failures = map(Failure.from_document, store.scan(Failure))
            return {Path(failure.path).name: failure for failure in failures}

    def save(self, elsewhere: Path) -> None:
        shutil.copytree(self.folder, elsewhere, symlinks=True)

    def restore(self, saved: Path) -> None:
        """Bring back what was saved: same paths, same times."""
        shutil.rmtree(self.folder)
        shutil.copytree(saved, self.folder, symlinks=True)
