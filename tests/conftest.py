"""The real servers, each started once for the whole run and only if a test asks for it."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import servers

Run = Callable[[Path], AbstractContextManager[str]]


def pytest_configure() -> None:
    """Choose the seed of the tests that draw at random, unless it is given."""
    os.environ.setdefault("MURMUR_SEED", str(random.randrange(10**6)))


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
def kafka_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the URL of a Kafka broker: ``KAFKA_URL``, or one that is started here."""
    yield from _server("kafka", servers.kafka, tmp_path_factory)


@pytest.fixture(scope="session")
def mongodb_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the URL of a MongoDB, without a database: ``MONGODB_URL``, or a wire server that is started here."""
    yield from _server("mongodb", servers.mongodb, tmp_path_factory)


@pytest.fixture
def own_kafka() -> Run:
    """Return what runs a broker on a folder: for tests that let it go away."""
    _require("kafka")
    return servers.kafka


@pytest.fixture
def own_mongodb() -> Run:
    """Return what runs a MongoDB-wire server on a folder: for tests that let it go away."""
    _require("mongodb")
    return servers.mongodb


def _server(name: str, run: Run, folders: pytest.TempPathFactory) -> Iterator[str]:
    if url := os.environ.get(f"{name.upper()}_URL"):
        yield url
        return
    _require(name)
    with run(folders.mktemp(name)) as url:
        yield url


def _require(name: str) -> None:
    """Skip where the server cannot be had; in CI, where all servers are, fail."""
    if reason := servers.missing(name):
        give_up = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        give_up(reason)
