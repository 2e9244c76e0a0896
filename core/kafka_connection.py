"""How a Kafka is reached: what a URL says, in the driver's words, and why a connection failed."""

from __future__ import annotations

import logging
import os
import re
import ssl
import time
from collections import Counter, deque
from typing import Any
from urllib.parse import unquote

from kafka import errors

from core.errors import BackendError, ConfigError
from core.names import bare_url

PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
MECHANISMS = ("SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN")
OPTIONS = ("security.protocol", "sasl.mechanism", "ssl.ca.location")
"""Named as in Kafka's own clients."""
RECENT = 30.0
"""Seconds for which a failed connection explains what fails next."""
NO_ANSWER = (
    errors.KafkaConnectionError,
    errors.KafkaTimeoutError,
    errors.NodeNotReadyError,
    errors.RequestTimedOutError,
)
CAUSES = (
    ("SaslAuthenticationFailed", "wrong user or password; correct them in bus.url"),
    (
        "SaslMechanism",
        f"the broker does not take this sasl.mechanism; name another in bus.url: {', '.join(MECHANISMS)}",
    ),
    ("IllegalSaslState", "the broker asks for no password on this port; correct user and port in bus.url"),
    (
        r"certificate verify failed: (.+?)( \(_ssl|$)",
        "no trusted connection: {}; name the authority's certificate with ?ssl.ca.location=… in bus.url",
    ),
    (r"SSL|Invalid frame length", "one side speaks TLS and the other does not; correct security.protocol in bus.url"),
    (
        r"GroupAuthorizationFailedError: (?:.* GROUP/)?([^\s:]+)",
        "the user may not use the consumer group {}; grant Describe on it, or Read to who is to be its member: "
        "docs/security.md lists what is needed",
    ),
    (
        r"(\w+)AuthorizationFailedError: (.+)",
        "the user may not do this: {} {}; docs/security.md lists what it must be allowed",
    ),
    ("NotEnoughReplicas", "fewer brokers are in step than the topic's min.insync.replicas asks for; start the others"),
)
"""What the driver logs of a failure, the most telling first, and what is said of it."""
HUNG_UP = "the broker hung up"
"""After it had told its version: what is left of a refused password if the broker sends it and hangs up at once."""
DISCONNECTED = "socket disconnected|Connection reset by peer"
"""Before it has told its version: what is left of its word that it speaks TLS, if it hangs up before that is read."""

Settings = dict[str, Any]


def driver_settings(url: str) -> Settings:
    """Return what a URL says as settings of the driver.

    Parameters
    ----------
    url : str
        ``kafka://user:password@host:9093,host2:9093?option=value&…``; user and options may be missing.

    Raises
    ------
    ConfigError
        If a part is malformed, an option is unknown, or two parts contradict each other.
    """
    place, _, query = url.removeprefix("kafka://").partition("?")
    credentials, _, hosts = place.rpartition("@")
    servers = hosts.rstrip("/").split(",")
    if "@" in query or not all(re.fullmatch(r"[\w.-]+:\d+|\[[0-9a-fA-F:]+\]:\d+", server) for server in servers):
        raise _bad_url(url, "may hold user:password@host:port,…?option=value and nothing else")
    options = _options(url, query)
    default = "SASL_SSL" if "@" in place else "SSL" if "ssl.ca.location" in options else "PLAINTEXT"
    protocol = _choice(url, options, "security.protocol", default, PROTOCOLS)
    found: Settings = {"bootstrap_servers": servers, "security_protocol": protocol}
    if protocol.startswith("SASL"):
        found["sasl_mechanism"] = _choice(url, options, "sasl.mechanism", MECHANISMS[0], MECHANISMS)
        found["sasl_plain_username"], found["sasl_plain_password"] = _credentials(url, credentials)
    elif "@" in place or "sasl.mechanism" in options:
        raise _bad_url(url, f"a user and sasl.mechanism do not go with security.protocol={protocol}")
    if protocol.endswith("SSL"):
        found["ssl_context"] = _trust(url, options.get("ssl.ca.location"))
    elif "ssl.ca.location" in options:
        raise _bad_url(url, f"ssl.ca.location does not go with security.protocol={protocol}")
    return found


def backend_error(url: str, error: errors.KafkaError, since: float, *, opening: bool) -> BackendError:
    """Say what failed and what to do: the driver's own errors do not tell why a connection failed.

    Parameters
    ----------
    url : str
        What may be printed of it.
    error : KafkaError
        What the driver raised.
    since : float
        When the first connection was tried, s since the epoch.
    opening : bool
        Whether none has succeeded yet. After one, any cause may pass, a refused password too: a broker that has just
        started need not know its users yet.
    """
    if isinstance(error, errors.CommitFailedError):
        return BackendError(f"{url}: the group has given what was read to another consumer; go on", retriable=True)
    text = " ".join(str(error).split())[:300]
    if isinstance(error, errors.CorruptRecordError):  # and the driver's next poll would never end
        return BackendError(f"{url}: what is on the broker's disk is damaged: {text}; restore it from a replica")
    no_answer = isinstance(error, NO_ANSWER)
    failures = driver_log.failures(max(since, time.time() - RECENT)) if no_answer else []
    for pattern, said in CAUSES:
        for failure in (*failures, text):
            if found := re.search(pattern, failure):
                retriable = not opening if no_answer else bool(error.retriable)
                return BackendError(f"{url}: {said.format(*found.groups())}", retriable=retriable)
    if not no_answer:
        return BackendError(f"{url}: Kafka refuses: {text}", retriable=bool(error.retriable))
    if opening and HUNG_UP in failures:
        return BackendError(f"{url}: wrong user or password, or none where there must be one; correct them in bus.url")
    cause = Counter(failures).most_common(1)[0][0] if failures else text
    if opening and re.search(DISCONNECTED, cause):
        cause = "the server hangs up at once, as one that speaks TLS does where the other side does not"
    return BackendError(f"{url}: no connection: {cause}; start Kafka there, or correct bus.url", retriable=True)


def _options(url: str, query: str) -> dict[str, str]:
    options = {}
    for option in query.split("&") if query else ():
        name, _, value = option.partition("=")
        if name not in OPTIONS:
            raise _bad_url(url, f"has an unknown option {name!r}; known are {', '.join(OPTIONS)}")
        options[name] = unquote(value)
    return options


def _choice(url: str, options: dict[str, str], name: str, default: str, known: tuple[str, ...]) -> str:
    value = options.get(name, default).upper()
    if value not in known:
        raise _bad_url(url, f"{name}={value} is none of {', '.join(known)}")
    return value


def _credentials(url: str, credentials: str) -> tuple[str, str]:
    user, _, password = credentials.partition(":")
    if re.search(r"[:@/]", user + password):
        raise _bad_url(url, "a special character of the user or password is not escaped")
    if not (user and password):
        raise _bad_url(url, "a user and a password, neither empty, stand before the host where SASL is asked for")
    return unquote(user), unquote(password)


def _trust(url: str, authority: str | None) -> ssl.SSLContext:
    """Return the certificates that are trusted: one authority's, or the system's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if authority is None:
        context.load_default_certs()
        return context
    try:
        context.load_verify_locations(authority)
    except ssl.SSLError as error:
        raise _bad_url(url, f"ssl.ca.location={authority} holds no certificate in PEM form") from error
    except OSError as error:
        raise _bad_url(url, f"ssl.ca.location={authority}: {error.strerror}") from error
    return context


def _bad_url(url: str, problem: str) -> ConfigError:
    return ConfigError(
        f"bus.url: {bare_url(url)!r}: {problem}; write kafka://host:9092 or "
        "kafka://user:password@host:9093?ssl.ca.location=ca.pem, and special characters of a password as %XX"
    )


class _DriverLog(logging.Handler):
    """Keep the driver's log away from the user's terminal, and remember why connections failed."""

    def __init__(self) -> None:
        super().__init__()
        self._failures: deque[tuple[float, str]] = deque(maxlen=100)

    def emit(self, record: logging.LogRecord) -> None:
        text = " ".join(record.getMessage().split())
        logging.getLogger(__name__).debug("%s: %s", record.name, text)
        if found := re.search(r"(?:(?:onnection|attempt)(?: to \S+)? (?:failed|lost)|attempts left\)): (.+)", text):
            cause = found[1].partition(" (backoff")[0].removeprefix("KafkaConnectionError: ")
            cause = re.sub(r"^(\d+) E[A-Z]+$", lambda number: os.strerror(int(number[1])), cause)
            if "broker_version=(" in text and re.search(DISCONNECTED, cause):
                cause = HUNG_UP
            self._failures.append((record.created, cause))

    def failures(self, since: float) -> list[str]:
        """Return why connections failed, the last one last: the driver's exceptions do not say."""
        return [cause for at, cause in self._failures if at >= since]


driver_log = _DriverLog()
logging.getLogger("kafka").setLevel(logging.WARNING)
logging.getLogger("kafka").addHandler(driver_log)
logging.getLogger("kafka").propagate = False
