from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from core import open_bus, open_store
from core.bus import Bus
from core.config import Config
from core.errors import ConfigError
from core.names import Names, path_digest
from core.records import Failure
from core.store import Store
from etl import load
from etl.failures import failures, matching, retry
from etl.messages import create_topics, send, send_tombstone

CONFIG = Config()
NAMES = Names()


def failure(path: str, rev: int = 1) -> Failure:
    return Failure(
        rev=rev,
        path_digest=path_digest(path),
        path=path,
        stage="decode",
        error="AudioError",
        message="holds no audio",
        advice="leave it out",
        failed_at="2026-01-01T00:00:00Z",
    )


@pytest.fixture
def backends(tmp_path: Path) -> Iterator[tuple[Store, Bus]]:
    """Return a store with the failures of b, c and d, of which the bus mends c, and knows a beside."""
    url = f"sqlite:///{tmp_path}/murmur.db"
    with closing(open_store(url)) as store, closing(open_bus(url)) as bus:
        create_topics(bus, CONFIG)
        store.upsert([failure(f"/music/{name}.mp3") for name in "dbc"])
        producer = bus.producer()
        send(producer, NAMES.failed, failure("/music/a.mp3"))
        send_tombstone(producer, NAMES.failed, Failure, path_digest("/music/c.mp3"), 2)
        producer.flush()
        yield store, bus


def paths(found: list[Failure]) -> list[str]:
    return [Path(failure.path).stem for failure in found]


def test_failures_are_listed_by_path_whether_they_are_loaded_or_not(backends: tuple[Store, Bus]) -> None:
    store, bus = backends
    assert paths(failures(CONFIG, store=store, bus=bus)) == ["a", "b", "d"]
    load.run(CONFIG, store=store, bus=bus)
    assert paths(failures(CONFIG, store=store, bus=bus)) == ["a", "b", "d"]


def test_a_bus_without_topics_has_no_failures_and_gets_none(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/murmur.db"
    with closing(open_store(url)) as store, closing(open_bus(url)) as bus:
        assert failures(CONFIG, store=store, bus=bus) == []
        assert bus.topics() == []


def test_failures_match_by_any_part_of_their_path() -> None:
    found = [failure("/music/one.mp3"), failure("/music/two.mp3"), failure("/sounds/three.mp3")]
    assert paths(matching(found, ["one", "sounds"])) == ["one", "three"]
    with pytest.raises(ConfigError, match=r"^four: no failure"):
        matching(found, ["one", "four"])


def test_a_path_that_exists_is_meant_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = [failure("/elsewhere/one.mp3"), failure(f"{tmp_path}/one.mp3"), failure(f"{tmp_path}/two.mp3")]
    assert matching(found, ["one.mp3"]) == found[:2]
    Path("one.mp3").touch()
    assert matching(found, ["one.mp3"]) == matching(found, ["../" + tmp_path.name + "/./one.mp3"]) == found[1:2]


def test_a_retry_marks_failures_with_a_higher_rev_loaded_or_not_and_once(backends: tuple[Store, Bus]) -> None:
    store, bus = backends
    report = retry(CONFIG, ["a.mp3", "b.mp3"], store=store, bus=bus)
    assert (report.read, report.sent, report.unchanged) == (2, 2, 0)
    assert report.paths == ("/music/a.mp3", "/music/b.mp3")
    for _ in range(2):
        found = {failure.path: failure for failure in failures(CONFIG, store=store, bus=bus)}
        assert [found[f"/music/{name}.mp3"].retry for name in "abd"] == [True, True, False]
        assert found["/music/b.mp3"] == failure("/music/b.mp3", rev=found["/music/b.mp3"].rev).model_copy(
            update={"retry": True}
        )
        load.run(CONFIG, store=store, bus=bus)
    everything = retry(CONFIG, store=store, bus=bus)
    assert (everything.read, everything.sent, everything.unchanged) == (3, 1, 2)


def test_a_retry_of_what_did_not_fail_marks_nothing(backends: tuple[Store, Bus]) -> None:
    store, bus = backends
    with pytest.raises(ConfigError, match=r"^/music/c: no failure"):
        retry(CONFIG, ["/music/a", "/music/c"], store=store, bus=bus)
    assert not any(failure.retry for failure in failures(CONFIG, store=store, bus=bus))
