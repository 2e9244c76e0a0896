"""The picture of the clusters: what must be in it is in it, for few clusters and for many."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from itertools import combinations, pairwise
from pathlib import Path

import clustering_library as library
import numpy as np
import pytest
from matplotlib.image import imread

from clustering.measures import knn_accuracy
from clustering.plot import colour, plot, positions, silhouettes
from core.config import parse_config
from core.errors import ConfigError
from core.records import RunInForce, Track, next_rev
from core.sqlite_store import SQLiteStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLiteStore]:
    with closing(SQLiteStore(f"sqlite:///{tmp_path}/test.db")) as opened:
        yield opened


def publish(store: SQLiteStore, tracks: list[Track], **clustering: object) -> None:
    store.upsert(tracks)
    report = library.cluster_them(parse_config({"clustering": {"engine": "sklearn", **clustering}}), store)
    store.upsert([RunInForce(rev=next_rev(), run_id=report.run_id)])


def number(colours: np.ndarray) -> np.ndarray:
    """Return one number for each (…, 3) colour of parts in 0 … 1."""
    return (255 * colours).round().astype(int) @ [1 << 16, 1 << 8, 1]


def colours_in(file: Path) -> set[int]:
    return set(np.unique(number(imread(file)[:, :, :3])).tolist())


@pytest.mark.parametrize("k", [3, 40])
def test_each_cluster_has_a_bar_of_its_colour(store: SQLiteStore, tmp_path: Path, k: int) -> None:
    """Also with genres that look like formulas, or are in a script that the font lacks."""
    tracks = library.tracks(2 * k, kinds=k)
    publish(store, [track.model_copy(update={"genre": "A$AP $x_$ 日本"}) for track in tracks], n_clusters=k)
    plot(store, tmp_path / "out.png")
    wanted = set(number(np.array([colour(i) for i in range(k)])).tolist())
    assert len(wanted) == k
    assert wanted <= colours_in(tmp_path / "out.png")


def test_a_number_that_was_chosen_is_marked_in_two_further_panels_below(store: SQLiteStore, tmp_path: Path) -> None:
    marked = int(number(np.array([1.0, 0.0, 0.0])))
    for n_clusters in (5, "auto"):
        publish(store, library.tracks(60, kinds=5), n_clusters=n_clusters, n_init=1)
        plot(store, tmp_path / f"{n_clusters}.png")
    given, chosen = (number(imread(tmp_path / f"{name}.png")[:, :, :3]) for name in (5, "auto"))
    assert marked not in given
    assert len(chosen) > len(given)
    places = np.argwhere(chosen == marked)
    assert places[:, 0].min() > len(given)
    middle = chosen.shape[1] / 2
    assert places[:, 1].min() < middle < places[:, 1].max()


@pytest.mark.parametrize("n", [1, 2, 6])
def test_a_few_tracks_can_be_drawn_and_so_can_equal_ones(store: SQLiteStore, tmp_path: Path, n: int) -> None:
    one = library.tracks(1)[0]
    publish(store, library.tracks(n) if n < 6 else [one.model_copy(update={"track_id": f"t{i}"}) for i in range(n)])
    plot(store, tmp_path / "out.png")
    assert number(np.array(colour(0))) in colours_in(tmp_path / "out.png")


def test_the_map_keeps_neighbours_together() -> None:
    codes = np.arange(90) % 6
    X = 20 * np.eye(6)[codes] + np.random.default_rng(0).normal(size=(90, 6))
    found = knn_accuracy(positions(X).astype(float), codes)
    assert found is not None
    assert found.nn5 == 1.0


def test_the_silhouette_of_a_cluster_is_the_mean_of_its_members() -> None:
    X = np.array([[0.0], [1.0], [10.0], [12.0]])
    found = silhouettes(X, np.array([0, 0, 2, 2]), 3)
    assert found.tolist() == pytest.approx([((11 - 1) / 11 + (10 - 1) / 10) / 2, 0, ((9.5 - 2) / 9.5 + 9.5 / 11.5) / 2])
    assert silhouettes(X, np.zeros(4, dtype=int), 1).tolist() == [0]


def test_clusters_that_follow_each_other_have_colours_that_can_be_told_apart() -> None:
    found = [np.array(colour(i)) for i in range(50)]
    assert all(np.abs(a - b).max() > 0.2 for a, b in pairwise(found))
    assert all(np.abs(a - b).max() > 0.01 for a, b in combinations(found, 2))


def test_what_cannot_be_drawn_is_one_line(store: SQLiteStore, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"out.jpg: can draw .png, .pdf, .svg"):
        plot(store, tmp_path / "out.jpg")
    with pytest.raises(ConfigError, match="no clusters are published yet"):
        plot(store, tmp_path / "out.png")
    publish(store, library.tracks(4))
    with pytest.raises(ConfigError, match=r"no/out.png: No such file or directory; name a file"):
        plot(store, tmp_path / "no" / "out.png")
