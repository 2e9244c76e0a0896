"""A `load` that follows, while the servers go away and come back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from conftest import Run
from test_etl_load import track

from core import open_bus, open_store
from core.bus import lag, read_to_end
from core.config import Config
from core.jobs import Report
from core.names import Names
from core.records import Track
from etl import load
from etl.messages import create_topics, send

pytestmark = pytest.mark.servers
NAMES = Names()


def await_(condition: Callable[[], bool], running: Future[Report]) -> None:
    deadline = time.monotonic() + 60
    while not condition() and not running.done():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    if running.done():
        running.result()


def test_following_outlives_a_restart_of_the_bus_and_of_the_store_and_loads_everything_once(
    own_kafka: Run, own_mongodb: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stop = threading.Event()
    with ExitStack() as kafka, ExitStack() as mongodb, ThreadPoolExecutor() as pool:
        bus_url, store_url = kafka.enter_context(own_kafka(tmp_path)), mongodb.enter_context(own_mongodb(tmp_path))
        config = Config.model_validate({"store": f"{store_url}/music", "bus": bus_url})

        def follow() -> Report:
            with closing(open_store(config.store.url)) as store, closing(open_bus(config.bus.url)) as bus:
                return load.run(config, store=store, bus=bus, until=stop.is_set)

        def put(*numbers: int) -> None:
            with closing(open_bus(bus_url)) as bus, closing(bus.producer()) as producer:
                create_topics(bus, config)
                for n in numbers:
                    send(producer, NAMES.tracks, track(f"t{n}"))
                producer.send(NAMES.tracks, b"bad%d" % numbers[0], b"poison")
                producer.flush()

        def is_stored(n: int) -> bool:
            with closing(open_store(config.store.url)) as store:
                return store.get(Track, f"t{n}") is not None

        put(0, 1)
        running = pool.submit(follow)
        try:
            await_(lambda: is_stored(1), running)
            kafka.close()
            time.sleep(2)
            kafka.enter_context(own_kafka(tmp_path))
            put(2, 3)
            await_(lambda: is_stored(3), running)
            mongodb.close()
            put(4, 5)
            await_(lambda: "MongoDB" in caplog.text and "trying again" in caplog.text, running)
            mongodb.enter_context(own_mongodb(tmp_path))
            await_(lambda: is_stored(5), running)
            with closing(open_bus(bus_url)) as bus:
                await_(lambda: lag(bus, NAMES.load_group, [NAMES.tracks]) == 0, running)
                letters = [message.key for message in read_to_end(bus, [NAMES.dead_letters])]
        finally:
            stop.set()
        report = running.result(60)
    assert sorted(letters) == [b"bad0", b"bad2", b"bad4"]
    assert (report.read, report.failed) == (9, 3)
