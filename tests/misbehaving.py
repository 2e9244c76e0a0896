"""The command, with a decoder that misbehaves over files of certain names: ``python tests/misbehaving.py run FOLDER``.

No file is known that kills or hangs today's decoders. So what a worker does with a file is wrapped; the workers, the
signals and the time that passes are real.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.main import program
from core.records import Track
from etl import extract, work
from etl.pool import Task
from etl.work import Work

if TYPE_CHECKING:
    from features.identity import Probe

IDENTIFY, DESCRIBE = extract.identify, extract.describe


def identify(path: str) -> Probe:
    misbehave("reader", path)
    return IDENTIFY(path)


def describe(todo: Work) -> list[Track]:
    path = todo.drafts[0].file.real
    misbehave("decoder", path)
    if "shrinks" in path:
        shrink_after_the_first_block(path)
    return DESCRIBE(todo)


def misbehave(who: str, path: str) -> None:
    if f"kills its {who}" in path:
        os.kill(os.getpid(), signal.SIGSEGV)
    if f"never lets its {who} go" in path:
        signal.pause()


def shrink_after_the_first_block(path: str) -> None:
    import soundfile

    read = soundfile.SoundFile.read

    def read_and_shrink(self: Any, *arguments: Any, **options: Any) -> Any:
        block = read(self, *arguments, **options)
        os.truncate(path, Path(path).stat().st_size // 2)
        soundfile.SoundFile.read = read
        return block

    soundfile.SoundFile.read = read_and_shrink


def task(about: Any, argument: Any, seconds: float, memory: int = 0) -> Task[Any, Any]:
    """Return a `Task`; of one that never ends, nobody has a minute to wait for it."""
    return Task(about, argument, 2.0 if "never lets" in str(about) else seconds, memory)


if __name__ == "__main__":
    extract.identify, extract.describe, work.Task = identify, describe, task
    program()
