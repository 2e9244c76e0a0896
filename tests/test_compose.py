"""``compose.yaml`` as far as it can be judged without Docker."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.config import parse_config

TEXT = (Path(__file__).parents[1] / "compose.yaml").read_text("utf-8")
SERVICES: dict[str, Any] = yaml.safe_load(TEXT)["services"]
KAFKA: dict[str, Any] = SERVICES["kafka"]["environment"]


@pytest.mark.parametrize("name", SERVICES)
def test_every_image_has_a_version(name: str) -> None:
    assert re.fullmatch(r"[a-z/]+:\d+(\.\d+)+", SERVICES[name]["image"])


@pytest.mark.parametrize("name", SERVICES)
def test_every_port_is_open_to_this_machine_only(name: str) -> None:
    for port in SERVICES[name]["ports"]:
        assert re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port)


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_keeps_its_data_in_a_named_volume_and_says_when_it_is_ready(name: str) -> None:
    (volume,) = SERVICES[name]["volumes"]
    assert volume.partition(":")[0] in yaml.safe_load(TEXT)["volumes"]
    assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"


def test_the_config_in_its_comment_is_valid_and_names_the_open_ports() -> None:
    lines = "\n".join(re.findall(r"^#     (\w+: \w+://.+)$", TEXT, re.MULTILINE))
    config = parse_config(yaml.safe_load(lines))
    assert (config.bus.url, config.store.url) == ("kafka://localhost:9092", "mongodb://localhost:27017/music")
    assert SERVICES["kafka"]["ports"] == ["127.0.0.1:9092:9092"]
    assert SERVICES["mongodb"]["ports"] == ["127.0.0.1:27017:27017"]


def test_the_broker_is_its_own_controller() -> None:
    listeners = dict(listener.split("://") for listener in KAFKA["KAFKA_LISTENERS"].split(","))
    assert KAFKA["KAFKA_PROCESS_ROLES"] == "broker,controller"
    assert KAFKA["KAFKA_CONTROLLER_QUORUM_VOTERS"] == f"{KAFKA['KAFKA_NODE_ID']}@localhost{listeners['CONTROLLER']}"
    assert KAFKA["KAFKA_CONTROLLER_LISTENER_NAMES"] == "CONTROLLER"


def test_every_listener_has_a_protocol_and_clients_are_sent_to_the_published_port() -> None:
    protocols = dict(pair.split(":") for pair in KAFKA["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(","))
    listeners = dict(listener.split("://") for listener in KAFKA["KAFKA_LISTENERS"].split(","))
    assert protocols.keys() == listeners.keys()
    assert KAFKA["KAFKA_ADVERTISED_LISTENERS"] == "PLAINTEXT://localhost:9092"
    assert listeners["PLAINTEXT"] == ":9092"


def test_the_broker_keeps_its_log_in_the_volume() -> None:
    assert SERVICES["kafka"]["volumes"] == [f"kafka-data:{KAFKA['KAFKA_LOG_DIRS']}"]


def test_one_node_asks_for_one_replica() -> None:
    replicas = {name: value for name, value in KAFKA.items() if name.endswith(("REPLICATION_FACTOR", "MIN_ISR"))}
    assert len(replicas) == 5
    assert set(replicas.values()) == {1}


def test_a_mistyped_topic_is_not_created() -> None:
    assert KAFKA["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"
