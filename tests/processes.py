"""Programs that tests start, and that end with the test whatever happens."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from typing import Any


@contextmanager
def running(*command: str | Path, seconds: float, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a program, for so long at most, so that a test cannot wait for ever."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)
    guard = Timer(seconds, process.kill)
    guard.start()
    try:
        yield process
    finally:
        guard.cancel()
        process.kill()
        process.communicate()
