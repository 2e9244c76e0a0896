"""Where an extraction reads the files: in processes of this machine, or on the executors of a Spark cluster."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from core.config import Config
from etl.pool import Task, run_tasks
from etl.worker import Trouble

T = TypeVar("T")
A = TypeVar("A")
R = TypeVar("R")

EngineName = Literal["local", "spark"]


class RunTasks(Protocol):
    """What `etl.pool.run_tasks` is; its promises are there."""

    def __call__(
        self,
        function: Callable[[A], R],
        tasks: Iterable[Task[T, A]],
        *,
        workers: int,
        stage: str,
        memory: float = math.inf,
        prepare: Callable[[], None] | None = None,
    ) -> Generator[tuple[T, R | Trouble], None, None]:
        """Do tasks and yield the results as they come."""


@dataclass(frozen=True, slots=True)
class Engine:
    """Does the work."""

    run_tasks: RunTasks
    delivers: bool
    """Whether tracks are on the bus already when they come back; their features stay away then."""


@contextmanager
def open_engine(name: EngineName, config: Config, audio_dir: Path) -> Iterator[Engine]:
    """Open what does the work.

    Parameters
    ----------
    name : str
        ``'local'`` or ``'spark'``.
    config : Config
        Sections `bus`, `spark` and `topics`, and `memory`.
    audio_dir : Path
        The folder, which is to be there wherever files are read.

    Raises
    ------
    ConfigError
        If it is Spark and its executors could not reach the bus.
    BackendError
        If it is Spark and there is no Java for it, or Spark fails at any time while it is open.
    """
    if name == "local":
        yield Engine(run_tasks, delivers=False)
        return

    from etl.spark import open_spark_engine

    with open_spark_engine(config, audio_dir) as engine:
        yield engine
