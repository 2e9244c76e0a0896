"""What choosing the number of clusters costs, against bare scikit-learn: ``scripts/bench clustering``.

All is measured in one run on one thread, as medians of interleaved rounds, so that a busy machine slows both alike; the
results go to docs/benchmarks.md. The tracks are drawn around centres and overlap.

* ours: from the vectors on: the space is fitted, and every K is tried and judged, as ``clustering.n_clusters: auto``
  has it;
* bare: for every K what a user would write, handed the coordinates: a `KMeans` of as many starts and its
  `silhouette_score` on as large a sample, and a `KMeans` of either half.
"""

from __future__ import annotations

from functools import partial
from platform import python_version

import numpy as np
import sklearn
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score

from benchmarks.report import Measured, conclude, medians, table
from clustering import choice, measures
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


def main() -> None:
    """Measure, print and write."""
    vectors = synthesise(np.random.default_rng(0))
    X = coordinates(vectors)
    ours, bare = medians(ROUNDS, lambda: choose(coordinates(vectors)), partial(choose_bare, X))
    rows = [Measured("choosing K, against bare calls", f"{ours:.1f} : {bare:.1f} s", ours / bare, most=1.3)]
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


PAGE = """\
Written by `scripts/bench clustering`, on one thread, as medians of interleaved rounds; Python {python},
scikit-learn {sklearn}. The {n:,} tracks are of kinds that overlap; they have {columns} columns and {width} coordinates.

* *choosing K*: from the vectors to the number of clusters, of {least} … {most}, as `--clusters auto` has it. Theirs is
  handed the coordinates, and calls for every K `KMeans` (`n_init={n_init}`) and `silhouette_score`
  (`sample_size={sample}`), and `KMeans` of either half.

{rows}
"""

if __name__ == "__main__":
    main()
