"""Whether there is a Java for Spark, and what is said where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from core import spark
from core.config import Spark
from core.errors import BackendError


@pytest.fixture
def java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where a Java may be put that alone is found."""
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    return tmp_path / "bin" / "java"


def install(java: Path, version: str) -> None:
    java.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2025-04-15' >&2\n")
    java.chmod(0o755)


@pytest.mark.parametrize(("version", "major"), [("17.0.15", 17), ("21", 21), ("25.0.1", 25)])
def test_java_17_and_later_will_do(java: Path, version: str, major: int) -> None:
    install(java, version)
    assert spark.java_version() == major


@pytest.mark.parametrize(("version", "told"), [("1.8.0_392", "is Java 8"), ("11.0.21", "is Java 11"), ("?", "version")])
def test_an_older_java_is_named(java: Path, version: str, told: str) -> None:
    install(java, version)
    with pytest.raises(BackendError, match=rf"needs Java 17: {java} .*{told}.*--engine sklearn"):
        spark.java_version()


def test_without_java_one_line_names_java_17_and_the_other_engine(java: Path) -> None:
    with (
        pytest.raises(BackendError, match=r"^Spark needs Java 17: there is no `java`.*--engine sklearn`$"),
        spark.open_spark(Spark()),
    ):
        pass


def test_a_wrong_java_home_is_named(java: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(java, "17.0.1")
    monkeypatch.setenv("JAVA_HOME", "/nowhere/jdk")
    with pytest.raises(BackendError, match=r"JAVA_HOME is /nowhere/jdk, which holds no bin/java"):
        spark.java_version()
