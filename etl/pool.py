"""Work in processes of their own, so that no file can break the run.

Each worker has a pipe to this process and shares nothing else: whatever kills one, it is known which task it was at,
the others notice nothing, and a new one takes its place.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from statistics import median_low
from threading import current_thread, main_thread
from typing import Any, Generic, TypeVar

from core.errors import PLAY_AND_CONVERT, MurmurError
from etl.worker import TOO_LARGE, Trouble, kernel_cache, serve

T = TypeVar("T")
A = TypeVar("A")
R = TypeVar("R")

BASE = 400 << 20
"""Bytes of a worker beside its task: libraries, compiled functions, tables, and what is kept for the next task.

Measured: 145 to 165 MB once it is ready, 240 to 290 MB if it had to compile; 170 to 300 MB between tasks.
"""
GROWTH = 192 << 20
"""Bytes by which a worker may have grown since it was ready; one that has grown by more, beyond `BASE`, is replaced."""
START = 600.0
"""Seconds a worker may take until it is ready: the first compiles what the others load."""
TICK = 0.2
"""Seconds after which a wait looks whether there was a Ctrl-C."""

_KILLED = "if memory was short, set `workers` or `audio.max_duration` lower; then `murmur failures retry`"
_SLOW = "play it to check; if it plays and the disk was slow, `murmur failures retry`"


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
    `Trouble` and never begun. One whose worker dies is done once more, alone: then it is to blame. A Ctrl-C or SIGTERM,
    where these raise KeyboardInterrupt, waits for the consumer of the results, which gets what is finished first; a
    second one does not wait.

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
    with kernel_cache() as cache:
        begin = partial(serve, function, prepare, stage, cache)
        with closing(Crew[A, R](begin, workers, memory, stage)) as crew:
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
    memory : float
        Bytes for all workers together.
    stage : str
        Names it in a `Trouble`.
    """

    def __init__(self, serve: Callable[[Connection], None], size: int, memory: float, stage: str) -> None:
        self._serve, self._size, self._stage = serve, size, stage
        self._room = memory - size * BASE
        self._most = memory - BASE
        self._interrupted = False
        self._coming: Iterator[_Job] = iter(())
        self._todo: deque[_Job] = deque()
        self._workers: list[_Worker] = []
        self._stillborn = 0

    def run(self, tasks: Iterable[Task[T, A]]) -> Generator[tuple[T, R | Trouble], None, None]:
        """Do tasks and yield the results as they come, as `run_tasks` does."""
        self._coming = map(_Job, tasks)
        self._todo.extend(islice(self._coming, 1))
        ended: list[Ended] = []
        try:
            with self._interrupts_noted():
                while not self._interrupted:
                    ended += self._begin()  # before the results are dealt with: that may take its time
                    yield from ended
                    if not self._todo and not self._under_way:
                        return
                    ended = self._news()
                yield from [*ended, *self._news()]
                raise KeyboardInterrupt
        finally:
            self._todo.clear()
            for worker in [worker for worker in self._workers if worker.job]:
                self._end(worker)

    def close(self) -> None:
        """End all workers, whatever they are at."""
        for worker in self._workers:
            worker.process.kill()
        while self._workers:
            self._end(self._workers[-1])

    @contextmanager
    def _interrupts_noted(self) -> Iterator[None]:
        """Take note of signals that would raise KeyboardInterrupt, wherever that might be; a second one raises it."""

        def note(*_: object) -> None:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True

        self._interrupted = False
        noted = [number for number in (signal.SIGINT, signal.SIGTERM) if _interrupts(number)]
        for number in noted:
            signal.signal(number, note)
        try:
            yield
        finally:
            for number in noted:
                signal.signal(number, signal.default_int_handler)

    @property
    def _under_way(self) -> list[_Job]:
        return [worker.job for worker in self._workers if worker.job]

    def _begin(self) -> list[Ended]:
        """Begin tasks as far as workers and memory are free; return those that are too large ever to begin."""
        refused: list[Ended] = []
        while self._todo:
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
        ready = wait(pipes, max(0.0, min(patience, TICK)))
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
        others = self._under_way
        alone = job.again or any(other.again for other in others)
        if (others and alone) or sum(other.task.memory for other in others) + job.task.memory > self._room:
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
            self._note_failed_start(worker, _how(code))
        elif not worker.job.again:
            self._todo.appendleft(_Job(worker.job.task, again=True))
        else:
            return [(worker.job.task.about, _death(code, self._stage))]
        return []

    def _give_up(self, worker: _Worker) -> list[Ended]:
        self._end(worker)
        if not worker.job:
            self._note_failed_start(worker, f"not ready after {START:.0f} s")
            return []
        task = worker.job.task
        return [(task.about, Trouble(self._stage, "TimeoutError", f"took longer than {task.seconds:.0f} s", _SLOW))]

    def _too_large(self, task: Task[Any, Any]) -> Trouble:
        need, room = (f"{n_bytes / 2**20:,.0f} MiB" for n_bytes in (task.memory, self._most))
        return Trouble(
            self._stage, "MemoryError", f"needs about {need} of memory where {room} are left for it", TOO_LARGE
        )

    def _note_failed_start(self, worker: _Worker, how: str) -> None:
        if worker.held is None:
            self._stillborn += 1
            if self._stillborn > self._size + 1:
                raise _no_workers(how)

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
    resource_tracker.ensure_running()  # it would be started below, and end the block
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs,), daemon=True)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # a child inherits it: Ctrl-C is ours
    try:
        process.start()
    except OSError as error:
        raise _no_workers(str(error)) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
    return _Worker(process, ours, time.monotonic() + START)


def _death(code: int, stage: str) -> Trouble:
    advice = _KILLED if code == -signal.SIGKILL else PLAY_AND_CONVERT
    return Trouble(stage, "WorkerDied", f"its worker process died: {_how(code)}", advice)


def _how(code: int) -> str:
    return (signal.strsignal(-code) or f"signal {-code}") if code < 0 else f"exit code {code}"


def _no_workers(how: str) -> MurmurError:
    return MurmurError(f"the worker processes do not start: {how}; if memory is short, set `workers` lower")


def _interrupts(number: int) -> bool:
    """Return whether a signal raises KeyboardInterrupt here."""
    return current_thread() is main_thread() and signal.getsignal(number) is signal.default_int_handler
