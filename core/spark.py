"""Opening a Spark session, quietly, and saying in one line why it cannot be opened."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from core.config import Spark
from core.errors import BackendError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

log = logging.getLogger(__name__)

MIN_JAVA = 17
LOG = "spark.log"
SHOWN = 300
"""Characters of what Java says."""
ADVICE = f"install Java {MIN_JAVA} or later (Debian, Ubuntu: default-jre-headless), or use"


def java_version(otherwise: str = "--engine sklearn") -> int:
    """Return the major version of the Java that Spark would start.

    Parameters
    ----------
    otherwise : str
        The option that does without Spark, as an error names it.

    Raises
    ------
    BackendError
        If there is none, or it is older than Java 17.
    """
    home = os.environ.get("JAVA_HOME")
    java = shutil.which(Path(home, "bin", "java") if home else "java")
    if java is None:
        where = f"JAVA_HOME is {home}, which holds no bin/java" if home else "there is no `java` on the PATH"
        raise BackendError(f"Spark needs Java {MIN_JAVA}: {where}; {ADVICE} `{otherwise}`")
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    found = re.search(r'version "(?:1\.)?(\d+)', said)
    if found is None or int(found[1]) < MIN_JAVA:
        version = f"is Java {found[1]}" if found else "does not tell its version"
        raise BackendError(f"Spark needs Java {MIN_JAVA}: {java} {version}; {ADVICE} `{otherwise}`")
    return int(found[1])


def is_local(config: Spark) -> bool:
    """Return whether everything runs on this machine."""
    return config.master.startswith("local")


@contextmanager
def open_spark(config: Spark, *, otherwise: str = "--engine sklearn") -> Iterator[SparkSession]:
    """Open a session, and close it at the end; one that is open in this process already is used and left open.

    What Spark and its Python workers print goes to a file that is removed with its other files.

    Parameters
    ----------
    config : Spark
        The master, and Spark's own settings.
    otherwise : str
        The option that does without Spark, as an error names it.

    Raises
    ------
    BackendError
        If there is no Java 17, Spark does not start, or it fails while the session is open.
    """
    java_version(otherwise)
    from py4j.protocol import Py4JError  # type: ignore[import-untyped]  # it ships none
    from pyspark.errors import PySparkException, PySparkRuntimeError
    from pyspark.sql import SparkSession

    with tempfile.TemporaryDirectory(prefix="murmur-spark-", ignore_cleanup_errors=True) as directory:
        try:
            active = None
            with suppress(PySparkRuntimeError):
                active = SparkSession.active()
            session = active or _start(config, Path(directory))
            try:
                yield session
            finally:
                if session is not active:
                    session.stop()
        except (PySparkException, Py4JError, ConnectionError) as error:
            raise BackendError(f"Spark ({config.master}) failed: {_reason(error, Path(directory, LOG))}") from error


def _start(config: Spark, directory: Path) -> SparkSession:
    """Start Spark in a thread: a Ctrl-C meanwhile would leave Java behind, and PySpark would catch those to come."""
    with ThreadPoolExecutor(1) as thread:
        starting = thread.submit(_new_session, config, directory)
        try:
            return starting.result()
        except KeyboardInterrupt:
            starting.result().stop()
            raise


def _new_session(config: Spark, directory: Path) -> SparkSession:
    from pyspark import SparkConf, SparkContext
    from pyspark.java_gateway import launch_gateway
    from pyspark.sql import SparkSession

    if is_local(config):
        os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"
        os.environ["PYSPARK_PYTHON"] = sys.executable
    if python := config.options.get("spark.pyspark.python"):  # Spark reads it only where `spark-submit` starts us
        os.environ["PYSPARK_PYTHON"] = str(python)
    settings = {
        "spark.master": config.master,
        "spark.app.name": "murmuration",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.local.dir": str(directory),
        "spark.sql.warehouse.dir": str(directory / "warehouse"),
        "spark.sql.execution.arrow.pyspark.enabled": "true",
    } | {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in config.options.items()}
    conf = SparkConf().setAll(list(settings.items()))
    with Path(directory, LOG).open("wb") as output:
        quiet = {"stdout": output, "stderr": output}
        gateway = None if SparkContext._gateway else launch_gateway(conf, quiet)  # type: ignore[no-untyped-call]  # has none
    context = SparkContext(conf=conf, gateway=gateway)
    log.info("Spark %s on %s", context.version, config.master)
    return SparkSession(context)


def _reason(error: Exception, output: Path) -> str:
    """Return one line: what Java said where it did not start, else the first line that names an error."""
    if "JAVA_GATEWAY_EXITED" in str(error) and (said := output.read_text("utf-8", "replace").strip()):
        return " ".join(line for line in said.splitlines() if not line.startswith("\t"))[:SHOWN]
    named = re.search(r"^\S.*(Error|Exception)\b.*$", str(error), re.MULTILINE)  # indented lines are a program's
    reason = named[0].strip(" :") if named else f"{type(error).__name__} {error}".split("\n")[0]
    return re.sub(r"^core\.errors\.\w+: ", "", reason)
