"""The engine for one machine: numpy and scikit-learn on the matrix."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from clustering.centres import EPSILON, MAX_ITERATIONS, means
from clustering.library import Library
from clustering.place import place, store_assignments
from clustering.ranking import measure_neighbourhoods, points
from clustering.space import Declared, Matrix, Vectors, fit_group, moments_by_block, transform
from core.jobs import Progress, Watch
from core.records import Group, Run
from core.store import Store


class SklearnEngine:
    """Fits the space and the clusters of vectors in memory."""

    def __init__(self, vectors: Vectors, groups: Sequence[Declared]) -> None:
        self._vectors, self._groups = vectors, groups

    def fit_space(self) -> list[Group]:
        """Fit every group; see `engine.Engine`."""
        return [fit_group(group, partial(moments_by_block, self._vectors[group.name])) for group in self._groups]

    def place(self, space: list[Group]) -> Matrix:
        """Return the coordinates; see `engine.Engine`."""
        return transform(space, self._vectors)

    def fit_centres(self, space: list[Group], start: Matrix) -> Matrix:
        """Run Lloyd's algorithm; see `engine.Engine`.

        `sklearn.cluster.KMeans` moves a centre that lost its members to a far row, where MLlib leaves
        it: so that both engines agree always, only scikit-learn's search for the nearest centre is used.
        """
        from sklearn.metrics import pairwise_distances_argmin

        X, centres = self.place(space), start
        for _ in range(MAX_ITERATIONS):
            moved = means(X, pairwise_distances_argmin(X, centres), centres)
            still = np.square(moved - centres).sum(axis=1).max() <= EPSILON**2
            centres = moved
            if still:
                break
        return centres

    def assign(self, store: Store, run: Run, library: Library, X: Matrix, progress: Watch) -> int:
        """Write the assignments in batches; see `engine.Engine`."""
        progress(Progress("neighbours", 0, len(X)))
        there = points(X, library.recordings)
        measure_neighbourhoods(there, progress)
        assigned = place(run, library.track_ids, list(library.revs.values()), there, rev=run.rev)
        return store_assignments(store, assigned, len(X), progress)
