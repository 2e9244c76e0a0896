from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from core import open_bus
from core.bus import Bus, read_to_end
from core.config import Topics
from core.names import Names
from core.records import Failure
from etl.folders import AudioFile
from etl.outbox import Outbox
from etl.pool import Trouble

NAMES = Names()
FILE = AudioFile("/music/a.mp3", "/music/a.mp3", 10, 20)
TROUBLE = Trouble("decode", "AudioError", "holds no audio", "leave it out")


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Bus]:
    with closing(open_bus(f"sqlite:///{tmp_path}/murmur.db")) as bus:
        bus.create_topics(Topics().of_tracks())
        yield bus


def fail(bus: Bus, *known: Failure, file: AudioFile = FILE, feature_set: str = "set 1") -> Failure | None:
    """Report the failure of a file; return what was sent, None if it was known."""
    outbox = Outbox(bus.producer(), NAMES, {failure.key: failure for failure in known}, feature_set)
    outbox.failure(file, TROUBLE)
    outbox.close()
    assert outbox.failed ^ outbox.failed_again == {file.path}
    if not outbox.failed:
        assert outbox.sent == 0
        return None
    *_, message = read_to_end(bus, [NAMES.failed])
    return Failure.from_json(message.value or b"")


def test_a_failure_tells_of_the_file_and_of_what_was_wanted(bus: Bus) -> None:
    failure = fail(bus)
    assert failure
    assert (failure.path, failure.size, failure.mtime_ns, failure.feature_set) == (FILE.path, 10, 20, "set 1")
    assert (failure.stage, failure.error, failure.message, failure.advice) == (
        TROUBLE.stage,
        TROUBLE.error,
        TROUBLE.message,
        TROUBLE.advice,
    )
    assert (failure.attempts, failure.retry) == (1, False)


def test_the_same_failure_of_the_same_file_is_not_sent_again(bus: Bus) -> None:
    failure = fail(bus)
    assert failure
    assert fail(bus, failure.model_copy(update={"rev": 5, "attempts": 3, "failed_at": "then"})) is None


@pytest.mark.parametrize(
    "before",
    [
        {"size": 11},
        {"mtime_ns": 21},
        {"feature_set": "set 0"},
        {"retry": True},
        {"message": "too short"},
        {"size": None, "mtime_ns": None, "feature_set": None},
    ],
)
def test_any_other_failure_is_sent_with_one_more_attempt_and_a_higher_rev(bus: Bus, before: dict[str, object]) -> None:
    """So that the next run remembers this one; also where a record has no such fields yet."""
    failure = fail(bus)
    assert failure
    again = fail(bus, failure.model_copy(update=before))
    assert again
    assert again.rev > failure.rev
    assert (again.attempts, again.retry) == (2, False)
    assert fail(bus, again) is None
