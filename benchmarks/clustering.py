"""What choosing the number of clusters and finding neighbours costs, against bare calls: ``scripts/bench clustering``.

All is measured in one run on one thread, as medians of interleaved rounds, so that a busy machine slows both alike; the
results go to docs/benchmarks.md. The tracks are drawn around centres and overlap.

* ours: from the vectors on: the space is fitted, and every K is tried and judged, as ``clustering.n_clusters: auto``
  has it; bare: for every K what a user would write, handed the coordinates: a `KMeans` of as many starts and its
  `silhouette_score` on as large a sample, and a `KMeans` of either half;
* ours: `neighbours` of some rows among all, exact; bare: float32 products and `argpartition`, and faiss's flat index
  where `faiss-cpu` is installed, which is no dependency of ours.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from platform import python_version

import numpy as np
import sklearn
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score

from benchmarks.report import Measured, conclude, medians, table
from clustering import choice, measures
from clustering.neighbours import neighbours, products
from clustering.sklearn_engine import SklearnEngine
from clustering.space import Matrix, Vectors, declare, transform
from core.config import Clustering, Groups, Rhythm

N_TRACKS, N_KINDS, N_LATENT = 10_000, 12, 12
NUMBERS = range(5, 21)
SPREAD = 1.0
"""Of the kinds' centres, in standard deviations of their tracks: they overlap."""
ROUNDS = 3
TIMBRE = declare(Groups(rhythm=Rhythm(weight=0)))
N_INIT = Clustering().n_init
N_ROWS, N_DIMENSIONS, N_ASKED, N_NEIGHBOURS = 100_000, 60, 4_000, 10
N_BLOCK = 500
"""Rows of a bare product: 200 MB."""


def main() -> None:
    """Measure, print and write."""
    vectors = synthesise(np.random.default_rng(0))
    X = coordinates(vectors)
    ours, bare = medians(ROUNDS, lambda: choose(coordinates(vectors)), partial(choose_bare, X))
    rows = [Measured("choosing K, against bare calls", f"{ours:.1f} : {bare:.1f} s", ours / bare, most=1.3)]
    rows += searches(np.random.default_rng(0))
    text = PAGE.format(
        python=python_version(),
        sklearn=sklearn.__version__,
        n=N_TRACKS,
        columns=vectors["timbre"].shape[1],
        width=X.shape[1],
        least=NUMBERS[0],
        most=NUMBERS[-1],
        n_init=N_INIT,
        sample=measures.SAMPLE_ROWS,
        rows_all=N_ROWS,
        dimensions=N_DIMENSIONS,
        asked=N_ASKED,
        block=N_BLOCK,
        rows=table(rows),
    )
    conclude("Clustering", text, rows)


def synthesise(rng: np.random.Generator) -> Vectors:
    """Return the vectors of the timbre group, of kinds that overlap."""
    width = len(TIMBRE[0].columns)
    centres = SPREAD * rng.normal(size=(N_KINDS, N_LATENT))
    latent = centres[np.arange(N_TRACKS) % N_KINDS] + rng.normal(size=(N_TRACKS, N_LATENT))
    values = latent @ rng.normal(size=(N_LATENT, width)) + rng.normal(size=(N_TRACKS, width))
    return {"timbre": values.astype(np.float32)}


def coordinates(vectors: Vectors) -> Matrix:
    """Fit the space, and return the rows in it."""
    return transform(SklearnEngine(vectors, TIMBRE).fit_space(), vectors)


def choose(X: Matrix) -> int:
    """Do what the job does."""
    return choice.choose(choice.tried(X, NUMBERS, n_init=N_INIT, random_state=0))


def choose_bare(X: Matrix) -> int:
    """Do what a user would write."""
    silhouettes = []
    for n_clusters in NUMBERS:
        whole, *_ = (KMeans(n_clusters, n_init=N_INIT, random_state=0).fit(part) for part in (X, X[::2], X[1::2]))
        silhouettes.append(silhouette_score(X, whole.labels_, sample_size=measures.SAMPLE_ROWS, random_state=0))
    return NUMBERS[int(np.argmax(silhouettes))]


def searches(rng: np.random.Generator) -> list[Measured]:
    """Measure the search for the nearest rows against others."""
    X = rng.normal(size=(N_ROWS, N_LATENT)) @ rng.normal(size=(N_LATENT, N_DIMENSIONS))
    X += rng.normal(size=X.shape)
    P, asked, Y = products(X), np.arange(N_ASKED), X.astype(np.float32)
    contestants: dict[str, Callable[[], object]] = {"float32 products and argpartition": partial(search_bare, Y)}
    if find_spec("faiss"):
        import faiss

        index = faiss.IndexFlatL2(N_DIMENSIONS)
        index.add(Y)
        contestants["faiss's flat index"] = lambda: index.search(Y[:N_ASKED], N_NEIGHBOURS + 1)
    ours, *others = medians(ROUNDS, lambda: neighbours(X, N_NEIGHBOURS, asked, P), *contestants.values())
    return [
        Measured(
            f"{N_NEIGHBOURS} nearest of {N_ROWS:,}, against {name}",
            f"{N_ASKED / ours:,.0f} : {N_ASKED / theirs:,.0f} per s",
            theirs / ours,
            least=0.8,
        )
        for name, theirs in zip(contestants, others, strict=True)
    ]


def search_bare(Y: np.ndarray) -> None:
    """Find the nearest as a user would write it."""
    norms = np.square(Y).sum(axis=1)
    for first in range(0, N_ASKED, N_BLOCK):
        np.argpartition(norms - 2 * Y[first : first + N_BLOCK] @ Y.T, N_NEIGHBOURS, axis=1)[:, : N_NEIGHBOURS + 1]


PAGE = """\
Written by `scripts/bench clustering`, on one thread, as medians of interleaved rounds; Python {python},
scikit-learn {sklearn}. The {n:,} tracks are of kinds that overlap; they have {columns} columns and {width} coordinates.

* *choosing K*: from the vectors to the number of clusters, of {least} … {most}, as `--clusters auto` has it. Theirs is
  handed the coordinates, and calls for every K `KMeans` (`n_init={n_init}`) and `silhouette_score`
  (`sample_size={sample}`), and `KMeans` of either half;
* *nearest*: of {asked:,} rows among {rows_all:,} of {dimensions} dimensions; ours with exact distances and in order.
  Theirs is a product of {block} rows with all and `np.argpartition`, in no order, or `IndexFlatL2`, in float32, where
  `faiss-cpu` is installed beside.

{rows}
"""

if __name__ == "__main__":
    main()
