"""The jobs on the real servers: what their tests on SQLite promise, once through."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from etl_library import Library, tone

from core.bus import read_to_end
from core.config import Config
from core.names import path_digest
from etl.dead_letters import dead_letters, replay

pytestmark = pytest.mark.servers


@pytest.fixture
def library(tmp_path: Path, kafka_url: str, mongodb_url: str) -> Library:
    name = f"etl{uuid4().hex[:8]}"
    config = Config.model_validate({"workers": 1, "topics": {"prefix": f"{name}.", "partitions": 3}})
    return Library(tmp_path, config, urlsplit(mongodb_url)._replace(path=f"/{name}").geturl(), kafka_url)


def test_a_library_lives_through_its_changes_on_kafka_and_mongodb(library: Library) -> None:
    tone(library.audio / "low.wav", 110)
    tone(library.audio / "high.wav", 3000)
    (library.audio / "bad.wav").touch()
    library.csv.write_text("filename,title\nlow.wav,Low\n")
    first = library.extract()
    assert (first.computed, first.failed, first.sent) == (2, 1, 3)
    again = library.extract()
    assert (again.computed, again.known_failures, again.sent) == (0, 1, 0)

    library.csv.write_text("filename,title\nlow.wav,Lower\n")
    (library.audio / "high.wav").rename(library.audio / "renamed.wav")
    changed = library.extract()
    assert (changed.computed, changed.sent) == (0, 2)
    loaded = library.load()
    assert (loaded.read, loaded.written, loaded.failed) == (5, 3, 0)
    assert {name: track.title for name, track in library.stored().items()} == {
        "low.wav": "Lower",
        "renamed.wav": "renamed",
    }
    assert list(library.failed()) == ["bad.wav"]
    assert library.load().read == 0

    assert library.retry("bad").sent == 1
    retried = library.extract()
    assert (retried.tried, retried.known_failures, retried.sent) == (0, 1, 1)
    tone(library.audio / "bad.wav", 440)
    tone(library.audio / "low.wav", 220)
    replaced = library.extract()
    assert (replaced.computed, replaced.deleted, replaced.sent) == (2, 1, 4)
    loaded = library.load()
    assert (loaded.read, loaded.written) == (6, 4)
    assert sorted(library.stored()) == ["bad.wav", "low.wav", "renamed.wav"]
    assert library.failed() == {}
    assert path_digest(library.audio / "bad.wav") in library.failures_sent()
    (library.audio / "renamed.wav").unlink()
    pruned = library.extract(prune=True)
    assert (pruned.gone, pruned.pruned, pruned.sent) == (1, 1, 1)
    assert library.load().written == 1
    assert sorted(library.stored()) == ["bad.wav", "low.wav"]
    assert library.extract(prune=True).sent == 0


def test_bad_messages_become_dead_letters_as_they_are_on_kafka(library: Library) -> None:
    tone(library.audio / "low.wav", 110)
    library.extract()
    bad = [(b"x", b"\x00\xff\xfe"), (b"y", b'{"rev": NaN}'), (b"z", None)]
    with library.opened() as (_, bus):
        producer = bus.producer()
        for key, value in bad:
            producer.send(library.names.tracks, key, value, (("from", b"elsewhere"),))
        producer.flush()
        producer.close()
    report = library.load()
    assert (report.read, report.written, report.failed) == (4, 1, 3)
    with library.opened() as (_, bus):
        letters = list(read_to_end(bus, [library.names.dead_letters]))
    assert sorted((letter.key, letter.value) for letter in letters if letter.value) == bad[:2]
    assert all(letter.header("from") == "elsewhere" and letter.header("dlq_reason") for letter in letters)
    assert len(letters) == 3
    assert library.load().read == 0


def test_a_dead_letter_comes_into_the_store_when_its_cause_is_mended(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    tone(library.audio / "low.wav", 110)
    tone(library.audio / "high.wav", 3000, title="x" * 50_000)
    library.extract()
    monkeypatch.setattr("core.mongodb.LIMIT", 40_000)
    report = library.load()
    assert (report.written, report.failed) == (1, 1)
    with library.opened() as (_, bus):
        (letter,) = dead_letters(library.config, bus=bus)
        assert "the limit is 40000" in letter.reason
        assert replay(library.config, bus=bus).sent == 1
        assert list(dead_letters(library.config, bus=bus)) == []
    monkeypatch.undo()
    report = library.load()
    assert (report.read, report.written, report.failed) == (1, 1, 0)
    assert sorted(library.stored()) == ["high.wav", "low.wav"]
