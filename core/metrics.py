"""What a Prometheus can read of a job at work; the job counts, `cli/` opens the port."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import Counter, Gauge, Histogram

from core.bus import Bus, lags

MESSAGES_READ = Counter("murmur_messages_read_total", "Messages that were read from the bus and committed.")
RECORDS_WRITTEN = Counter("murmur_records_written_total", "Records that changed in the store.")
DEAD_LETTERS = Counter("murmur_dead_letters_total", "Messages that could not be loaded and became dead letters.")
CONNECTION_FAILURES = Counter("murmur_connection_failures_total", "Tries that a broken connection ended.")
BATCH_SECONDS = Histogram("murmur_batch_seconds", "Seconds from the messages of a batch to their commit.")
LAG = Gauge("murmur_lag_messages", "Messages that a group has not committed yet.", ["group", "topic"])

LAG_SECONDS = 5.0
"""Between two looks at a lag, for which the server must be asked."""


def count_batch(read: int, written: int, dead: int, seconds: float) -> None:
    """Count what became of a batch that is committed."""
    MESSAGES_READ.inc(read)
    RECORDS_WRITTEN.inc(written)
    DEAD_LETTERS.inc(dead)
    BATCH_SECONDS.observe(seconds)


def lag_watch(bus: Bus, group: str, topics: list[str]) -> Callable[[], None]:
    """Return what brings the lag of a group up to date, where the last look was not just now."""
    look_at = 0.0

    def look() -> None:
        nonlocal look_at
        if time.monotonic() < look_at:
            return
        for topic, messages in lags(bus, group, topics).items():
            LAG.labels(group, topic).set(messages)
        look_at = time.monotonic() + LAG_SECONDS

    return look
