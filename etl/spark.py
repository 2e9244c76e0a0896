"""An extraction on a Spark cluster: its executors run the workers of `etl.pool`, and send the tracks themselves."""

from __future__ import annotations

import math
import os
import pickle
import socket
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import pyarrow as pa
from pyspark import SparkContext, TaskContext
from pyspark.sql import Row, SparkSession

from core import open_bus
from core.bus import Producer
from core.config import Config, Location, Spark
from core.errors import ConfigError
from core.names import Names, path_text, sqlite_path
from core.spark import is_local, java_version, open_spark
from etl.engine import Engine
from etl.memory import memory_budget
from etl.messages import send
from etl.pool import Crew, Task, default_workers, open_crew
from etl.worker import Trouble

T = TypeVar("T")
A = TypeVar("A")
R = TypeVar("R")
Batches = Iterator[pa.RecordBatch]

SHARE = 16
"""Tasks that an executor takes at once and reports together: what is done again if it is lost on the way."""
JOBS = 3
"""Jobs of Spark under way: while one waits for its last share, the executors are at those of the next."""
LEAST_MEMORY = 512 << 20
"""Bytes without which a worker is not worth starting."""
OTHERWISE = "--engine local"
RESULTS = "number long, result binary"


@dataclass(frozen=True, slots=True)
class Order:
    """What the executors have to know beside their tasks."""

    function: Callable[[Any], Any]
    stage: str
    prepare: Callable[[], None] | None
    limited: bool
    """Whether there is a limit to the memory."""
    config: Config
    feature_set: str
    """The driver's."""
    root: str
    """The folder, as it is opened."""
    cores: int | None
    """Processors of an executor; None: all there are."""


@contextmanager
def open_spark_engine(config: Config, audio_dir: Path) -> Iterator[Engine]:
    """Open the engine on Spark, its session only when there is something to do; see `etl.engine.open_engine`."""
    config = _with_bus_for_all(config)
    java_version(OTHERWISE)
    with ExitStack() as stack:
        session = cache(lambda: stack.enter_context(open_spark(config.spark, otherwise=OTHERWISE)))
        yield Engine(partial(_run_tasks, session, config, os.path.abspath(audio_dir)), delivers=True)  # noqa: PTH100


def _with_bus_for_all(config: Config) -> Config:
    """Return the config with a bus that the executors find too: their working directory may be another one."""
    if not config.bus.url.startswith("sqlite:"):
        return config
    file = sqlite_path(config.bus.url).absolute()
    if not is_local(config.spark):
        raise ConfigError(
            f"bus.url: the executors of {config.spark.master} cannot all write to {file}; "
            f"use kafka://host:9092, or `{OTHERWISE}`"
        )
    return config.model_copy(update={"bus": Location(url=f"sqlite:///{file}")})


def _run_tasks(
    open_session: Callable[[], SparkSession],
    config: Config,
    root: str,
    function: Callable[[A], R],
    tasks: Iterable[Task[T, A]],
    *,
    workers: int,
    stage: str,
    memory: float = math.inf,
    prepare: Callable[[], None] | None = None,
) -> Generator[tuple[T, R | Trouble], None, None]:
    """Do tasks on the executors, in the way of `etl.pool.run_tasks`; how many at once, and how much memory, is theirs.

    One job over all tasks would tell nothing before its end: `collect` waits for the last partition, and
    `toLocalIterator` computes one after the other. So there are small jobs, a few at a time.
    """
    tasks = iter(tasks)
    if not (first := list(islice(tasks, 1))):
        return
    tasks = chain(first, tasks)
    session = open_session().newSession()
    session.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", "1")  # a row is a share, and a partition
    context = session.sparkContext
    feature_set = config.feature_set
    cores = _cores(config.spark, context)
    order = pickle.dumps(Order(function, stage, prepare, memory < math.inf, config, feature_set, root, cores))
    numbers = count()
    under_way: dict[int, T] = {}
    group = f"murmur-{uuid4()}"
    jobs: set[Future[list[Row]]] = set()
    with ThreadPoolExecutor(JOBS) as threads:
        try:
            while True:
                while len(jobs) < JOBS and (lot := list(islice(tasks, SHARE * context.defaultParallelism))):
                    numbered = dict(zip(islice(numbers, len(lot)), lot, strict=True))
                    under_way |= {number: task.about for number, task in numbered.items()}
                    jobs.add(threads.submit(_job, session, group, order, numbered))
                if not jobs:
                    return
                done, jobs = wait(jobs, return_when=FIRST_COMPLETED)
                for number, result in chain.from_iterable(job.result() for job in done):
                    yield under_way.pop(number), pickle.loads(result)
        finally:
            while wait(jobs, timeout=0.2).not_done:
                context.cancelJobGroup(group)


def _cores(config: Spark, context: SparkContext) -> int | None:
    if is_local(config):
        return context.defaultParallelism
    cores = context.getConf().get("spark.executor.cores")
    return int(cores) if cores else None


def _job(session: SparkSession, group: str, order: bytes, numbered: dict[int, Task[Any, Any]]) -> list[Row]:
    """Have tasks done, a share by each of the executors' slots; return number and result of each."""
    context = session.sparkContext
    context.setJobGroup(group, "murmur extract", interruptOnCancel=True)
    n_shares = context.defaultParallelism
    tasks = [replace(task, about=number) for number, task in numbered.items()]
    shares = [share for start in range(n_shares) if (share := tasks[start::n_shares])]
    frame = session.createDataFrame(pa.table({"share": [pickle.dumps(share) for share in shares]}))
    return frame.mapInArrow(partial(work_through, order), RESULTS).collect()


def work_through(order: bytes, batches: Batches) -> Batches:
    """Do the shares of a partition and tell how each task ended; runs on the executors.

    Tracks are sent from here, and every one is acknowledged before anything is told. A share that is tried again, since
    its executor was lost, sends them once more: with a later `rev`, and otherwise the same.
    """
    told = pickle.loads(order)
    _check(told)
    producer = _producer(told.config.bus.url)
    topic = Names(told.config.topics.prefix).tracks
    for batch in batches:
        for share in batch.column("share"):
            ended = []
            for number, result in _crew(order).run(pickle.loads(share.as_py())):
                ended.append((number, pickle.dumps(_delivered(result, producer, topic))))
            producer.flush()
            yield pa.record_batch([pa.array(column) for column in zip(*ended, strict=True)], ["number", "result"])


def _delivered(result: Any, producer: Producer, topic: str) -> Any:
    """Send the tracks of a result, if it has any; the features stay behind."""
    if not isinstance(result, list):
        return result
    for track in result:
        send(producer, topic, track)
    return [track.model_copy(update={"features": {}}) for track in result]


@lru_cache(maxsize=1)
def _crew(order: bytes) -> Crew[Any, Any]:
    """Return the worker of this process; it serves one share after the other, for to start one takes seconds."""
    told = pickle.loads(order)
    memory = _memory(told) if told.limited else math.inf
    _opened.close()
    return _opened.enter_context(
        open_crew(told.function, workers=1, stage=told.stage, memory=memory, prepare=told.prepare)
    )


_opened = ExitStack()


@cache
def _producer(url: str) -> Producer:
    return open_bus(url).producer()


def _memory(order: Order) -> int:
    """Return the bytes for this process's worker: as many as for each of those beside it."""
    context = TaskContext.get()
    beside = max(1, (order.cores or default_workers()) // (context.cpus() if context else 1))
    memory = memory_budget(order.config) // beside
    if memory < LEAST_MEMORY:
        raise ConfigError(
            f"memory: {memory >> 20} MiB for each of {beside} tasks side by side on {socket.gethostname()}, "
            f"where {LEAST_MEMORY >> 20} are needed; set spark.task.cpus or `memory` higher"
        )
    return memory


def _check(order: Order) -> None:
    """Raise a `ConfigError` unless what is here is what the driver has."""
    here = socket.gethostname()
    if not Path(order.root).is_dir():
        raise ConfigError(f"{path_text(order.root)}: no such folder on {here}; mount it there at the same path")
    if order.config.feature_set != order.feature_set:
        raise ConfigError(f"{here} has another version of Murmuration; install the driver's there")
