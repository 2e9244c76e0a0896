"""`murmur status`: what lags behind, since when, and how much there is, against what was put there."""

from __future__ import annotations

import json
import re
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import kafka
import pytest
from test_cli_main import Murmur, murmur
from test_etl_load import track
from topics_library import add_run, opened, settings

from core import open_bus
from core.config import Config
from core.names import Names
from etl import load
from etl.messages import create_topics, send
from topics.news import batches

__all__ = ["murmur"]  # a fixture

HOUR = 3600.0


@pytest.fixture(params=["sqlite", pytest.param("kafka", marks=pytest.mark.servers)])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> Config:
    config = settings(tmp_path, str(request.getfixturevalue("kafka_url")) if request.param == "kafka" else "")
    (tmp_path / "config.yaml").write_text(json.dumps(config.model_dump(exclude_defaults=True)))
    return config


def put(config: Config, *records: tuple[str, float]) -> None:
    """Send tracks as if so many hours ago."""
    url = config.bus.url
    names = Names(config.topics.prefix)
    if url.startswith("sqlite"):
        with closing(open_bus(url)) as bus, closing(bus.producer()) as producer:
            for key, _ in records:
                send(producer, names.tracks, track(key))
            producer.flush()
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as database, database:
            for key, hours in records:
                sent = int(1000 * (time.time() - hours * HOUR))
                database.execute("UPDATE messages SET timestamp = ? WHERE key = ?", (sent, key.encode()))
        return
    with kafka.KafkaProducer(bootstrap_servers=url.removeprefix("kafka://")) as driver:
        for key, hours in records:
            sent = int(1000 * (time.time() - hours * HOUR))
            driver.send(names.tracks, track(key).to_json(), key.encode(), timestamp_ms=sent)


def status(murmur: Murmur, config: Config) -> tuple[dict[str, Any], dict[tuple[str, str], tuple[int, float | None]]]:
    """Return what the command says, and of it the lag: group, topic → messages, seconds, without the prefix."""
    done = murmur("status", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    lags = {
        (one["group"], one["topic"]): (one["messages"], one["oldest_seconds"])
        for one in found["lag"]
        if one["topic"].startswith(config.topics.prefix)
    }
    return found, {
        (group.removeprefix(config.topics.prefix), topic.removeprefix(config.topics.prefix)): lag
        for (group, topic), lag in lags.items()
    }


def load_all(config: Config) -> None:
    with opened(config) as world:
        load.run(config, store=world.store, bus=world.bus)


def test_what_the_loader_has_not_committed_is_said_with_its_age_topic_by_topic(murmur: Murmur, config: Config) -> None:
    with opened(config) as world:
        create_topics(world.bus, config)
    put(config, ("a", 5), ("b", 4))
    load_all(config)
    put(config, ("c", 2), ("d", 1), ("e", 0))
    found, lags = status(murmur, config)
    assert found["not_loaded_yet"] == 3
    n_messages, seconds = lags.pop(("murmur.load", "tracks.features.v1"))
    assert n_messages == 3
    assert seconds is not None
    assert 2 * HOUR <= seconds < 4 * HOUR
    assert lags == {("murmur.load", "tracks.failed.v1"): (0, None)}
    assert re.search(r"murmur\.load +\S*tracks\.features\.v1 +3 +2:\d\d:\d\d", murmur("status").out)
    load_all(config)
    found, lags = status(murmur, config)
    assert found["not_loaded_yet"] == 0
    assert lags[("murmur.load", "tracks.features.v1")] == (0, None)


def test_before_anything_was_extracted_nothing_lags(murmur: Murmur, config: Config) -> None:
    load_all(config)
    _, lags = status(murmur, config)
    assert lags == {("murmur.load", f"tracks.{topic}.v1"): (0, None) for topic in ("features", "failed")}


def test_the_lag_of_a_group_that_subscribes_is_said_too(murmur: Murmur, config: Config) -> None:
    with opened(config) as world:
        add_run(world.store, {"a": "c01", "b": "c02"})
        world.publish()
        assert [new.track_id for (new,) in batches(world.bus, world.names, "c01", "player")] == ["a"]
        key = ("player", "clusters.c01.tracks.v1")
        _, lags = status(murmur, config)
        assert lags[key] == (0, None)
        add_run(world.store, {"a": "c02", "b": "c01"})
        world.publish()
    _, lags = status(murmur, config)
    assert lags[key][0] >= 2
    assert [topic for group, topic in lags if group == "player"] == [key[1]]


def test_dead_letters_are_counted_up_to_a_limit_and_beyond_it_that_is_said(
    murmur: Murmur, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(config) as world:
        names = create_topics(world.bus, config)
        with closing(world.bus.producer()) as producer:
            for n in range(3):
                producer.send(names.tracks, b"%d" % n, b"poison")
            producer.flush()
    load_all(config)
    found, _ = status(murmur, config)
    assert found["dead_letters"] == 3
    assert re.search(r"^dead letters +3$", murmur("status").out, re.MULTILINE)
    monkeypatch.setattr("cli.status.COUNTED", 2)
    found, _ = status(murmur, config)
    assert (found["dead_letters"], found["dead_letters_counted_up_to"]) == (2, 2)
    assert re.search(r"^dead letters +2 or more$", murmur("status").out, re.MULTILINE)


def test_the_size_of_the_file_is_said(murmur: Murmur, config: Config, tmp_path: Path) -> None:
    with opened(config) as world:
        create_topics(world.bus, config)
        add_run(world.store, {"a": "c01"})
    found, _ = status(murmur, config)
    assert found["store_bytes"] == (tmp_path / "murmur.db").stat().st_size
    assert found["bus_bytes"] == (found["store_bytes"] if config.bus.url.startswith("sqlite") else None)
