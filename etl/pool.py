"""Work in processes of their own, so that no file can break the run.

A worker that dies or hangs is replaced, and the file it was at is blamed; pebble sees to that.
"""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count, islice
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Generic, TypeVar

from pebble import ProcessExpired, ProcessPool

from core.errors import AudioError, MurmurError

T = TypeVar("T")
A = TypeVar("A")
R = TypeVar("R")

ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "NUMBA")}
"""A worker is one of many; numpy and numba read this when they are imported."""
_NO_WORKERS = "the worker processes do not stay alive; set `workers: 1` and run the same command again"
_SUSPECT = "play it to check; if it plays, convert it to WAV or FLAC"


@dataclass(frozen=True, slots=True)
class Task(Generic[T, A]):
    """Something for a worker to do."""

    about: T
    """Stays in this process and comes back with the result."""
    argument: A
    """Goes to the worker."""
    seconds: float
    """After so long the worker is ended."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a task has no result. The next try gives the same, so there are no pids and times in it."""

    stage: str
    error: str
    """Class of the error."""
    message: str
    advice: str


def run_tasks(
    function: Callable[[A], R],
    tasks: Iterable[Task[T, A]],
    *,
    workers: int,
    stage: str,
    prepare: Callable[[], None] | None = None,
) -> Generator[tuple[T, R | Trouble], None, None]:
    """Do tasks in worker processes and yield the results as they come.

    Parameters
    ----------
    function : callable
        What a worker does with a task's argument. Its module must not import numpy: in a worker
        that is done by `function` and `prepare`, after numpy has been told to use one thread.
    tasks : iterable of Task
        Read as workers become free.
    workers : int
        Number of processes.
    stage : str
        Names the step in a `Trouble` whose error does not name it.
    prepare : callable, optional
        Called once in each worker before its first task.

    Raises
    ------
    MurmurError
        If the workers do not even start.
    """
    tasks = iter(tasks)
    running: dict[Future[R | Trouble], T] = {}
    with _kernel_cache() as cache:
        pool = ProcessPool(workers, initializer=_begin, initargs=(cache, prepare), context=get_context("spawn"))
        try:
            while True:
                for task in islice(tasks, 2 * workers - len(running)):
                    running[_schedule(pool, function, task, stage)] = task.about
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), _result(future, stage)
        finally:
            pool.stop()  # type: ignore[no-untyped-call]  # pebble leaves it untyped
            pool.join()


def default_workers() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _schedule(pool: ProcessPool, function: Callable[[A], R], task: Task[T, A], stage: str) -> Future[R | Trouble]:
    try:
        return pool.schedule(_attempt, (function, task.argument, stage), timeout=task.seconds)
    except RuntimeError as error:
        raise MurmurError(_NO_WORKERS) from error


def _begin(cache: str, prepare: Callable[[], None] | None) -> None:
    os.environ.update(ONE_THREAD)
    os.environ.setdefault("NUMBA_CACHE_DIR", _own_folder(cache))
    if prepare:
        prepare()


def _own_folder(cache: str) -> str:
    """Take a folder of the cache for as long as this process lives.

    Where two processes compile into one folder at once, numba's index may name the wrong code, and every later process
    that loads it crashes.
    """
    for number in count():
        folder = Path(cache, str(number))
        folder.mkdir(exist_ok=True)
        lease = os.open(folder / "lease", os.O_WRONLY | os.O_CREAT)
        with suppress(BlockingIOError):
            fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return str(folder)
        os.close(lease)
    raise AssertionError("unreachable")


def _attempt(function: Callable[[A], R], argument: A, stage: str) -> R | Trouble:
    try:
        return function(argument)
    except AudioError as error:
        return Trouble(error.stage, type(error).__name__, str(error), error.advice)
    except Exception as error:  # noqa: BLE001  # whatever a library raises over a strange file is that file's failure
        message = " ".join(str(error).split()) or "no message"
        return Trouble(stage, type(error).__name__, message, _SUSPECT)


def _result(future: Future[R | Trouble], stage: str) -> R | Trouble:
    try:
        return future.result()
    except TimeoutError as error:
        return Trouble(stage, "TimeoutError", f"took longer than {error.args[-1]:.0f} s", _SUSPECT)
    except ProcessExpired as error:
        code = error.exitcode or 0
        how = signal.strsignal(-code) if code < 0 else f"exit code {code}"
        advice = "set `workers` lower if memory was short" if code == -signal.SIGKILL else _SUSPECT
        return Trouble(stage, "ProcessExpired", f"its worker process died: {how}", advice)
    except BrokenProcessPool as error:
        raise MurmurError(_NO_WORKERS) from error


@contextmanager
def _kernel_cache() -> Iterator[str]:
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
