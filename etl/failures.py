"""The files that could not be read."""

from __future__ import annotations

from collections.abc import Iterator

from core.records import Failure
from core.store import Store


def failures(store: Store) -> Iterator[Failure]:
    """Yield every failure that is loaded and not mended, in order of its key."""
    return map(Failure.from_document, store.scan(Failure))
