"""A `load` that is killed at any step: nothing is lost, and each dead letter is there once."""

from __future__ import annotations

import multiprocessing
import os
import signal
from contextlib import closing
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import kafka
import pytest
from kafka.admin import MemberToRemove
from test_etl_load import track

from core import open_bus, open_store
from core.config import Config
from core.names import Names
from core.records import Track
from etl import load
from etl.dead_letters import dead_letters
from etl.messages import create_topics

N_MESSAGES = 30
BAD = {3, 4, 11, 12, 13, 29}


def run_until(config: Config, target: str) -> None:
    """Load, and die where a function returns for the second time: what the killed process runs."""
    module, owner, name = target.rsplit(".", 2)
    patched = getattr(import_module(module), owner)
    original, count = getattr(patched, name), 0

    @wraps(original)
    def dying(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        result = original(*arguments, **options)
        count += 1
        if count == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(patched, name, dying)
    producer = kafka.KafkaProducer
    kafka.KafkaProducer = lambda **settings: producer(**settings | {"transaction_timeout_ms": 2000})  # sooner aborted
    with closing(open_store(config.store.url)) as store, closing(open_bus(config.bus.url)) as bus:
        load.run(config, store=store, bus=bus)


def send_messages(config: Config) -> None:
    names = Names(config.topics.prefix)
    with closing(open_bus(config.bus.url)) as bus:
        create_topics(bus, config)
        producer = bus.producer()
        for n in range(N_MESSAGES):
            producer.send(names.tracks, b"t%02d" % n, b"poison" if n in BAD else track(f"t{n:02}").to_json())
        producer.flush()
        producer.close()


def kill(config: Config, target: str) -> None:
    process = multiprocessing.get_context("spawn").Process(target=run_until, args=(config, target))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def assert_nothing_is_lost_or_doubled(config: Config) -> None:
    with closing(open_store(config.store.url)) as store, closing(open_bus(config.bus.url)) as bus:
        load.run(config, store=store, bus=bus)
        keys = [document["track_id"] for document in store.scan(Track, fields=["track_id"])]
        assert keys == [f"t{n:02}" for n in range(N_MESSAGES) if n not in BAD]
        letters = sorted(letter.key or b"" for letter in dead_letters(config, bus=bus))
        assert letters == [b"t%02d" % n for n in sorted(BAD)]


@pytest.mark.parametrize(
    "step",
    [
        "core.sqlite_store.SQLiteStore.upsert",
        "core.sqlite_bus.SQLiteProducer.send",
        "core.sqlite_bus.SQLiteConsumer.commit_with",
    ],
)
def test_killed_at_a_step_on_sqlite(tmp_path: Path, step: str) -> None:
    url = f"sqlite:///{tmp_path}/murmur.db"
    config = Config.model_validate({"store": url, "bus": url, "load": {"batch": 10}})
    send_messages(config)
    kill(config, step)
    assert_nothing_is_lost_or_doubled(config)


@pytest.mark.servers
@pytest.mark.parametrize(
    "step",
    [
        "core.mongodb.MongoStore.upsert",
        "core.kafka.Producer.flush",
        "kafka.KafkaProducer.send_offsets_to_transaction",
        "kafka.KafkaProducer.commit_transaction",
    ],
)
def test_killed_at_a_step_on_servers(kafka_url: str, mongodb_url: str, step: str) -> None:
    name = f"kill{uuid4().hex[:8]}"
    store_url = urlsplit(mongodb_url)._replace(path=f"/{name}").geturl()
    config = Config.model_validate(
        {"store": store_url, "bus": kafka_url, "load": {"batch": 10}, "topics": {"prefix": f"{name}."}}
    )
    send_messages(config)
    kill(config, step)
    expel(kafka_url, Names(config.topics.prefix).load_group)
    assert_nothing_is_lost_or_doubled(config)


def expel(kafka_url: str, group: str) -> None:
    """Have the killed member go at once, not after its session."""
    with kafka.KafkaAdminClient(bootstrap_servers=kafka_url.removeprefix("kafka://").split(",")) as admin:
        (member,) = admin.describe_groups([group])[group]["members"]
        admin.remove_group_members(group, [MemberToRemove(member_id=member["member_id"])])
