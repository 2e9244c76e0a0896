"""The real servers, each started once for the whole run and only if a test asks for it."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest
import servers
from topics_library import World, opened, settings

from core.config import Spark
from core.errors import BackendError
from core.spark import java_version, open_spark

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

Run = Callable[[Path], AbstractContextManager[str]]


def pytest_configure() -> None:
    """Choose the seed of the tests that draw at random, unless it is given; have Java start soon, not run fast."""
    os.environ.setdefault("MURMUR_SEED", str(random.randrange(10**6)))
    os.environ.setdefault("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")


def pytest_report_header() -> str:
    """Say the seed, and how to repeat what it gave."""
    return f"seed of what is drawn at random: MURMUR_SEED={os.environ['MURMUR_SEED']}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests were skipped and why, a line for each reason."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count} skipped: {reason}")


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the secured doors' certificate."""
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="session")
def _brokers(certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, servers.Door | None]]:
    if url := os.environ.get("KAFKA_URL"):
        yield url, None
        return
    _require("kafka")
    door = servers.door(certificates)
    with servers.kafka(tmp_path_factory.mktemp("kafka"), door) as url:
        yield url, door


@pytest.fixture(scope="session")
def kafka_url(_brokers: tuple[str, servers.Door | None]) -> str:
    """Return the URL of a Kafka broker: ``KAFKA_URL``, or one that is started here."""
    return _brokers[0]


@pytest.fixture(scope="session")
def kafka_door(_brokers: tuple[str, servers.Door | None]) -> servers.Door:
    """Return the same broker's port for SASL over TLS."""
    if (door := _brokers[1]) is None:
        pytest.skip("KAFKA_URL names a broker whose users are unknown")
    return door


@pytest.fixture(scope="session")
def mongodb_door(certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Door]:
    """Yield a MongoDB-wire server that asks for a password, over TLS."""
    _require("mongodb")
    door = servers.door(certificates)
    with servers.mongodb(tmp_path_factory.mktemp("mongodb"), door):
        yield door


@pytest.fixture(scope="session")
def mongodb_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the URL of a MongoDB, without a database: ``MONGODB_URL``, or a wire server that is started here."""
    if url := os.environ.get("MONGODB_URL"):
        yield url
        return
    _require("mongodb")
    with servers.mongodb(tmp_path_factory.mktemp("mongodb")) as url:
        yield url


@pytest.fixture(scope="session")
def own_kafka() -> Run:
    """Return what runs a broker on a folder: for tests that let it go away."""
    _require("kafka")
    return servers.kafka


@pytest.fixture(scope="session")
def own_mongodb() -> Run:
    """Return what runs a MongoDB-wire server on a folder: for tests that let it go away."""
    _require("mongodb")
    return servers.mongodb


@pytest.fixture(params=["sqlite", pytest.param("kafka", marks=pytest.mark.servers)])
def bus_url(request: pytest.FixtureRequest) -> str:
    """Return the URL of a bus, empty for one in the SQLite file of the store."""
    return str(request.getfixturevalue("kafka_url")) if request.param == "kafka" else ""


@pytest.fixture
def world(tmp_path: Path, bus_url: str) -> Iterator[World]:
    """Yield a store in a file and a bus, with topics of their own."""
    with opened(settings(tmp_path, bus_url)) as world:
        yield world


@pytest.fixture(scope="module")
def spark_cores() -> int:
    """Return how many cores `spark` has."""
    return 2


@pytest.fixture(scope="module")
def spark(spark_cores: int) -> Iterator[SparkSession]:
    """Yield a session on this machine, which jobs in this process use, too."""
    try:
        java_version()
    except BackendError as error:
        _give_up(str(error))
    with open_spark(Spark(master=f"local[{spark_cores}]")) as session:
        yield session


def _require(name: str) -> None:
    """Give up where the server cannot be had."""
    if reason := servers.missing(name):
        _give_up(reason)


def _give_up(reason: str) -> NoReturn:
    """Skip; in CI, where all is there, fail."""
    give_up = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
    give_up(reason)
