"""The real servers of the tests: a Kafka broker and a MongoDB-wire server, on free loopback ports.

Their jars lie in ``.servers/`` at the checkout's top; Maven fetches them by the ``pom.xml`` of each.
"""

from __future__ import annotations

import base64
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

FOLDER = Path(__file__).parent
JARS = FOLDER.parents[1] / ".servers"
JVM = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
START_TIMEOUT = 60.0
"""Seconds until a server must answer."""
STOP_TIMEOUT = 20.0
"""Seconds until a server that was asked to stop is killed."""


USER, PASSWORD = "ada", "Lov3/ lace@1843"
"""Who may come in by the secured doors."""


class ServerError(Exception):
    """A server did not start."""


@dataclass(frozen=True)
class Door:
    """A port that asks for a password behind TLS."""

    port: int
    certificate: Path
    """In PEM; it is its own authority."""
    keystore: Path
    """The certificate and its key, in PKCS #12."""

    def url(self, scheme: str, password: str = PASSWORD) -> str:
        """Return its URL, without options."""
        return f"{scheme}://{USER}:{quote(password, safe='')}@127.0.0.1:{self.port}"


def door(folder: Path) -> Door:
    """Return a door at a free port, with the certificate in `folder`, which is made unless it is there."""
    made = Door(free_port(), folder / "certificate.pem", folder / "keystore.p12")
    if not made.certificate.exists():
        store = ["-keystore", str(made.keystore), "-storepass", PASSWORD, "-alias", "tests"]
        extensions = ["-ext", "san=ip:127.0.0.1,dns:localhost", "-ext", "bc:critical=ca:true"]
        keytool = [str(_java("keytool")), "-J-XX:TieredStopAtLevel=1"]
        _run([*keytool, "-genkeypair", "-keyalg", "EC", "-dname", "CN=tests", "-validity", "2", *extensions, *store])
        _run([*keytool, "-exportcert", "-rfc", "-file", str(made.certificate), *store])
    return made


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
def kafka(folder: Path, secured: Door | None = None) -> Iterator[str]:
    """Run a broker that keeps its log under `folder`, with a secured door too if asked; yield the open one's URL.

    On a folder that was used before it goes on, at the same port.
    """
    port, controller = _port(folder, "kafka"), _port(folder, "controller")
    second = f",SASL_SSL://127.0.0.1:{secured.port}" if secured else ""
    properties = folder / "server.properties"
    properties.write_text(
        (FOLDER / "kafka" / "server.properties").read_text()
        + f"""
controller.quorum.bootstrap.servers=127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}{second}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}{second}
log.dirs={folder / "log"}
"""
        + (_sasl(secured) if secured else "")
    )
    java = [*_jvm("kafka"), "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]
    cluster_id = base64.urlsafe_b64encode(secrets.token_bytes(16)).rstrip(b"=").decode()
    if not (folder / "log").exists():
        users = [f"{mechanism}=[name={USER},password={PASSWORD}]" for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")]
        scram = [part for user in users for part in ("--add-scram", user)]
        _run(
            [
                *java,
                "kafka.tools.StorageTool",
                "format",
                "--standalone",
                f"--cluster-id={cluster_id}",
                "-c",
                str(properties),
                *scram,
            ]
        )
    with _running([*java, "kafka.Kafka", str(properties)], port, folder / "kafka.out"):
        yield f"kafka://127.0.0.1:{port}"


@contextmanager
def mongodb(folder: Path, secured: Door | None = None) -> Iterator[str]:
    """Run a MongoDB-wire server that keeps its file under `folder`; yield its URL, without a database.

    With a secured door there is no other. On a folder that was used before it goes on, at the same port.
    """
    port = secured.port if secured else _port(folder, "mongodb")
    command = [*_jvm("mongodb"), str(FOLDER / "mongodb" / "WireServer.java"), str(port), str(folder / "mongodb.h2")]
    if secured:
        command += [str(secured.keystore), USER, PASSWORD]
    with _running(command, port, folder / "mongodb.out"):
        yield f"mongodb://127.0.0.1:{port}"


def kill(folder: Path, name: str) -> None:
    """Kill the server ``'kafka'`` or ``'mongodb'`` that runs on a folder; it has no time for anything."""
    os.kill(int((folder / f"{name}.pid").read_text()), signal.SIGKILL)


def _sasl(secured: Door) -> str:
    """Return the broker's properties of a secured door, whose user may do what no ACL forbids."""
    modules = "org.apache.kafka.common.security"
    return f"""
ssl.keystore.type=PKCS12
ssl.keystore.location={secured.keystore}
ssl.keystore.password={PASSWORD}
listener.name.sasl_ssl.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
listener.name.sasl_ssl.plain.sasl.jaas.config={modules}.plain.PlainLoginModule required user_{USER}="{PASSWORD}";
listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config={modules}.scram.ScramLoginModule required;
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config={modules}.scram.ScramLoginModule required;
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
allow.everyone.if.no.acl.found=true
super.users=User:ANONYMOUS
"""


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
    log.with_suffix(".pid").write_text(str(process.pid))
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


def _port(folder: Path, name: str) -> int:
    """Return the port of a server: a free one the first time, the same in the same folder after that."""
    file = folder / f"{name}.port"
    if not file.exists():
        file.write_text(str(free_port()))
    return int(file.read_text())


def free_port() -> int:
    """Return a free port below those that outgoing connections take."""
    while True:
        port = random.randrange(20_000, 32_000)
        with closing(socket.socket()) as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
