"""Choosing K: a range is tried, and the best that is stable is taken, unless the former is about as good."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import clustering_library as library
import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score, silhouette_score
from threadpoolctl import threadpool_limits

from clustering import choice
from clustering.assign import nearest
from clustering.centres import start_centres
from clustering.choice import candidates, choose, stable, tried
from clustering.cluster import ClusterReport
from core.config import parse_config
from core.jobs import Progress
from core.records import Run, RunInForce, Track, Trial
from core.sqlite_store import SQLiteStore


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with threadpool_limits(1):  # more would only wait for each other
        yield


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLiteStore]:
    with closing(SQLiteStore(f"sqlite:///{tmp_path}/test.db")) as opened:
        yield opened


def trial(n_clusters: int, silhouette: float, stability: float = 1.0) -> Trial:
    return Trial(n_clusters=n_clusters, silhouette=silhouette, stability=stability)


def cluster(store: SQLiteStore, *, fresh: bool = False, like: str | None = None, **clustering: object) -> ClusterReport:
    settings = {"engine": "sklearn", "n_clusters": "auto", "n_init": 3, **clustering}
    return library.cluster_them(parse_config({"clustering": settings}), store, fresh=fresh, like=like)


def run_of(store: SQLiteStore, report: ClusterReport) -> Run:
    run = store.get(Run, report.run_id)
    assert run is not None
    return run


def groups(k: int, n: int, *, seed: int = 0) -> np.ndarray:
    """Return n rows around k points that are far from each other, in turn."""
    rng = np.random.default_rng(seed)
    return 20 * np.eye(k)[np.arange(n) % k] + rng.normal(size=(n, k))


@pytest.mark.parametrize(
    ("n_tracks", "n_distinct", "numbers"),
    [
        (49, 49, []),
        (50, 50, [5]),
        (69, 69, [5, 6]),
        (500, 500, range(5, 51)),
        (10**6, 10**6, range(5, 51)),
        (500, 7, [5, 6, 7]),
        (500, 4, []),
    ],
)
def test_the_range_is_5_to_a_tenth_of_the_tracks_at_most_50_and_never_above_the_distinct_ones(
    n_tracks: int, n_distinct: int, numbers: list[int]
) -> None:
    assert list(candidates(n_tracks, n_distinct)) == list(numbers)


def test_the_highest_silhouette_is_chosen_and_of_equals_the_largest_number() -> None:
    assert choose([trial(5, 0.2), trial(6, 0.4), trial(7, 0.3)]) == 6
    assert choose([trial(5, 0.2), trial(6, 0.4), trial(7, 0.4), trial(8, 0.1)]) == 7


def test_what_is_less_stable_than_the_best_by_more_than_0_05_is_not_chosen() -> None:
    found = [trial(5, 0.2, 0.9), trial(6, 0.3, 0.85), trial(7, 0.4, 0.8499), trial(8, 0.9, 0.1)]
    assert [one.n_clusters for one in stable(found)] == [5, 6]
    assert choose(found) == 6


def test_the_former_number_stays_unless_another_is_better_by_0_02() -> None:
    """0.3 + 0.02 is no binary fraction: it is meant to be just enough."""
    for silhouette, chosen in ((0.3, 5), (0.3199, 5), (0.32, 6), (0.4, 6)):
        assert choose([trial(5, 0.3), trial(6, silhouette)], former=5) == chosen
    assert choose([trial(5, 0.31), trial(6, 0.3)], former=6) == 6


def test_the_former_number_stays_also_where_it_is_not_stable_but_not_against_a_better_one_that_is() -> None:
    assert choose([trial(5, 0.3), trial(6, 0.3, 0.5)], former=6) == 6
    assert choose([trial(5, 0.3), trial(6, 0.2, 0.5)], former=6) == 5


@pytest.mark.parametrize("former", [None, 4, 51])
def test_a_former_number_outside_the_range_does_not_stay(former: int | None) -> None:
    assert choose([trial(5, 0.3), trial(6, 0.31)], former) == 6


def test_a_trial_is_what_its_definition_says() -> None:
    """Recomputed here: the silhouette of the best start on all rows, and how two halves agree on all rows."""
    X, order = groups(6, 90), np.random.default_rng(4).permutation(90)
    for found in tried(X, [5, 8], n_init=2, random_state=4):
        whole, *halves = (
            nearest(X, start_centres(X[rows], found.n_clusters, n_init=2, random_state=4))
            for rows in (np.arange(90), order[::2], order[1::2])
        )
        assert found.silhouette == pytest.approx(silhouette_score(X, whole), abs=5e-5)
        assert found.stability == pytest.approx(adjusted_rand_score(*halves), abs=5e-5)


def test_a_number_that_is_not_in_the_data_is_less_stable_than_the_one_that_is() -> None:
    found = {one.n_clusters: one for one in tried(groups(7, 200), range(5, 10), n_init=5, random_state=0)}
    assert found[7].stability == 1
    assert all(found[k].stability < 0.95 for k in (5, 6, 8, 9))
    assert max(found.values(), key=lambda one: one.silhouette) is found[7]


def test_of_a_large_library_a_seeded_sample_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "SAMPLE_ROWS", 80)
    X = groups(6, 300)
    sample = X[np.sort(np.random.default_rng(1).permutation(300)[:80])]
    monkeypatch.setattr(choice.measures, "SAMPLE_ROWS", 80)
    (found,) = tried(X, [6], n_init=2, random_state=1)
    labels = nearest(sample, start_centres(sample, 6, n_init=2, random_state=1))
    assert found.silhouette == pytest.approx(silhouette_score(sample, labels), abs=5e-5)
    assert found == tried(X, [6], n_init=2, random_state=1)[0]


def test_where_the_sample_shows_one_cluster_only_its_silhouette_is_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice.measures, "SAMPLE_ROWS", 2)
    X = np.vstack([np.zeros((60, 1)), np.arange(1, 5)[:, None]])
    assert [one.silhouette for one in tried(X, [5], n_init=1, random_state=0)] == [0]


def test_a_library_of_twelve_groups_gets_twelve_clusters_and_the_run_tells_why(store: SQLiteStore) -> None:
    store.upsert(library.tracks(240, kinds=12))
    seen: list[Progress] = []
    config = parse_config({"clustering": {"engine": "sklearn", "n_clusters": "auto", "n_init": 3}})
    report = library.cluster_them(config, store, progress=seen.append)
    run = run_of(store, report)
    assert (report.clusters, run.n_clusters) == (12, 12)
    assert library.partition(library.assigned(store, run.run_id).values()) == library.partition(np.arange(240) % 12)
    assert [one.n_clusters for one in run.trials] == list(range(5, 25))
    assert [one.n_clusters for one in run.trials if one.chosen] == [12]
    assert report.trials == [one.model_dump() for one in run.trials]
    assert run.trials[7].silhouette == pytest.approx(run.metrics["silhouette"], abs=5e-5)
    assert Run.from_json(run.to_json()) == run
    done = [(one.done, one.total) for one in seen if one.stage == "choose"]
    assert done == [(number, 20) for number in range(21)]
    assert cluster(store).trials == report.trials, "although nothing is new"
    assert cluster(store).written == 0


def test_a_number_that_is_given_needs_no_trials(store: SQLiteStore) -> None:
    store.upsert(library.tracks(60))
    assert run_of(store, cluster(store, n_clusters=4)).trials == []
    assert run_of(store, cluster(store, n_clusters=None)).trials == []


def test_a_run_like_another_has_its_number_of_clusters_whatever_is_configured(store: SQLiteStore) -> None:
    store.upsert(library.tracks(60, kinds=5))
    first = cluster(store, n_clusters=3)
    again = run_of(store, cluster(store, like=first.run_id))
    assert (again.n_clusters, again.trials) == (3, [])


def test_where_the_number_stays_so_do_the_ids(store: SQLiteStore) -> None:
    """A tenth of the tracks is new."""
    tracks = library.tracks(165, kinds=6)
    store.upsert(tracks[:150])
    first = cluster(store)
    store.upsert([RunInForce(rev=1, run_id=first.run_id)])
    store.upsert(tracks)
    second = cluster(store)
    old, new = (library.assigned(store, report.run_id) for report in (first, second))
    assert (first.clusters, second.clusters, second.joined, second.moved) == (6, 6, 15, 0)
    assert {track_id: new[track_id] for track_id in old} == old


def test_the_former_number_is_that_of_the_run_before_unless_it_starts_anew(
    store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here 0.02 is made so much that any number would stay."""
    monkeypatch.setattr(choice, "BETTER", 3.0)
    store.upsert(library.tracks(120, kinds=6))
    assert cluster(store, n_clusters=9).clusters == 9
    assert cluster(store).clusters == 9
    assert cluster(store, fresh=True).clusters == 6


@pytest.mark.parametrize("n", [1, 12, 49])
def test_fewer_than_50_tracks_get_the_default_rule_and_a_line_that_says_so(
    store: SQLiteStore, caplog: pytest.LogCaptureFixture, n: int
) -> None:
    store.upsert(library.tracks(n))
    rule = cluster(store, n_clusters=None)
    caplog.clear()
    report = cluster(store, fresh=True)
    assert (report.clusters, report.trials) == (rule.clusters, [])
    (line,) = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert line.startswith("clustering.n_clusters: auto needs 50 tracks, 5 of them distinct")
    assert f"these {n} get" in line


def test_equal_tracks_are_one_cluster_whatever_is_chosen(store: SQLiteStore) -> None:
    one = library.tracks(1)[0]
    equal = [one.model_copy(update={"track_id": f"t{i:02d}"}) for i in range(60)]
    store.upsert(equal)
    assert cluster(store).clusters == 1


def test_tracks_of_which_few_are_distinct_can_be_chosen_for(store: SQLiteStore) -> None:
    few: list[Track] = library.tracks(6, kinds=6)
    copies = [few[i % 6].model_copy(update={"track_id": f"t{i:02d}"}) for i in range(100)]
    store.upsert(copies)
    assert cluster(store).clusters == 6
