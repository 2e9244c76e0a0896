"""A re-clustering goes on from the clusters before it: 5,000 vectors through years of growth, loss and merging."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import clustering_library as library
import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from clustering import cluster
from clustering.assign import assign
from clustering.describe import SCALES
from clustering.library import Library, count_distinct, digest_of
from clustering.recordings import RECORDING
from clustering.sklearn_engine import SklearnEngine
from clustering.space import Vectors, declare, stack, vector
from core.config import parse_config
from core.records import Run
from core.sqlite_bus import SQLiteBus
from core.sqlite_store import SQLiteStore

N = 5_000


class Years:
    """Makes runs one from the other; the store holds the runs, their members are kept here."""

    def __init__(self, folder: Path) -> None:
        self.store, self.bus = (kind(f"sqlite:///{folder}/test.db") for kind in (SQLiteStore, SQLiteBus))
        self.members: dict[str, dict[str, str]] = {}

    def cluster(self, vectors: Vectors, rows: np.ndarray, before: Run | None = None, **how: object) -> Run:
        """Cluster some rows; the names of the tracks are the numbers of the rows."""
        fresh = bool(how.pop("fresh", False))
        config = parse_config({"clustering": {"engine": "sklearn", "n_init": 3, **how}})
        revs = {f"t{row:05d}": 1 for row in sorted(rows)}
        known = [{"track_id": track_id, "title": None, "artist": None, "genre": None} for track_id in revs]
        part = {name: X[np.sort(rows)] for name, X in vectors.items()}
        sounds = np.full((len(revs), len(SCALES)), np.nan)
        recordings = np.zeros(len(revs), dtype=RECORDING)
        copy = Library(revs, sounds, recordings, known, digest_of(revs), 0, count_distinct(part))
        engine = SklearnEngine(part, declare(config.clustering.groups))
        run, fitted = cluster.make(config, self.store, self.bus, copy, engine, before=before, fresh=fresh)
        labels = assign(run.clusters, fitted.X).labels
        self.members[run.run_id] = {
            one: run.clusters[label].cluster_id for one, label in zip(revs, labels, strict=True)
        }
        self.store.upsert([run])
        return run

    def of(self, run: Run, rows: np.ndarray) -> set[str]:
        """Return the clusters of some rows."""
        return {self.members[run.run_id][f"t{row:05d}"] for row in rows}


@pytest.fixture
def years(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Years]:
    made = Years(tmp_path)
    monkeypatch.setattr(cluster, "members", lambda _, run: made.members[run.run_id])
    with closing(made.store), closing(made.bus), threadpool_limits(1):  # threads would only wait for each other
        yield made


def test_through_refits_growth_loss_and_merging_every_unchanged_group_keeps_its_id(years: Years) -> None:
    """And the lineage says what happened to the others."""
    vectors, kind = library.vectors(6_600, kinds=13)
    groups = [np.flatnonzero(kind == number) for number in range(13)]
    old = np.flatnonzero(kind < 12)[:N]
    first = last = years.cluster(vectors, old, n_clusters=12)
    ids = [years.of(first, np.intersect1d(group, old)) for group in groups[:12]]
    assert sorted(map(sorted, ids)) == [[f"c{number:02d}"] for number in range(1, 13)]

    for seed in range(1, 21):
        last = years.cluster(vectors, old, last, n_clusters=12, random_state=seed)
        assert years.members[last.run_id] == years.members[first.run_id]
        assert (last.space, last.lineage.stayed, last.lineage.births, last.lineage.deaths) == (first.space, N, [], [])

    newcomers = np.concatenate([np.flatnonzero(kind < 12)[N : N + 600], groups[12][:400]])
    everything = np.concatenate([old, newcomers])
    for seed in range(5):
        grown = years.cluster(vectors, everything, last, n_clusters=13, random_state=seed)
        assert (grown.space, grown.lineage.joined, grown.lineage.left) == (first.space, 1_000, 0)
        assert grown.lineage.stayed >= 0.99 * N
        assert grown.lineage.births == [f"c{13 + seed}"]
        assert years.of(grown, groups[12][:400]) == set(grown.lineage.births)
        assert grown.lineage.deaths == []
    unchanged = dict(enumerate(ids))
    (newborn,) = grown.lineage.births

    rest = np.setdiff1d(everything, groups[5])
    (lost,) = unchanged.pop(5)
    fewer = years.cluster(vectors, rest, grown, n_clusters=12)
    assert (fewer.lineage.deaths, fewer.lineage.successors, fewer.lineage.births) == ([lost], {lost: {}}, [])
    assert (fewer.lineage.stayed, fewer.lineage.left) == (len(rest), len(everything) - len(rest))

    few = np.intersect1d(groups[7], rest)[:50]
    others = np.setdiff1d(rest, groups[7])
    for X in vectors.values():
        X[few] = X[np.intersect1d(groups[2], rest)[:50]] * 1.001  # what was of kind 7 sounds like kind 2 now
    (merged,), (into,) = unchanged.pop(7), unchanged[2]
    merger = years.cluster(vectors, np.concatenate([others, few]), fewer, n_clusters=11)
    taken = {into: len(np.intersect1d(groups[2], rest)), merged: 50}
    assert (merger.lineage.deaths, merger.lineage.successors) == ([merged], {merged: {into: 50}})
    assert (merger.lineage.merges, merger.lineage.births) == ({into: taken}, [])

    returned = years.cluster(vectors, np.concatenate([others, few, groups[5][:300]]), merger, n_clusters=12)
    assert returned.lineage.births == [f"c{int(newborn[1:]) + 1}"], "an id that was given up is never given again"
    for number, found in unchanged.items():
        assert years.of(returned, np.intersect1d(groups[number], others)) == found


@pytest.mark.parametrize("seed", [0, 2])
def test_where_groups_overlap_a_warm_start_keeps_at_least_nine_in_ten_in_place_and_a_cold_one_does_not(
    years: Years, seed: int
) -> None:
    """After a fifth of new tracks, for at most one per cent more inertia."""
    vectors, _ = library.vectors(3_000, kinds=12, seed=seed, spread=0.7)
    first = years.cluster(vectors, np.arange(2_500), n_clusters=12)
    warm, cold = (
        years.cluster(vectors, np.arange(3_000), first, n_clusters=12, random_state=1, fresh=fresh)
        for fresh in (False, True)
    )
    assert warm.space == first.space != cold.space
    assert cold.lineage.stayed < 0.9 * 2_500 <= warm.lineage.stayed
    assert warm.metrics["inertia"] <= 1.01 * cold.metrics["inertia"]


def test_of_real_tracks_at_least_nine_in_ten_stay_in_place_when_a_fifth_is_new(years: Years) -> None:
    """In several orders, all told: of so few tracks one alone is a twentieth."""
    folder = os.environ.get("MURMUR_TEST_AUDIO")
    if not folder:
        pytest.skip("MURMUR_TEST_AUDIO names no folder of real audio")
    from features import compute

    computed = [compute(file) for file in sorted(Path(folder).glob("*.ogg"))]
    found = [
        {
            name: vector({"track_id": "", "features": one.features, "flags": one.flags}, slots)
            for name, slots in library.layouts(library.GROUPS).items()
        }
        for one in computed
    ]
    vectors, n_old = stack(found), len(found) * 5 // 6
    stayed = []
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(found))
        first = years.cluster(vectors, order[:n_old], n_clusters=4)
        stayed.append(years.cluster(vectors, order, first, n_clusters=4).lineage.stayed)
    assert np.mean(stayed) >= 0.9 * n_old


def test_a_space_is_kept_until_the_library_has_grown_by_half_since_it_was_fitted(years: Years) -> None:
    """However often it was kept in between; then the clusters go on in the new one."""
    vectors, _ = library.vectors(310, kinds=3)
    runs = [years.cluster(vectors, np.arange(200), n_clusters=3)]
    for n in (250, 299, 300, 310):
        runs.append(years.cluster(vectors, np.arange(n), runs[-1], n_clusters=3))
    assert [run.space_tracks for run in runs] == [200, 200, 200, 300, 300]
    assert [run.space == runs[0].space for run in runs] == [True, True, True, False, False]
    assert [run.lineage.stayed for run in runs] == [0, 200, 250, 299, 300]


def test_a_space_without_dimensions_is_not_kept(years: Years) -> None:
    vectors, _ = library.vectors(12)
    for X in vectors.values():
        X[:10] = X[0]
    equal = years.cluster(vectors, np.arange(10))
    assert [len(run.clusters) for run in (equal, years.cluster(vectors, np.arange(12), equal))] == [1, 2]
