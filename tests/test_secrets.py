"""Passwords reach the servers and nothing else: no line, no error, no traceback, no record, no message."""

from __future__ import annotations

import json
import uuid
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import pytest
from prometheus_client import generate_latest
from servers import PASSWORD, Door
from test_cli_main import Murmur, murmur
from test_core_store import track

from core import open_bus, open_store
from core.bus import read_to_end
from core.config import Config, load_config
from core.names import Names
from core.records import Failure, Record, Run, Track
from etl.messages import create_topics, send

__all__ = ["murmur"]  # a fixture

GUESSED = "Gu3ssed wr0ng/"
SECRETS = {form for password in (PASSWORD, GUESSED) for form in (password, quote(password), quote(password, safe=""))}
COLLECTIONS: tuple[type[Record], ...] = (Track, Failure, Run)

pytestmark = pytest.mark.servers


@pytest.fixture
def config(tmp_path: Path, kafka_door: Door, mongodb_door: Door, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Return a config whose passwords come from the environment, written to ``config.yaml``."""
    monkeypatch.setattr("core.kafka.TIMEOUT", 1.0)
    for name in ("KAFKA_PASSWORD", "MONGODB_PASSWORD"):
        monkeypatch.setenv(name, quote(PASSWORD, safe=""))
    certificate = kafka_door.certificate
    bus = f"{kafka_door.url('kafka', '@')}?ssl.ca.location={certificate}".replace("%40", "$KAFKA_PASSWORD")
    store = f"{mongodb_door.url('mongodb', '@')}/{uuid.uuid4().hex}".replace("%40", "$MONGODB_PASSWORD")
    options = f"authMechanism=PLAIN&authSource=%24external&tls=true&tlsCAFile={certificate}"
    text = {"store": f"{store}?{options}", "bus": bus, "topics": {"prefix": f"{uuid.uuid4().hex}."}}
    (tmp_path / "config.yaml").write_text(json.dumps(text))
    return load_config(tmp_path / "config.yaml")


def leaks(text: str) -> list[str]:
    return [secret for secret in SECRETS if secret in text]


def extracted(config: Config, *tracks: Track) -> None:
    """Send tracks as `extract` does, and a message that is none."""
    with closing(open_bus(config.bus.url)) as bus:
        names = create_topics(bus, config)
        with closing(bus.producer()) as producer:
            for one in tracks:
                send(producer, names.tracks, one)
            producer.send(names.tracks, b"poison", b"no track")
            producer.flush()


def test_records_are_sent_and_loaded_over_tls_with_a_password_that_stays_unseen(murmur: Murmur, config: Config) -> None:
    extracted(config, track("a", title="A"), track("b", title="B"))
    said = [murmur("-vv", "load"), murmur("-vv", "status"), murmur("-vv", "doctor"), murmur("-vv", "failures")]
    assert [done.code for done in said[:2]] == [0, 0]
    assert "3 read, 2 written, 1 failed" in said[0].out
    held = []
    with closing(open_store(config.store.url)) as store, closing(open_bus(config.bus.url)) as bus:
        assert [document["title"] for document in store.scan(Track)] == ["A", "B"]
        for kind in COLLECTIONS:
            held += [str(document) for document in store.scan(kind)]
        letters = list(read_to_end(bus, [Names(config.topics.prefix).dead_letters]))
        assert [letter.key for letter in letters] == [b"poison"]
        held += [str(message) for message in read_to_end(bus, bus.topics())]
    held.append(generate_latest().decode())
    assert leaks("".join(held)) == []
    assert [leaks(done.out + done.err) for done in said] == [[]] * len(said)


@pytest.mark.parametrize("variable", ["KAFKA_PASSWORD", "MONGODB_PASSWORD"])
def test_a_wrong_password_is_called_so_and_not_printed(
    murmur: Murmur, config: Config, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, quote(GUESSED, safe=""))
    for verb in ("status", "load", "doctor"):
        done = murmur("-vv", verb)
        assert done.code == 1
        assert "wrong user or password" in done.out + done.err
        assert leaks(done.out + done.err) == []
        assert verb == "doctor" or "Traceback" in done.err


@pytest.mark.parametrize("variable", ["KAFKA_PASSWORD", "MONGODB_PASSWORD"])
def test_a_password_that_breaks_its_url_is_not_printed_in_parts(
    murmur: Murmur, config: Config, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    for unescaped in (
        "Gu3ssed/wr0ng",
        "Gu3ssed?wr0ng",
        "Gu3ssed@wr0ng",
        "Gu3ssed:wr0ng",
        "Gu3ssed#wr0ng",
        "Gu3%ssed?a=wr0ng",
    ):
        monkeypatch.setenv(variable, unescaped)
        done = murmur("-vv", "status")
        assert done.code in (1, 2)
        assert "Gu3" not in done.out + done.err
        assert "wr0ng" not in done.out + done.err
