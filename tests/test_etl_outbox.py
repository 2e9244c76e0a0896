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
from etl.worker import Trouble

NAMES = Names()
FILE = AudioFile("/music/a.mp3", "/music/a.mp3", 10, 20)
TROUBLE = Trouble("decode", "AudioError", "holds no audio", "leave it out")


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Bus]:
    with closing(open_bus(f"sqlite:///{tmp_path}/murmur.db")) as bus:
        bus.create_topics(Topics().of_tracks())
        yield bus


def report(bus: Bus, *known: Failure) -> Outbox:
    """Report the failure of the file."""
    outbox = Outbox(bus.producer(), NAMES, {failure.key: failure for failure in known}, "set 1")
    outbox.failure(FILE, TROUBLE)
    outbox.close()
    assert outbox.failed ^ outbox.failed_again == {FILE.path}
    return outbox


def fail(bus: Bus, *known: Failure) -> Failure | None:
    """Report the failure of the file; return what was sent, None if nothing was."""
    if not report(bus, *known).sent:
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


def test_what_is_known_of_a_file_is_known_after_a_retry_too_and_the_retry_is_over(bus: Bus) -> None:
    failure = fail(bus)
    assert failure
    again = report(bus, failure.model_copy(update={"retry": True, "rev": failure.rev + 1}))
    assert (again.failed_again, again.sent) == ({FILE.path}, 1)
    *_, message = read_to_end(bus, [NAMES.failed])
    sent = Failure.from_json(message.value or b"")
    assert (sent.retry, sent.attempts, sent.rev > failure.rev + 1) == (False, 2, True)
    other = report(bus, failure.model_copy(update={"retry": True, "message": "too short"}))
    assert (other.failed, other.sent) == ({FILE.path}, 1)


@pytest.mark.parametrize(
    "before",
    [
        {"size": 11},
        {"mtime_ns": 21},
        {"feature_set": "set 0"},
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
