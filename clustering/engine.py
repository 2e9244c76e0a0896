"""The two engines behind one contract: scikit-learn on one machine, Spark on one or many."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from clustering.space import Matrix, Vectors, declare
from core.config import Config
from core.records import Group


class Engine(Protocol):
    """Fits a library: its vectors were handed over, rows in order of the `track_id`."""

    def fit_space(self) -> list[Group]:
        """Fit the declared groups; engines agree within rounding."""

    def fit_centres(self, space: list[Group], start: Matrix) -> Matrix:
        """Run Lloyd's algorithm from `start` and return the (k, d) centres.

        It ends when no centre moves farther than `centres.EPSILON`, at the latest after
        `centres.MAX_ITERATIONS`. A centre without members keeps its place.
        """


@contextmanager
def open_engine(config: Config, vectors: Vectors) -> Iterator[Engine]:
    """Open the engine that ``clustering.engine`` names.

    Raises
    ------
    BackendError
        If it is Spark and there is no Java for it, or Spark fails at any time while it is open.
    """
    groups = declare(config.clustering.groups)
    if config.clustering.engine == "sklearn":
        from clustering.sklearn_engine import SklearnEngine

        yield SklearnEngine(vectors, groups)
        return

    from clustering.spark_engine import SparkEngine
    from core.spark import open_spark

    with open_spark(config.spark) as session:
        yield SparkEngine(session, vectors, groups)
