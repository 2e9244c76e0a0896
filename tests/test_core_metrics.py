"""The lag that a Prometheus can read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import pytest
from prometheus_client import REGISTRY

from core.bus import Bus, Topic, open_bus
from core.metrics import lag_watch


@pytest.fixture(params=["sqlite", pytest.param("kafka", marks=pytest.mark.servers)])
def bus(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bus]:
    url = str(request.getfixturevalue("kafka_url")) if request.param == "kafka" else f"sqlite:///{tmp_path}/murmur.db"
    with closing(open_bus(url)) as bus:
        yield bus


def test_the_lag_of_each_topic_is_what_the_group_has_not_committed_as_seen_some_seconds_ago_at_most(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = uuid4().hex
    topics, group = [f"{name}.a", f"{name}.b"], f"{name}.group"
    bus.create_topics([Topic(topic, "compact") for topic in topics])
    producer = bus.producer()
    for topic, n_messages in zip(topics, (3, 5), strict=True):
        for n in range(n_messages):
            producer.send(topic, b"%d" % n, b"value")
    producer.flush()

    def seen() -> list[float | None]:
        return [REGISTRY.get_sample_value("murmur_lag_messages", {"group": group, "topic": one}) for one in topics]

    look = lag_watch(bus, group, topics)
    look()
    assert seen() == [3, 5]
    consumer = bus.consumer([topics[0]], group=group)
    while not consumer.at_end():
        consumer.poll()
    consumer.commit()
    look()
    assert seen() == [3, 5]
    monkeypatch.setattr("core.metrics.LAG_SECONDS", 0.0)
    lag_watch(bus, group, topics)()
    assert seen() == [0, 5]
