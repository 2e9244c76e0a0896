"""Waiting for a connection that is broken, as long as it takes and without losing one's place."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from core.bus import Consumer
from core.errors import BackendError
from core.metrics import CONNECTION_FAILURES

log = logging.getLogger(__name__)

LONGEST_WAIT = 15.0
"""Seconds between two tries of a connection that is broken; the first is made after at most one."""
PATIENCE = 120.0
"""Seconds until a connection that stays broken is an error, unless the bus is followed."""


def patience(consumer: Consumer, until: Callable[[], bool] | None) -> Retrying:
    """Return what calls again where a connection is broken, the longer the later.

    The consumer goes back to its last commit and polls while it waits, so that it stays in its group.

    Parameters
    ----------
    consumer : Consumer
    until : callable, optional
        Call again until this is true, and then give None for an answer; without it for two minutes, and then raise.
    """

    def wait(seconds: float) -> None:
        deadline = time.monotonic() + seconds
        consumer.rewind()
        while (left := deadline - time.monotonic()) > 0 and not (until and until()):
            consumer.rewind(min(left, 1.0))

    def tell(state: RetryCallState) -> None:
        assert state.outcome is not None
        CONNECTION_FAILURES.inc()
        log.warning("%s: trying again", state.outcome.exception())

    return Retrying(
        retry=retry_if_exception(lambda error: isinstance(error, BackendError) and error.retriable),
        wait=wait_random_exponential(max=LONGEST_WAIT),
        stop=(lambda _: until()) if until else stop_after_delay(PATIENCE),
        retry_error_callback=(lambda _: None) if until else None,
        sleep=wait,
        before_sleep=tell,
        reraise=True,
    )
