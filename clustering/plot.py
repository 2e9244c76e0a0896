"""A picture of the clusters: a map of the tracks, and of each cluster what it is, its size and its quality."""

from __future__ import annotations

import colorsys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clustering.assign import Labels, assign
from clustering.choice import STABLE, stable
from clustering.library import read_library
from clustering.measures import SAMPLE_ROWS
from clustering.runs import require_run_in_force
from clustering.space import Matrix, transform
from core.errors import ConfigError
from core.jobs import Progress, Watch, ignore
from core.records import Run, Track, Trial
from core.store import Store

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Colour = tuple[float, float, float]

FORMATS = (".png", ".pdf", ".svg")
MAX_TEXT = 44
"""Characters of a description."""
CHOSEN = "red"
"""The colour of the number of clusters that was chosen."""
QUALITY = ("silhouette", "davies_bouldin", "gini", "purity", "nmi", "ari")


def plot(store: Store, out: Path, progress: Watch = ignore) -> None:
    """Draw the clusters of the run in force.

    Raises
    ------
    ConfigError
        If no run is in force, or `out` cannot be written or is no .png, .pdf or .svg.
    """
    if out.suffix.lower() not in FORMATS:
        raise ConfigError(f"{out}: can draw {', '.join(FORMATS)}; end its name in one of them")
    run = require_run_in_force(store)
    total = store.count(Track, {"feature_set": run.feature_set})
    library = read_library(store, run.feature_set, run.space, total, progress)
    X = transform(run.space, library.vectors)
    labels = assign(run.clusters, X).labels
    progress(Progress("draw", 0, None))
    sample = np.sort(np.random.default_rng(run.random_state).permutation(len(X))[:SAMPLE_ROWS])
    try:
        draw(run, X[sample], labels[sample], out)
    except OSError as error:
        raise ConfigError(f"{out}: {error.strerror}; name a file that can be written") from error


def draw(run: Run, X: Matrix, labels: Labels, out: Path) -> None:
    """Draw a sample of a run's tracks.

    Parameters
    ----------
    run : Run
    X : ndarray, shape (n, d)
        In its space.
    labels : ndarray of int, shape (n,)
        Indices of ``run.clusters``.
    """
    from matplotlib.figure import Figure

    k = len(run.clusters)
    heights = [max(7, 1.5 + 0.28 * k), 3.5][: 1 + bool(run.trials)]
    figure = Figure(figsize=(16, sum(heights)), layout="constrained")
    above, *below = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights).flat
    for part in below:
        draw_trials(part.subplots(1, 2), run.trials)
    chart, sizes, quality = above.subplots(1, 3, width_ratios=(3, 1, 1))
    draw_map(chart, run, positions(X, run.random_state), labels)
    colours = [colour(i) for i in range(k)]
    rows = np.arange(k)
    sizes.barh(rows, [cluster.size for cluster in run.clusters], color=colours)
    sizes.set_yticks(rows, [_said(cluster.cluster_id, _text(run, i)) for i, cluster in enumerate(run.clusters)])
    for label in sizes.get_yticklabels():
        label.set_parse_math(False)
    sizes.set_title("tracks")
    quality.barh(rows, silhouettes(X, labels, k), color=colours)
    quality.set_yticks(rows, [cluster.cluster_id for cluster in run.clusters])
    quality.set_title("silhouette")
    quality.axvline(0, color="black", linewidth=0.8)
    for axes in (sizes, quality):
        axes.set_ylim(k - 0.4, -0.6)
        axes.spines[["top", "right"]].set_visible(False)
    known = ", ".join(f"{name.replace('_', '-')} {run.metrics[name]:.2f}" for name in QUALITY if name in run.metrics)
    figure.suptitle(f"{run.run_id}: {run.n_tracks:,} tracks in {k} clusters\n{known}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a genre in a script that the font lacks is drawn as boxes
        figure.savefig(out, dpi=110)


def draw_map(axes: Axes, run: Run, points: Matrix, labels: Labels) -> None:
    """Draw (n, 2) points in their cluster's colour, and each id at the member in the middle."""
    from matplotlib.patheffects import withStroke

    x, y = points.T
    colours = [colour(i) for i in labels.tolist()]
    axes.scatter(x, y, s=float(np.clip(20_000 / len(points), 12, 60)), c=colours, linewidths=0, alpha=0.8)
    for label in np.unique(labels):
        members = points[labels == label]
        middle = members[np.square(members - np.median(members, axis=0)).sum(axis=1).argmin()]
        axes.annotate(
            run.clusters[label].cluster_id,
            middle,
            xytext=(0, 5),  # above it, so that its point is seen
            textcoords="offset points",
            ha="center",
            weight="bold",
            path_effects=[withStroke(linewidth=3, foreground="white")],
        )
    axes.set_xticks([])
    axes.set_yticks([])
    shown = f" ({len(points):,} tracks)" if len(points) < run.n_tracks else ""
    axes.set_title(f"map: what is near sounds alike{shown}")


def draw_trials(panels: Sequence[Axes], trials: Sequence[Trial]) -> None:
    """Draw the silhouette and the stability of each number of clusters that was tried, and mark the chosen one."""
    from matplotlib.ticker import MaxNLocator

    numbers, counting = [trial.n_clusters for trial in trials], stable(trials)
    faces = [CHOSEN if trial.chosen else "dimgrey" if trial in counting else "white" for trial in trials]
    chosen = faces.index(CHOSEN)
    for axes, name in zip(panels, ("silhouette", "stability"), strict=True):
        values = [getattr(trial, name) for trial in trials]
        axes.axvline(numbers[chosen], color=CHOSEN, linewidth=0.8, zorder=0)
        axes.plot(numbers, values, color="dimgrey", linewidth=1, zorder=1)
        axes.scatter(numbers, values, c=faces, edgecolors="dimgrey", zorder=2)
        axes.set_title(f"{name} of each K: {numbers[chosen]} was chosen, with {values[chosen]:.2f}")
        axes.set_xlabel(f"K; filled: its stability is within {STABLE:g} of the best")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)


def positions(X: Matrix, random_state: int = 0) -> Matrix:
    """Return (n, 2) positions in which neighbours stay neighbours, by t-SNE (van der Maaten & Hinton 2008)."""
    from sklearn.manifold import TSNE

    if len(X) < 5 or X.shape[1] < 2:
        return np.hstack([X, np.zeros((len(X), 2))])[:, :2]
    found: Matrix = TSNE(perplexity=min(len(X) ** 0.5, 30.0), init="pca", random_state=random_state).fit_transform(X)
    return found


def silhouettes(X: Matrix, labels: Labels, k: int) -> Matrix:
    """Return the (k,) mean silhouette of each cluster, 0 where it is not defined."""
    from sklearn.metrics import silhouette_samples

    if not 1 < len(np.unique(labels)) < len(labels):
        return np.zeros(k)
    sums = np.bincount(labels, silhouette_samples(X, labels), minlength=k)
    return sums / np.maximum(np.bincount(labels, minlength=k), 1)


def colour(i: int) -> Colour:
    """Return the colour of the i-th cluster: hues far from those of its neighbours, in turn lighter and darker."""
    return colorsys.hsv_to_rgb(0.618034 * i % 1, (0.85, 0.55, 0.7)[i % 3], (0.75, 0.9, 0.55)[i % 3])


def _text(run: Run, i: int) -> str:
    description = run.clusters[i].description
    return description.text if description else ""


def _said(cluster_id: str, text: str) -> str:
    return f"{text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + '…'}  {cluster_id}"
