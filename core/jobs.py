"""What every job shares: how it tells its progress, and what it reports at its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is."""

    stage: str
    done: int
    total: int | None
    """None while it is unknown."""
    failed: int = 0


Watch = Callable[[Progress], None]


def ignore(_: Progress) -> None:
    """Watch nothing."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a job did."""

    read: int = 0
    """Records or files looked at."""
    written: int = 0
    """Records written to the store."""
    unchanged: int = 0
    """Records or files that were as they should be already."""
    failed: int = 0
    sent: int = 0
    """Messages sent to the bus."""
    seconds: float = 0.0
