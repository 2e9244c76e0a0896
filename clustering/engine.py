"""The two engines behind one contract: scikit-learn on one machine, Spark on one or many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from clustering.library import Library, read_library
from clustering.space import Matrix, declare
from core.config import Config
from core.jobs import Watch
from core.records import Group, Run
from core.store import Store


class Engine(Protocol):
    """Fits a library, whose vectors it has: rows in order of the `track_id`."""

    def fit_space(self) -> list[Group]:
        """Fit the declared groups; engines agree within rounding."""

    def place(self, space: list[Group]) -> Matrix:
        """Return the (n, d) coordinates of the rows; it may be a file mapped into memory, that can only be read."""

    def fit_centres(self, space: list[Group], start: Matrix) -> Matrix:
        """Run Lloyd's algorithm from `start` and return the (k, d) centres.

        It ends when no centre moves farther than `centres.EPSILON`, at the latest after
        `centres.MAX_ITERATIONS`. A centre without members keeps its place.
        """

    def assign(self, store: Store, run: Run, library: Library, X: Matrix, progress: Watch) -> int:
        """Write where `run` puts each row, with the others that are recommended to it; return how many.

        `library` knows the rows, `X` is where they were placed. Written twice is written once.
        """


@contextmanager
def open_engine(
    config: Config,
    store: Store,
    total: int,
    fields: Sequence[str],
    *,
    space: Sequence[Group] | None,
    progress: Watch,
) -> Iterator[tuple[Library, Engine]]:
    """Read the clusterable tracks once, and open the engine that ``clustering.engine`` names on them.

    Parameters
    ----------
    config : Config
    store : Store
    total : int
        How many tracks there are.
    fields : sequence of str
        The metadata that is wanted of each.
    space : sequence of Group, optional
        The space in which they are to be placed; default: the configured groups, to be fitted.
    progress : callable

    Raises
    ------
    ConfigError
        If no track has a vector, or the executors of Spark cannot read the store.
    BackendError
        If it is Spark and there is no Java for it, or Spark fails at any time while it is open.
    """
    groups = declare(config.clustering.groups)
    read = groups if space is None else space
    if config.clustering.engine == "sklearn":
        from clustering.sklearn_engine import SklearnEngine

        library = read_library(store, config.feature_set, read, total, progress, fields=fields)
        yield library, SklearnEngine(library.vectors, groups)
        return

    from clustering.spark_engine import open_spark_engine

    with open_spark_engine(config, store, groups, read, total, fields, progress) as opened:
        yield opened
