"""What an extraction sends, and what it need not send again."""

from __future__ import annotations

import logging
import time

from core.bus import Producer
from core.names import Names, path_digest, utc_now
from core.records import Failure, Track, next_rev
from etl.folders import AudioFile
from etl.messages import send, send_tombstone
from etl.worker import Trouble

log = logging.getLogger(__name__)

FLUSH_SECONDS = 1.0
"""How much finished work a killed run may lose."""
TOLD_ANEW = {"rev", "attempts", "failed_at", "retry"}
"""What of a `Failure` differs at each try, although nothing has changed."""


class Outbox:
    """Sends what was found, and flushes every second.

    Parameters
    ----------
    producer : Producer
        Closed by `close`.
    names : Names
        The topics.
    failures : dict of str to Failure
        The failures that are known, by path digest.
    feature_set : str
        The features that are wanted: a failure is one of them.
    """

    def __init__(self, producer: Producer, names: Names, failures: dict[str, Failure], feature_set: str) -> None:
        self.sent = 0
        self.failed: set[str] = set()
        """Paths of files that failed, without `failed_again`."""
        self.failed_again: set[str] = set()
        """Paths of files that are as they were, and failed as they had failed before."""
        self._producer = producer
        self._names = names
        self._failures = dict(failures)
        self._feature_set = feature_set
        self._flushed = time.monotonic()

    def track(self, track: Track, *, delivered: bool = False) -> None:
        """Send a track, unless it was delivered by who made it, and the end of what failures its files had."""
        if not delivered:
            send(self._producer, self._names.tracks, track)
        log.debug("%s: %s", track.track_id, track.source.path)
        self._count()
        for file in (track.source, *track.copies):
            self.mended(file.path)

    def delete(self, track_id: str, rev: int) -> None:
        """Send the tombstone of a track whose latest revision is `rev`."""
        send_tombstone(self._producer, self._names.tracks, Track, track_id, next_rev(rev))
        self._count()

    def failure(self, file: AudioFile, trouble: Trouble) -> None:
        """Send a failure, unless the same is known of the same file and no retry was asked for."""
        key = path_digest(file.path)
        before = self._failures.get(key)
        failure = Failure(
            rev=next_rev(before.rev if before else 0),
            path_digest=key,
            path=file.path,
            stage=trouble.stage,
            error=trouble.error,
            message=trouble.message,
            advice=trouble.advice,
            attempts=before.attempts + 1 if before else 1,
            failed_at=utc_now(),
            size=file.size,
            mtime_ns=file.mtime_ns,
            feature_set=self._feature_set,
        )
        again = before is not None and failure.model_copy(update=before.model_dump(include=TOLD_ANEW)) == before
        (self.failed_again if again else self.failed).add(file.path)
        if not again or (before and before.retry):
            send(self._producer, self._names.failed, failure)
            self._count()

    def mended(self, path: str) -> None:
        """Send the tombstone of a file's failure, if it had one."""
        if self._failures and (failure := self._failures.pop(path_digest(path), None)):
            send_tombstone(self._producer, self._names.failed, Failure, failure.key, next_rev(failure.rev))
            self._count()

    def close(self) -> None:
        """Flush, and close the producer."""
        try:
            self._producer.flush()
        finally:
            self._producer.close()

    def _count(self) -> None:
        self.sent += 1
        if time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self._producer.flush()
            self._flushed = time.monotonic()
