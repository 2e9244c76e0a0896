"""Names: what may be stored, printed or sent."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.names import Names, bare_url, cloud_event, path_digest, path_text


def test_a_prefix_goes_before_every_topic_group_and_transactional_id() -> None:
    names = Names("test.")
    found = (names.tracks, names.failed, names.dead_letters, names.members, names.runs, names.spaces, names.load_group)
    assert all(name.startswith("test.") for name in (*found, names.publisher, names.cluster("c01")))


def test_a_cluster_topic_names_its_cluster_and_no_other_topic_does() -> None:
    for names in (Names(), Names("a.")):
        assert names.cluster_of(names.cluster("c12")) == "c12"
        others = (names.members, names.runs, names.spaces, names.tracks, names.dead_letters, f"x{names.cluster('c01')}")
        assert [topic for topic in others if names.cluster_of(topic)] == []


@given(st.binary(min_size=1).filter(lambda name: b"\0" not in name))
def test_any_file_name_becomes_text_that_is_utf8(name: bytes) -> None:
    text = path_text(os.fsdecode(name))
    assert text.encode()
    assert path_digest(os.fsdecode(name)) == path_digest(text)


def test_only_bytes_that_are_not_utf8_are_escaped() -> None:
    assert path_text(os.fsdecode(b"caf\xe9 100%.mp3")) == "caf%E9 100%.mp3"
    assert path_text("café.mp3") == "café.mp3"


@pytest.mark.parametrize(
    ("url", "bare"),
    [
        ("mongodb://u:p@h:27017/music?authSource=admin", "mongodb://h:27017/music"),
        ("mongodb://u:p/w@d@h/music", "mongodb://h/music"),
        ("kafka://u:p@h:1,g:2?security.protocol=SASL_SSL", "kafka://h:1,g:2"),
        ("mongodb://u:p?w@h/music", "mongodb://…"),
        ("mongodb://h/music?tlsCertificateKeyFilePassword=p@w", "mongodb://…"),
        ("mongodb:/u:p@h/music", "h/music"),
        ("u:p://@h", "h"),
        ("sqlite:////data/a@b?.db", "sqlite:////data/a@b?.db"),
        ("music", "music"),
    ],
)
def test_a_url_is_printed_without_user_and_options(url: str, bare: str) -> None:
    assert bare_url(url) == bare


def test_headers_follow_cloudevents_kafka_binding() -> None:
    headers = dict(cloud_event("Track", "t", 7, "abc"))
    assert headers["ce_specversion"] == b"1.0"
    assert headers["rev"] == b"7"
    assert headers["feature_set"] == b"abc"
    assert {"ce_id", "ce_type", "ce_source", "ce_time", "content-type"} <= headers.keys()
