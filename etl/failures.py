"""The files that could not be read: which there are, and asking for another try."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from core.bus import Bus
from core.config import Config
from core.errors import ConfigError
from core.jobs import Report
from core.names import Names, path_text
from core.records import Failure, next_rev
from core.store import Store
from etl.known import read_failures
from etl.messages import create_topics, send


@dataclass(frozen=True, slots=True)
class RetryReport(Report):
    """What was marked: `read` counts the failures that were meant, `unchanged` those of them marked before."""

    paths: tuple[str, ...] = ()
    """The files that are tried again by the next extraction of their folder."""


def failures(config: Config, *, store: Store, bus: Bus) -> list[Failure]:
    """Return every failure that is not mended, loaded or not yet, in order of their paths."""
    return read_failures(Names(config.topics.prefix), store=store, bus=bus)


def matching(found: Sequence[Failure], texts: Sequence[str]) -> list[Failure]:
    """Return the failures of files whose path contains one of the texts; of a text that is a path, its absolute form.

    Raises
    ------
    ConfigError
        If a text is in no path.
    """
    texts = [path_text(os.path.abspath(text)) if os.path.lexists(text) else text for text in texts]  # noqa: PTH100
    for text in texts:
        if not any(text in failure.path for failure in found):
            raise ConfigError(f"{text}: no failure of such a file; `murmur failures` lists them")
    return [failure for failure in found if any(text in failure.path for text in texts)]


def retry(config: Config, texts: Sequence[str] = (), *, store: Store, bus: Bus) -> RetryReport:
    """Have files tried again that failed, although neither they nor the features have changed.

    Reads the failures as `failures` does; sends each of them with the mark `retry`, which ends with the next try. Run
    twice, it sends nothing the second time.

    Parameters
    ----------
    config : Config
        Section `topics`.
    texts : sequence of str
        Parts of paths, as `matching` takes them; none: all failures.
    store, bus
        Where the failures are read; they are sent to the bus.

    Raises
    ------
    ConfigError
        If a text is in no path of a failure; nothing is marked then.
    BackendError
        If the store or the bus fails.
    """
    started = time.monotonic()
    names = create_topics(bus, config)
    found = failures(config, store=store, bus=bus)
    meant = matching(found, texts) if texts else found
    unmarked = [failure for failure in meant if not failure.retry]
    with closing(bus.producer()) as producer:
        for failure in unmarked:
            marked = failure.model_copy(update={"rev": next_rev(failure.rev), "retry": True})
            send(producer, names.failed, marked)
        producer.flush()
    return RetryReport(
        read=len(meant),
        unchanged=len(meant) - len(unmarked),
        sent=len(unmarked),
        seconds=time.monotonic() - started,
        paths=tuple(failure.path for failure in meant),
    )
