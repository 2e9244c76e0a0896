"""How the clusters came to be what they are, and what moved between two runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import clustering_library as library
import pytest

from clustering.history import compare, history
from core.config import parse_config
from core.errors import ConfigError
from core.records import Track
from core.sqlite_store import SQLiteStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLiteStore]:
    with closing(SQLiteStore(f"sqlite:///{tmp_path}/test.db")) as opened:
        yield opened


def fit(store: SQLiteStore, **clustering: object) -> str:
    config = parse_config({"clustering": {"engine": "sklearn", **clustering}})
    return library.cluster_them(config, store).run_id


def test_the_history_has_a_chapter_for_each_run_the_oldest_first(store: SQLiteStore) -> None:
    assert history(store) == []
    store.upsert(library.tracks(40))
    made = [fit(store, n_clusters=4), fit(store, n_clusters=3), fit(store, n_clusters=4)]
    chapters = history(store)
    assert [one["run_id"] for one in chapters] == made
    assert [one["former"] for one in chapters] == [None, *made[:2]]
    assert [one["n_clusters"] for one in chapters] == [4, 3, 4]
    assert [one["births"] for one in chapters] == [["c01", "c02", "c03", "c04"], [], ["c05"]]
    assert chapters[1]["deaths"] == ["c04"], "of equally large clusters the last goes"
    (into,) = chapters[1]["successors"]["c04"]
    assert chapters[1]["merges"] == {into: {into: 10, "c04": 10}}
    assert chapters[2]["splits"] == {into: {into: 10, "c05": 10}}


def test_a_comparison_counts_the_pairs_the_tracks_that_stayed_and_the_agreement(store: SQLiteStore) -> None:
    tracks = library.tracks(48)
    store.upsert(tracks[:40])
    four, three = fit(store, n_clusters=4), fit(store, n_clusters=3)
    store.purge(Track, "t00")
    store.upsert(tracks[40:])
    other = fit(store, n_clusters=3)
    found = compare(store, four, three)
    assert [pair for pair in found.pairs if pair[0] == pair[1]] == [(f"c0{i}", f"c0{i}", 10) for i in (1, 2, 3)]
    assert ("c04", 10) in [(pair[0], pair[2]) for pair in found.pairs]
    assert (found.both, found.stayed, found.joined, found.left) == (40, 0.75, 0, 0)
    assert 0.5 < found.ari < 1
    later = compare(store, three, other)
    assert (later.both, later.joined, later.left, later.stayed, later.ari) == (30, 8, 10, 1, 1)
    assert compare(store, four, four).ari == 1


def test_runs_without_a_track_in_common_agree_in_nothing(store: SQLiteStore) -> None:
    tracks = library.tracks(8)
    store.upsert(tracks[:4])
    first = fit(store, n_clusters=2)
    store.purge(Track, "t")
    store.upsert(tracks[4:])
    found = compare(store, first, fit(store, n_clusters=2))
    assert (found.pairs, found.both, found.stayed, found.ari, found.joined, found.left) == ([], 0, 0, 0, 4, 4)


def test_a_run_whose_assignments_are_gone_is_assigned_anew(store: SQLiteStore) -> None:
    store.upsert(library.tracks(40, spread=0.5))
    first = fit(store, n_clusters=4, keep_runs=1)
    second = fit(store, n_clusters=4, keep_runs=2, random_state=1)
    before = compare(store, first, second)
    fit(store, n_clusters=3, keep_runs=1)
    assert library.assigned(store, first) == {}
    assert compare(store, first, second) == before


def test_an_unknown_run_names_those_there_are(store: SQLiteStore) -> None:
    store.upsert(library.tracks(4))
    known = fit(store, n_clusters=2)
    with pytest.raises(ConfigError, match=f"no run is named 'run-0'; there are {known}$"):
        compare(store, known, "run-0")
