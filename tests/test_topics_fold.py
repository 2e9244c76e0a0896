from __future__ import annotations

import pytest

from core.bus import Message
from core.records import Neighbour
from topics.fold import changes, fold


def message(key: bytes | None, value: bytes | None, rev: bytes | None = None) -> Message:
    return Message("t", 0, 7, key, value, (("rev", rev),) if rev else (), 0)


def near(score: float) -> bytes:
    return Neighbour(track_id="a", score=score).to_json()


def test_the_last_value_of_a_key_holds() -> None:
    assert fold([message(b"a", near(0.1)), message(b"b", near(0.2)), message(b"a", near(0.3))], Neighbour) == {
        "a": Neighbour(track_id="a", score=0.3),
        "b": Neighbour(track_id="a", score=0.2),
    }


def test_a_tombstone_removes_and_a_later_value_brings_back() -> None:
    gone = [message(b"a", near(0.1)), message(b"a", None)]
    assert fold(gone, Neighbour) == {}
    assert list(fold([*gone, message(b"a", near(0.2))], Neighbour)) == ["a"]


def test_a_tombstone_of_a_key_that_is_unknown_is_no_error() -> None:
    assert fold([message(b"a", None)], Neighbour) == {}


def test_the_revision_is_read_from_the_header_of_values_and_tombstones() -> None:
    found = changes([message(b"a", near(0.1), b"5"), message(b"a", None, b"6"), message(b"b", None)], Neighbour)
    assert [change.rev for change in found] == [5, 6, 0]


@pytest.mark.parametrize(
    "bad",
    [
        message(None, near(0.1)),
        message(b"\xff", near(0.1)),
        message(b"b", b""),
        message(b"b", b"[]"),
        message(b"b", b'{"track_id": "b", "score": NaN}'),
        message(b"b", near(0.1), b"later"),
    ],
)
def test_a_message_that_does_not_fit_is_skipped_with_its_place(bad: Message, caplog: pytest.LogCaptureFixture) -> None:
    assert list(fold([bad, message(b"a", near(0.1))], Neighbour)) == ["a"]
    assert "t, partition 0, offset 7: skipped" in caplog.text
