"""How much memory the workers may take together."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from core.config import Config

SHARE = 0.8
"""Of what there is; the rest is for this process and the system."""


def memory_budget(config: Config) -> int:
    """Return the bytes that all workers together may take: the config's, else most of what there is."""
    return config.memory or int(SHARE * available_memory())


def available_memory(root: Path = Path("/")) -> int:
    """Return the memory of the machine, bytes, or what the control groups of this process leave of it.

    Parameters
    ----------
    root : Path
        Where ``proc`` and ``sys`` are.
    """
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(machine, *_limits(root), machine)


def _limits(root: Path) -> Iterator[int]:
    """Yield the limits of this process's control groups, of version 2 and 1, and of the groups that these are in."""
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            group = root / "sys/fs/cgroup" / ("memory" if controllers else "")
            for part in ("", *path.strip("/").split("/")):  # in a container only the outermost may be there
                group /= part
                yield from _limits_of(group)


def _limits_of(group: Path) -> Iterator[int]:
    for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # "max" is none
            yield int((group / name).read_text())
