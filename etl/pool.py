"""Work in processes of their own, so that no file can break the run.

Each worker has a pipe to this process and shares nothing else: whatever kills one, it is known which task it was at,
the others notice nothing, and a new one takes its place.
"""

from __future__ import annotations

import ctypes
import fcntl
import math
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import median_low
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any, Generic, TypeVar

from core.errors import AudioError, MurmurError

T = TypeVar("T")
A = TypeVar("A")
R = TypeVar("R")

ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "NUMBA")}
"""A worker is one of many; numpy and numba read this when they are imported."""
BASE = 400 << 20
"""Bytes of a worker beside its task: libraries, compiled functions, tables, and what is kept for the next task.

Measured: 145 to 165 MB once it is ready, 240 to 290 MB if it had to compile; 170 to 300 MB between tasks.
"""
GROWTH = 192 << 20
"""Bytes by which a worker may have grown since it was ready; one that has grown by more, beyond `BASE`, is replaced."""
START = 600.0
"""Seconds a worker may take until it is ready: the first compiles what the others load."""

_NO_WORKERS = "the worker processes do not stay alive; set `workers: 1` and run the same command again"
_SUSPECT = "play it to check; if it plays, convert it to WAV or FLAC"
_LARGE = "set `audio.max_duration` lower, `workers` lower, or `memory` higher"
_SHORT = "if memory was short, set `workers` or `audio.max_duration` lower"
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Task(Generic[T, A]):
    """Something for a worker to do."""

    about: T
    """Stays in this process and comes back with the result."""
    argument: A
    """Goes to the worker."""
    seconds: float
    """After so long the worker is ended."""
    memory: int = 0
    """Bytes that it needs at most, beside what a worker always needs."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a task has no result. The next try gives the same, so there are no pids and times in it."""

    stage: str
    error: str
    """Class of the error."""
    message: str
    advice: str


Ended = tuple[Any, Any]
"""What a task is about, and its result or `Trouble`."""


def run_tasks(
    function: Callable[[A], R],
    tasks: Iterable[Task[T, A]],
    *,
    workers: int,
    stage: str,
    memory: float = math.inf,
    prepare: Callable[[], None] | None = None,
) -> Generator[tuple[T, R | Trouble], None, None]:
    """Do tasks in worker processes and yield the results as they come.

    A task is begun when all that are under way fit into the memory together; one that does not fit alone is a
    `Trouble` and never begun. One whose worker dies is done once more, alone: then it is to blame. Interrupted, it
    yields what is finished, and ends the workers at once.

    Parameters
    ----------
    function : callable
        What a worker does with a task's argument. Its module must not import numpy: in a worker
        that is done by `function` and `prepare`, after numpy has been told to use one thread.
    tasks : iterable of Task
        Begun in this order, and read as workers become free: the longest first, so that none is left to wait for.
    workers : int
        Number of processes.
    stage : str
        Names the step in a `Trouble` whose error does not name it.
    memory : float
        Bytes for all workers together.
    prepare : callable, optional
        Called once in each worker before its first task.

    Raises
    ------
    MurmurError
        If the workers do not even start.
    """
    with open_crew(function, workers=workers, stage=stage, memory=memory, prepare=prepare) as crew:
        yield from crew.run(tasks)


@contextmanager
def open_crew(
    function: Callable[[A], R],
    *,
    workers: int,
    stage: str,
    memory: float = math.inf,
    prepare: Callable[[], None] | None = None,
) -> Iterator[Crew[A, R]]:
    """Open what runs tasks, to run one lot after the other in the same workers; see `run_tasks`."""
    with _kernel_cache() as cache:
        serve = partial(_serve, function, prepare, stage, cache)
        with closing(Crew[A, R](serve, workers, memory - workers * BASE, stage)) as crew:
            yield crew


def default_workers() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fitting_workers(workers: int, memory: int, needs: Sequence[int]) -> int:
    """Return how many of the workers a budget allows: the largest task has room, and typical ones run side by side.

    Parameters
    ----------
    workers : int
        As many as are wanted.
    memory : int
        Bytes for all of them together.
    needs : sequence of int
        Bytes that each task needs.
    """
    possible = [need for need in needs if need <= memory - BASE] or [0]
    fitting = min((memory - max(possible)) // BASE, memory // (BASE + median_low(possible)))
    return max(1, min(workers, fitting))


@dataclass(frozen=True, slots=True)
class _Job:
    task: Task[Any, Any]
    again: bool = False
    """Whether the worker that was at it has died; nothing else is begun beside it then."""


@dataclass(slots=True, eq=False)
class _Worker:
    process: BaseProcess
    pipe: Connection
    deadline: float
    """When it is ended, on the monotonic clock."""
    held: int | None = None
    """Bytes that it held when it was ready; None until then."""
    job: _Job | None = None


class Crew(Generic[A, R]):
    """The workers there are, what each is at, and what is to be done; opened by `open_crew`.

    Parameters
    ----------
    serve : callable
        What a worker does.
    size : int
        Number of workers.
    room : float
        Bytes for the tasks that are under way.
    stage : str
        Names it in a `Trouble`.
    """

    def __init__(self, serve: Callable[[Connection], None], size: int, room: float, stage: str) -> None:
        self._interrupted = False
        self._serve, self._size, self._room, self._stage = serve, size, room, stage
        self._coming: Iterator[_Job] = iter(())
        self._todo: deque[_Job] = deque()
        self._workers: list[_Worker] = []
        self._stillborn = 0

    def run(self, tasks: Iterable[Task[T, A]]) -> Generator[tuple[T, R | Trouble], None, None]:
        """Do tasks and yield the results as they come, as `run_tasks` does."""
        self._coming = map(_Job, tasks)
        self._todo.extend(islice(self._coming, 1))
        ended: list[Ended] = []
        while True:
            try:
                ended += self._begin()  # before the results are dealt with: that may take its time
            except KeyboardInterrupt:
                self._interrupted = True
            yield from ended
            if self._interrupted:
                raise KeyboardInterrupt
            if not self._todo and not self._under_way:
                return
            ended = self._news()

    def close(self) -> None:
        """End all workers, whatever they are at."""
        for worker in self._workers:
            worker.process.kill()
        while self._workers:
            self._end(self._workers[-1])

    @property
    def _under_way(self) -> list[_Job]:
        return [worker.job for worker in self._workers if worker.job]

    def _begin(self) -> list[Ended]:
        """Begin tasks as far as workers and memory are free; return those that are too large ever to begin."""
        refused: list[Ended] = []
        while self._todo and not self._interrupted:
            task = self._todo[0].task
            if task.memory > self._room:
                refused.append((task.about, self._too_large(task)))
            elif not self._give(self._todo[0]):
                break
            self._todo.popleft()
            self._todo.extend(islice(self._coming, 0 if self._todo else 1))
        return refused

    def _news(self) -> list[Ended]:
        """Wait until something happens; return the tasks that ended by it."""
        pipes = [worker.pipe for worker in self._workers]
        patience = min(worker.deadline for worker in self._workers) - time.monotonic()
        try:
            ready = wait(pipes, None if patience == math.inf else max(0.0, patience))
        except KeyboardInterrupt:
            self._interrupted, ready = True, wait(pipes, 0)
        ended: list[Ended] = []
        for worker in [*self._workers]:
            if worker.pipe in ready:
                ended += self._hear(worker)
            elif time.monotonic() > worker.deadline:
                ended += self._give_up(worker)
        return ended

    def _give(self, job: _Job) -> bool:
        """Give a job to a free worker if it fits beside the others; return whether it did."""
        while len(self._workers) < self._size:
            self._workers.append(_start(self._serve))
        others = [other.task.memory for other in self._under_way]
        if (others and job.again) or sum(others) + job.task.memory > self._room:
            return False
        free = next((worker for worker in self._workers if worker.held is not None and not worker.job), None)
        if free:
            free.job, free.deadline = job, time.monotonic() + job.task.seconds
            with suppress(OSError):  # it has died, as its pipe will tell
                free.pipe.send(job.task.argument)
        return free is not None

    def _hear(self, worker: _Worker) -> list[Ended]:
        try:
            answer, held = worker.pipe.recv()
        except (EOFError, OSError):
            return self._bury(worker)
        job, worker.job, worker.deadline = worker.job, None, math.inf
        if worker.held is None:
            worker.held, self._stillborn = held, 0
        elif held > max(BASE, worker.held + GROWTH):
            self._end(worker)
        return [(job.task.about, answer)] if job else []

    def _bury(self, worker: _Worker) -> list[Ended]:
        """See how a worker died, and have its task done once more, or else blame it."""
        code = self._end(worker, patience=5.0)
        if not worker.job:
            self._note_failed_start(worker)
        elif not worker.job.again:
            self._todo.appendleft(_Job(worker.job.task, again=True))
        else:
            return [(worker.job.task.about, _death(code, self._stage))]
        return []

    def _give_up(self, worker: _Worker) -> list[Ended]:
        self._end(worker)
        if not worker.job:
            self._note_failed_start(worker)
            return []
        task = worker.job.task
        return [(task.about, Trouble(self._stage, "TimeoutError", f"took longer than {task.seconds:.0f} s", _SUSPECT))]

    def _too_large(self, task: Task[Any, Any]) -> Trouble:
        need, room = (f"{n_bytes / 2**20:,.0f} MiB" for n_bytes in (task.memory, self._room))
        return Trouble(self._stage, "MemoryError", f"needs about {need} of memory where {room} are left for it", _LARGE)

    def _note_failed_start(self, worker: _Worker) -> None:
        if worker.held is None:
            self._stillborn += 1
            if self._stillborn > self._size + 1:
                raise MurmurError(_NO_WORKERS)

    def _end(self, worker: _Worker, patience: float = 0.0) -> int:
        """End a worker that does not end by itself; return its exit code."""
        worker.process.join(patience)
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()
        self._workers.remove(worker)
        return worker.process.exitcode or 0


def _start(serve: Callable[[Connection], None]) -> _Worker:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs,), daemon=True)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # a child inherits it: Ctrl-C is ours
    try:
        process.start()
    except OSError as error:
        raise MurmurError(_NO_WORKERS) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
    return _Worker(process, ours, time.monotonic() + START)


def _serve(
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


def _death(code: int, stage: str) -> Trouble:
    how = signal.strsignal(-code) if code < 0 else f"exit code {code}"
    advice = _SHORT if code == -signal.SIGKILL else _SUSPECT
    return Trouble(stage, "WorkerDied", f"its worker process died: {how}", advice)


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
