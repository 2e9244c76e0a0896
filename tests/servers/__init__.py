"""The real servers of the tests: a Kafka broker and a MongoDB-wire server, on free loopback ports.

Their jars lie in ``.servers/`` at the checkout's top; Maven fetches them by the ``pom.xml`` of each.
"""

from __future__ import annotations

import base64
import os
import random
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

FOLDER = Path(__file__).parent
JARS = FOLDER.parents[1] / ".servers"
JVM = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
START_TIMEOUT = 60.0
"""Seconds until a server must answer."""
STOP_TIMEOUT = 20.0
"""Seconds until a server that was asked to stop is killed."""


class ServerError(Exception):
    """A server did not start."""


def missing(name: str) -> str | None:
    """Return why the server ``'kafka'`` or ``'mongodb'`` cannot be started here, None if it can."""
    if _java() is None:
        return f"no Java for the {name} server: install a JDK, version 17 or newer"
    if name == "mongodb" and _java("javac") is None:
        return "no Java compiler for the mongodb server: install a JDK instead of a JRE"
    if not any((JARS / name).glob("*.jar")):
        return f"no jars in .servers/{name}: scripts/test fetches them where Maven is installed"
    return None


@contextmanager
def kafka(folder: Path) -> Iterator[str]:
    """Run a broker that keeps its log under `folder`; yield its URL."""
    port, controller = _free_port(), _free_port()
    properties = folder / "server.properties"
    properties.write_text(
        (FOLDER / "kafka" / "server.properties").read_text()
        + f"""
controller.quorum.bootstrap.servers=127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
log.dirs={folder / "log"}
"""
    )
    java = [*_jvm("kafka"), "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]
    cluster_id = base64.urlsafe_b64encode(secrets.token_bytes(16)).rstrip(b"=").decode()
    _run([*java, "kafka.tools.StorageTool", "format", "--standalone", "-t", cluster_id, "-c", str(properties)])
    with _running([*java, "kafka.Kafka", str(properties)], port, folder / "kafka.out"):
        yield f"kafka://127.0.0.1:{port}"


@contextmanager
def mongodb(folder: Path) -> Iterator[str]:
    """Run a MongoDB-wire server that keeps its file under `folder`; yield its URL, without a database."""
    port = _free_port()
    command = [*_jvm("mongodb"), str(FOLDER / "mongodb" / "WireServer.java"), str(port), str(folder / "mongodb.h2")]
    with _running(command, port, folder / "mongodb.out"):
        yield f"mongodb://127.0.0.1:{port}"


def _java(program: str = "java") -> str | None:
    home = os.environ.get("JAVA_HOME")
    return shutil.which(program, path=f"{home}/bin") if home else shutil.which(program)


def _jvm(name: str) -> list[str]:
    """Return the start of a command; setpriv ends a server whose parent was killed."""
    if reason := missing(name):
        raise ServerError(reason)
    guard = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
    return [*guard, str(_java()), *JVM, "-cp", f"{JARS / name}/*"]


def _run(command: Sequence[str]) -> None:
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise ServerError(f"{command[-5:]} failed:\n{(finished.stdout + finished.stderr)[-2000:]}")


@contextmanager
def _running(command: Sequence[str], port: int, log: Path) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
    try:
        _await_answer(process, port, log)
        yield
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_answer(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while not _answers(port):
        if process.poll() is not None or time.monotonic() > deadline:
            state = "is silent" if process.returncode is None else f"ended with {process.returncode}"
            raise ServerError(f"the server {state}; the end of its log:\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.05)


def _answers(port: int) -> bool:
    with closing(socket.socket()) as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    """Return a free port below those that outgoing connections take."""
    while True:
        port = random.randrange(20_000, 32_000)
        with closing(socket.socket()) as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
