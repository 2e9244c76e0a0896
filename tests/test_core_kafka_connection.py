"""How a Kafka is reached: what its URL may say, and the causes of a connection that failed, told apart."""

from __future__ import annotations

import logging
import socket
import ssl
import time
import uuid
from collections.abc import Callable
from contextlib import closing, suppress
from threading import Thread

import kafka
import pytest
from kafka import errors
from kafka.admin import ACL, ACLOperation, ACLPermissionType, ResourcePattern, ResourceType
from servers import PASSWORD, USER, Door
from test_core_bus import everything, send

from core.bus import Topic, open_bus
from core.errors import BackendError, ConfigError
from core.kafka_connection import backend_error, driver_settings


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.kafka.TIMEOUT", 1.0)


def told(url: str, **said: object) -> None:
    """Check what a URL says, TLS apart."""
    found = driver_settings(url)
    found.pop("ssl_context", None)
    assert found == said


# What a URL says


def test_hosts_alone_are_asked_in_the_clear() -> None:
    told("kafka://h:1,[::1]:2/", bootstrap_servers=["h:1", "[::1]:2"], security_protocol="PLAINTEXT")


def test_a_user_is_known_by_scram_over_tls_unless_the_url_says_otherwise() -> None:
    user = {"sasl_plain_username": "a:da", "sasl_plain_password": "p@ss/w%rd?"}
    place = "kafka://a%3Ada:p%40ss%2Fw%25rd%3F@h:1"
    told(place, bootstrap_servers=["h:1"], security_protocol="SASL_SSL", sasl_mechanism="SCRAM-SHA-512", **user)
    told(
        f"{place}?security.protocol=sasl_plaintext&sasl.mechanism=plain",
        bootstrap_servers=["h:1"],
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism="PLAIN",
        **user,
    )


def test_tls_without_a_user_is_possible_too() -> None:
    told("kafka://h:1?security.protocol=SSL", bootstrap_servers=["h:1"], security_protocol="SSL")


def test_without_an_authority_the_systems_are_trusted_and_the_hosts_name_is_always_checked() -> None:
    context = driver_settings("kafka://h:1?security.protocol=SSL")["ssl_context"]
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("kafka://", "host:port"),
        ("kafka://host", "host:port"),
        ("kafka://host:9092/topic", "host:port"),
        ("kafka://host:9092,other", "host:port"),
        ("kafka://ada:se?cret@host:9092", "host:port"),
        ("kafka://ada:12?secret@host:9092", "host:port"),
        ("kafka://ada:secret@host", "host:port"),
        ("kafka://host:9092?acks=0", "unknown option 'acks'; known are security.protocol, sasl.mechanism, ssl.ca"),
        ("kafka://ada:se@cret@host:9092", "not escaped"),
        ("kafka://ada:se:cret@host:9092", "not escaped"),
        ("kafka://ada:se/cret@host:9092", "not escaped"),
        ("kafka://ada@host:9092", "a user and a password"),
        ("kafka://ada:@host:9092", "a user and a password"),
        ("kafka://host:9092?security.protocol=SASL_SSL", "a user and a password"),
        ("kafka://ada:secret@host:9092?security.protocol=SSL", "do not go with security.protocol=SSL"),
        ("kafka://host:9092?sasl.mechanism=PLAIN", "do not go with security.protocol=PLAINTEXT"),
        ("kafka://ada:secret@host:9092?sasl.mechanism=GSSAPI", "GSSAPI is none of SCRAM-SHA-512"),
        ("kafka://host:9092?security.protocol=TLS", "TLS is none of PLAINTEXT, SSL"),
        ("kafka://host:9092?ssl.ca.location=/none.pem", "/none.pem: No such file"),
        (f"kafka://host:9092?ssl.ca.location={__file__}", "no certificate in PEM"),
        ("kafka://host:9092?security.protocol=PLAINTEXT&ssl.ca.location=/a.pem", "does not go with"),
    ],
)
def test_a_url_that_cannot_be_used_says_why_and_is_answered_with_one_that_can(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=r"write kafka://host:9092 or") as caught:
        open_bus(url)
    assert said in str(caught.value)
    assert "cret" not in str(caught.value)
    assert "\n" not in str(caught.value)


# Why a connection failed


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["Bootstrap connection to bootstrap-0 failed: [Error 33] UnsupportedSaslMechanismError (backoff 0.33 secs)"],
         "the broker does not take this sasl.mechanism"),
        (["Connection failed: KafkaConnectionError: Handshake failed: [SSL: CERTIFICATE_VERIFY_FAILED] certificate "
          "verify failed: certificate has expired (_ssl.c:1006)"],
         "no trusted connection: certificate has expired; name the authority's certificate"),
        (["Connection failed: KafkaConnectionError: DNS Resolution failure"], "no connection: DNS Resolution failure"),
        (["Connection failed: KafkaConnectionError: 111 ECONNREFUSED",
          "Connection failed: [Error 58] SaslAuthenticationFailedError: no",
          "Connection failed: KafkaConnectionError: 111 ECONNREFUSED"],
         "wrong user or password"),
        (["<KafkaConnection broker_version=(4, 1) (disconnected)>: Connection lost: KafkaConnectionError: socket "
          "disconnected", "Connection failed: [Error 7] RequestTimedOutError: Request timed out after 42 ms"],
         "wrong user or password, or none where there must be one"),
        (["<KafkaConnection broker_version=unknown (disconnected)>: Connection lost: KafkaConnectionError: socket "
          "disconnected"], "no connection: the server hangs up at once, as one that speaks TLS does"),
        (["Got error produce response on topic-partition TopicPartition(topic='t', partition=0), retrying (inf "
          "attempts left): NotEnoughReplicasError"], "fewer brokers are in step than the topic's min.insync.replicas"),
        ([], "no connection: KafkaTimeoutError: Unable to bootstrap"),
    ],
)  # fmt: skip
def test_the_most_telling_cause_that_the_driver_logged_is_named(lines: list[str], said: str) -> None:
    begun = time.time()
    for line in lines:
        logging.getLogger("kafka.net").error(line)
    error = backend_error("kafka://h:1", errors.KafkaTimeoutError("Unable to bootstrap"), begun, opening=True)
    assert f"kafka://h:1: {said}" in str(error)


def test_what_the_user_may_not_do_is_named_and_not_tried_again() -> None:
    error = backend_error("kafka://h:1", errors.TopicAuthorizationFailedError("a.v1"), time.time(), opening=False)
    assert "kafka://h:1: the user may not do this: Topic a.v1; docs/security.md" in str(error)
    assert not error.retriable


@pytest.mark.parametrize("text", ["players", "FindCoordinatorResponse error for GROUP/players: "])
def test_a_group_that_the_user_may_not_use_is_named_with_what_to_grant(text: str) -> None:
    error = backend_error("kafka://h:1", errors.GroupAuthorizationFailedError(text), time.time(), opening=False)
    assert "kafka://h:1: the user may not use the consumer group players; grant Describe on it, or" in str(error)


def test_what_failed_before_this_bus_was_opened_is_no_cause() -> None:
    logging.getLogger("kafka.net").error("Connection failed: [Error 58] SaslAuthenticationFailedError: no")
    error = backend_error("kafka://h:1", errors.KafkaTimeoutError("no answer"), time.time() + 1, opening=True)
    assert "no connection: KafkaTimeoutError: no answer" in str(error)


def test_a_password_that_was_taken_once_may_be_taken_again() -> None:
    """A broker that has just started need not know its users yet."""
    begun = time.time()
    logging.getLogger("kafka.net").error("Connection failed: [Error 58] SaslAuthenticationFailedError: no")
    for opening in (True, False):
        error = backend_error("kafka://h:1", errors.KafkaTimeoutError(), begun, opening=opening)
        assert error.retriable is not opening


# The real broker


@pytest.fixture
def secured(kafka_door: Door) -> str:
    """Return a URL that lets in."""
    return f"{kafka_door.url('kafka')}?ssl.ca.location={kafka_door.certificate}"


@pytest.mark.servers
@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_messages_are_sent_and_read_by_every_mechanism_over_tls(secured: str, mechanism: str) -> None:
    topic = f"topic.{uuid.uuid4().hex}.v1"
    with closing(open_bus(f"{secured}&sasl.mechanism={mechanism}")) as bus:
        bus.create_topics([Topic(topic, "compact", partitions=2)])
        send(bus, topic, *(b"%d" % n * 100_000 for n in range(10)))
        assert everything(bus, topic) == [b"%d" % n * 100_000 for n in range(10)]
        publisher = bus.producer(f"publisher.{topic}")
        with publisher.transaction():
            publisher.send(topic, b"k", b"last")
        assert everything(bus, topic)[-1] == b"last"


def refused(url: str, said: str) -> BackendError:
    with pytest.raises(BackendError, match=said) as caught:
        open_bus(url)
    assert "\n" not in str(caught.value)
    assert PASSWORD not in str(caught.value)
    return caught.value


@pytest.mark.servers
@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
def test_a_wrong_password_is_called_so(kafka_door: Door, mechanism: str) -> None:
    url = f"{kafka_door.url('kafka', 'guessed')}?ssl.ca.location={kafka_door.certificate}&sasl.mechanism={mechanism}"
    error = refused(url, rf"127\.0\.0\.1:{kafka_door.port}: wrong user or password")
    assert not error.retriable


@pytest.mark.servers
@pytest.mark.usefixtures("_impatient")
def test_a_certificate_of_an_unknown_authority_is_called_so(kafka_door: Door) -> None:
    error = refused(kafka_door.url("kafka"), r"no trusted connection: self-signed certificate; .*ssl\.ca\.location")
    assert not error.retriable


@pytest.mark.servers
@pytest.mark.usefixtures("_impatient")
def test_a_door_without_anybody_behind_it_is_called_so(kafka_door: Door) -> None:
    error = refused(
        f"kafka://{USER}:x@127.0.0.1:1?ssl.ca.location={kafka_door.certificate}",
        "no connection: Connection refused; start Kafka there",
    )
    assert error.retriable


@pytest.mark.servers
@pytest.mark.usefixtures("_impatient")
def test_tls_on_one_side_only_is_called_so(kafka_door: Door, kafka_url: str) -> None:
    refused(f"kafka://127.0.0.1:{kafka_door.port}", "one side speaks TLS|hangs up at once, as one that speaks TLS")
    refused(f"{kafka_url}?security.protocol=SSL", "one side speaks TLS")


@pytest.mark.usefixtures("_impatient")
def test_a_server_that_hangs_up_at_once_may_speak_tls() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        Thread(target=hang_up, args=(server,), daemon=True).start()
        refused(f"kafka://127.0.0.1:{server.getsockname()[1]}", "hangs up at once, as one that speaks TLS")
        server.shutdown(socket.SHUT_RDWR)


def hang_up(server: socket.socket) -> None:
    """Accept connections and close them, until the server is shut down."""
    with suppress(OSError):
        while True:
            server.accept()[0].close()


@pytest.mark.servers
@pytest.mark.usefixtures("_impatient")
def test_a_user_where_none_is_asked_for_and_none_where_one_is_are_called_so(kafka_door: Door, kafka_url: str) -> None:
    open_door = kafka_url.replace("://", f"://{USER}:x@")
    refused(f"{open_door}?security.protocol=SASL_PLAINTEXT", "asks for no password on this port")
    refused(
        f"kafka://127.0.0.1:{kafka_door.port}?ssl.ca.location={kafka_door.certificate}", "none where there must be one"
    )


@pytest.mark.servers
@pytest.mark.parametrize("was_asked_before", [False, True])
def test_who_may_not_describe_a_group_is_told_to_be_granted_it(
    secured: str, kafka_url: str, *, was_asked_before: bool
) -> None:
    """A driver that knows the group's coordinator is refused by the description, another one by the search for it."""
    group = f"group.{uuid.uuid4().hex}"
    forbidden = ACL(
        f"User:{USER}", "*", ACLOperation.DESCRIBE, ACLPermissionType.DENY, ResourcePattern(ResourceType.GROUP, group)
    )
    brokers = kafka_url.removeprefix("kafka://").split(",")
    with closing(kafka.KafkaAdminClient(bootstrap_servers=brokers)) as admin, closing(open_bus(secured)) as bus:
        assert not (was_asked_before and bus.has_members(group))
        admin.create_acls([forbidden])
        with pytest.raises(BackendError, match=f"the user may not use the consumer group {group}; grant Describe on"):
            until(lambda: bus.has_members(group))


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another process does."""
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
