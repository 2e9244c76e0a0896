"""Messages as released versions sent them, `golden_messages/<version>.json`, stay readable for ever.

A version adds its own file and never changes another's.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from core import records
from core.bus import Message
from core.config import Config
from core.names import Names
from core.records import Record, Value
from etl.messages import decode

SCHEMAS = Path(__file__).parents[1] / "docs" / "schemas" / "records"
FILES = sorted((Path(__file__).parent / "golden_messages").glob("*.json"))
MESSAGES = [
    pytest.param(message, id=f"{file.stem} {message['topic']} {message['key']}")
    for file in FILES
    for message in json.loads(file.read_text("utf-8"))
]


def kind_of(message: dict[str, Any]) -> type[Value]:
    """Return the record that the headers name."""
    origin, name, number = message["headers"]["ce_type"].split(".")
    assert (origin, number) == ("murmuration", "v1")
    kind: type[Value] = getattr(records, name)
    return kind


def sent(message: dict[str, Any], value: Any) -> Message:
    """Return the message as a reader meets it, with this value."""
    headers = tuple((name, text.encode()) for name, text in message["headers"].items())
    data = None if value is None else json.dumps(value).encode()
    return Message(message["topic"], 0, 0, message["key"].encode(), data, headers, 0)


def within(part: Any, whole: Any) -> bool:
    """Return whether all of `part` is in `whole`, which may have further fields."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(name in whole and within(part[name], whole[name]) for name in part)
    if isinstance(part, list):
        return len(part) == len(whole) and all(map(within, part, whole))
    return bool(part == whole)


def with_unknown_fields(value: Any) -> Any:
    """Return a record's JSON with one more field in it and in each record inside it."""
    if isinstance(value, list):
        return [with_unknown_fields(one) for one in value]
    if not isinstance(value, dict):
        return value
    inner = {
        name: with_unknown_fields(one) if name in ("source", "copies", "neighbours") else one
        for name, one in value.items()
    }
    return {"a_later_field": {"x": [1]}, **inner}


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_of_a_released_version_is_read_in_full(message: dict[str, Any]) -> None:
    kind, value = kind_of(message), message["value"]
    if value is not None:
        assert within(value, json.loads(kind.from_json(json.dumps(value).encode()).to_json()))
    if issubclass(kind, Record):
        decoded = decode(kind, sent(message, value))
        assert decoded.key == message["key"]
        assert str(decoded.rev) == message["headers"]["rev"]
        assert (decoded.record is None) == (value is None)


@pytest.mark.parametrize("message", MESSAGES)
def test_the_json_schema_knows_every_field_and_asks_for_none_that_is_not_there(message: dict[str, Any]) -> None:
    schema = json.loads((SCHEMAS / f"{kind_of(message).__name__}.json").read_text("utf-8"))
    if message["value"] is not None:
        assert set(schema["required"]) <= message["value"].keys() <= schema["properties"].keys()


@pytest.mark.parametrize("message", MESSAGES)
def test_fields_of_a_later_version_are_ignored_wherever_they_stand(message: dict[str, Any]) -> None:
    kind, value = kind_of(message), message["value"]
    if value is not None:
        later = with_unknown_fields(value)
        assert later != value
        assert kind.from_json(json.dumps(later).encode()) == kind.from_json(json.dumps(value).encode())


def test_every_topic_with_records_is_there_of_this_version() -> None:
    (file,) = [file for file in FILES if file.stem == version("murmuration")]
    names, topics = Names(), Config().topics
    expected = {topic.name for topic in [*topics.of_tracks(), *topics.of_clusters(["c02"])]} - {names.dead_letters}
    assert {message["topic"] for message in json.loads(file.read_text("utf-8"))} == expected
