"""A worker of the pool: what runs in its process."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import TypeVar

from core.errors import PLAY_AND_CONVERT, AudioError, MurmurError

A = TypeVar("A")
R = TypeVar("R")

ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "NUMBA")}
"""A worker is one of many; numpy and numba read this when they are imported."""
LEASES = 1000
"""Folders of compiled functions that are looked at for a free one."""
TOO_LARGE = "set `audio.max_duration` lower, or `memory` higher"
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a task has no result. The next try gives the same, so there are no pids and times in it."""

    stage: str
    error: str
    """Class of the error."""
    message: str
    advice: str


def serve(
    function: Callable[[A], R], prepare: Callable[[], None] | None, stage: str, cache: str, pipe: Connection
) -> None:
    """Work until the pipe closes."""
    _end_with_parent()
    os.environ.update(ONE_THREAD)
    os.environ.setdefault("NUMBA_CACHE_DIR", _own_folder(cache))
    if prepare:
        prepare()
    pipe.send((None, _held()))
    with suppress(EOFError):
        while True:
            result = _attempt(function, pipe.recv(), stage)
            pipe.send((result, _held()))


@contextmanager
def kernel_cache() -> Iterator[str]:
    """Give numba a folder to keep compiled functions in; it refuses to run where it finds none."""
    try:
        folder = Path.home() / ".cache" / "murmuration"
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except (OSError, RuntimeError):  # there is no home
        writable = False
    if writable:
        yield str(folder)
    else:
        with TemporaryDirectory() as temporary:
            yield temporary


def _end_with_parent() -> None:
    """End this process when its parent ends, whatever it is at: on Linux even in code that holds the interpreter."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    Thread(target=_outlive_parent, daemon=True).start()


def _outlive_parent() -> None:
    if parent := parent_process():
        parent.join()
    os._exit(1)


def _held() -> int:
    """Return the bytes that this process does not share; 0 where the system does not tell."""
    with suppress(OSError):
        resident, shared = Path("/proc/self/statm").read_text().split()[1:3]
        return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _own_folder(cache: str) -> str:
    """Take a folder of the cache for as long as this process lives.

    Where two processes compile into one folder at once, numba's index may name the wrong code, and every later process
    that loads it crashes.
    """
    for number in range(LEASES):
        folder = Path(cache, str(number))
        with suppress(PermissionError):  # another user's
            folder.mkdir(exist_ok=True)
            lease = os.open(folder / "lease", os.O_WRONLY | os.O_CREAT)
            with suppress(BlockingIOError):
                fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return str(folder)
            os.close(lease)
    raise MurmurError(f"{cache}: no folder that is free and may be written to; remove it")


def _attempt(function: Callable[[A], R], argument: A, stage: str) -> R | Trouble:
    try:
        return function(argument)
    except AudioError as error:
        return Trouble(error.stage, type(error).__name__, str(error), error.advice)
    except MemoryError:
        return Trouble(stage, "MemoryError", "there was not enough memory", TOO_LARGE)
    except Exception as error:  # noqa: BLE001  # whatever a library raises over a strange file is that file's failure
        message = " ".join(str(error).split()) or "no message"
        return Trouble(stage, type(error).__name__, message, PLAY_AND_CONVERT)
