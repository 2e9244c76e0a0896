"""The job: tracks of the store become a run and its assignments, once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import clustering_library as library
import numpy as np
import pytest

from clustering import cluster, runs, space
from clustering.assign import assign
from clustering.cluster import ClusterReport
from clustering.library import current_revs
from core.config import Config, parse_config
from core.errors import BackendError, ConfigError, MurmurError
from core.jobs import Progress
from core.records import Assignment, Record, Run, RunInForce, Track, next_rev
from core.sqlite_store import SQLiteStore
from core.store import Upserted


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLiteStore]:
    with closing(SQLiteStore(f"sqlite:///{tmp_path}/test.db")) as opened:
        yield opened


def config(**clustering: object) -> Config:
    return parse_config({"clustering": {"engine": "sklearn", **clustering}})


def fit(store: SQLiteStore, **clustering: object) -> ClusterReport:
    return cluster.run(config(**clustering), store=store)


def run_of(store: SQLiteStore, report: ClusterReport) -> Run:
    run = store.get(Run, report.run_id)
    assert run is not None
    return run


def test_separated_kinds_become_the_clusters(store: SQLiteStore) -> None:
    store.upsert(library.tracks(60, kinds=5))
    report = fit(store)
    run = run_of(store, report)
    assert (report.read, report.written, report.unchanged, report.clusters) == (60, 60, 0, 5)
    assert library.partition(library.assigned(store, run.run_id).values()) == library.partition(np.arange(60) % 5)
    assert run.complete
    assert [(one.cluster_id, one.size) for one in run.clusters] == [(f"c0{i}", 12) for i in range(1, 6)]
    assert run.metrics["silhouette"] > 0.5


def test_every_assignment_has_the_tracks_rev_and_ten_scored_neighbours_of_its_kind(store: SQLiteStore) -> None:
    store.upsert(library.tracks(60, kinds=5, spread=10, rev=7))
    report = fit(store)
    for found in map(Assignment.from_document, store.scan(Assignment, prefix=f"{report.run_id}/")):
        number = int(found.track_id[1:])
        near = [int(neighbour.track_id[1:]) for neighbour in found.neighbours]
        scores = [neighbour.score for neighbour in found.neighbours]
        assert found.track_rev == 7
        assert len(set(near)) == 10
        assert number not in near
        assert {one % 5 for one in near} == {number % 5}
        assert scores == sorted(scores, reverse=True)
        assert all(0 < score <= 1 for score in [found.score, *scores])


def test_half_of_a_clusters_members_score_at_least_one_half(store: SQLiteStore) -> None:
    store.upsert(library.tracks(60, kinds=5))
    scores: dict[str, list[float]] = {}
    for found in store.scan(Assignment, prefix=f"{fit(store).run_id}/"):
        scores.setdefault(found["cluster_id"], []).append(found["score"])
    assert [float(np.median(values)) for values in scores.values()] == pytest.approx([0.5] * 5, abs=0.05)


def test_a_run_read_from_json_repeats_its_own_assignment(store: SQLiteStore) -> None:
    """With numpy alone, on overlapping data: the same clusters, and the same distances to the last bit."""
    store.upsert(library.tracks(80, spread=0.5))
    run = Run.from_json(run_of(store, fit(store)).to_json())
    rows = [
        {name: space.vector(track, slots) for name, slots in space.layouts(run.space).items()}
        for track in store.scan(Track)
    ]
    found = assign(run.clusters, space.transform(run.space, space.stack(rows)))
    stored = list(store.scan(Assignment, prefix=f"{run.run_id}/"))
    assert [run.clusters[label].cluster_id for label in found.labels] == [one["cluster_id"] for one in stored]
    assert found.distances.tolist() == [one["distance"] for one in stored]
    assert found.scores.tolist() == [one["score"] for one in stored]
    alone = [assign(run.clusters, space.transform(run.space, space.stack([row]))) for row in rows]
    assert [one.labels[0] for one in alone] == found.labels.tolist()
    np.testing.assert_allclose([one.distances[0] for one in alone], found.distances, rtol=1e-12)


def test_the_same_tracks_settings_and_seed_write_nothing(store: SQLiteStore) -> None:
    store.upsert(library.tracks(20))
    first = fit(store)
    again = fit(store)
    assert (again.read, again.written, again.unchanged, again.run_id) == (20, 0, 20, first.run_id)
    assert store.count(Run) == 1


@pytest.mark.parametrize(
    "changed", [{"random_state": 1}, {"n_clusters": 4}, {"n_init": 3}, {"groups": {"rhythm": {"weight": 0.4}}}]
)
def test_another_setting_makes_another_run(store: SQLiteStore, changed: dict[str, object]) -> None:
    store.upsert(library.tracks(20))
    assert fit(store).run_id < fit(store, **changed).run_id


def test_the_order_in_which_tracks_came_does_not_matter(tmp_path: Path) -> None:
    tracks = library.tracks(40, spread=0.5)
    found = []
    for name, came in (("forwards", tracks), ("backwards", tracks[::-1])):
        with closing(SQLiteStore(f"sqlite:///{tmp_path}/{name}.db")) as opened:
            for one in came:
                opened.upsert([one])
            run = run_of(opened, fit(opened))
            found.append((library.assigned(opened, run.run_id), run.clusters, run.input_digest))
    assert found[0] == found[1]


def test_keeping_more_runs_is_no_reason_for_another_run(store: SQLiteStore) -> None:
    store.upsert(library.tracks(20))
    assert fit(store).run_id == fit(store, keep_runs=9).run_id


def test_a_changed_track_makes_another_run_in_which_the_clusters_keep_their_ids(store: SQLiteStore) -> None:
    tracks = library.tracks(40)
    store.upsert(tracks)
    first = fit(store, n_clusters=4)
    store.upsert([tracks[3].model_copy(update={"rev": 2, "title": "Another"})])
    second = fit(store, n_clusters=4, random_state=5)
    assert second.written == 40
    assert library.assigned(store, second.run_id) == library.assigned(store, first.run_id)


def test_the_ids_go_on_from_the_run_in_force_and_none_is_given_twice(store: SQLiteStore) -> None:
    tracks = library.tracks(40, kinds=4)
    store.upsert(tracks)
    first = fit(store, n_clusters=4)
    store.upsert([RunInForce(rev=1, run_id=first.run_id)])
    fewer = fit(store, n_clusters=2)
    assert set(library.assigned(store, fewer.run_id).values()) < {"c01", "c02", "c03", "c04"}
    back = fit(store, n_clusters=4, random_state=1)
    assert library.assigned(store, back.run_id) == library.assigned(store, first.run_id)
    other_kind = library.tracks(44, kinds=11, seed=9)[4:8]
    store.upsert([track.model_copy(update={"track_id": f"new {track.track_id}"}) for track in other_kind])
    more = set(library.assigned(store, fit(store, n_clusters=5).run_id).values())
    assert more == {"c01", "c02", "c03", "c04", "c05"}
    store.purge(Track, "new")
    store.upsert([track.model_copy(update={"track_id": f"newer {track.track_id}"}) for track in other_kind])
    assert max(library.assigned(store, fit(store, n_clusters=5).run_id).values()) == "c06"


def test_silent_short_and_foreign_tracks_are_left_out_and_counted(store: SQLiteStore) -> None:
    tracks = library.tracks(12)
    changes = [
        {"flags": ["silent"]},
        {"flags": ["clipped", "too_short"]},
        {"feature_set": "other"},
        {"flags": ["clipped"]},
    ]
    store.upsert([track.model_copy(update=change) for track, change in zip(tracks, [*changes, *[{}] * 8], strict=True)])
    report = fit(store)
    assert (report.read, report.written, report.unclusterable, report.other_feature_sets) == (9, 9, 2, 1)
    assert list(library.assigned(store, report.run_id)) == [f"t{i:03d}" for i in range(3, 12)]


def test_a_track_whose_features_do_not_fit_is_counted_as_failed_and_the_others_go_on(store: SQLiteStore) -> None:
    tracks = library.tracks(6)
    store.upsert([tracks[0].model_copy(update={"features": {"mfcc": {"mean": [1.0]}}}), *tracks[1:]])
    first, again = fit(store), fit(store)
    assert (first.read, first.written, first.failed) == (6, 5, 1)
    assert (again.read, again.written, again.unchanged, again.failed) == (6, 0, 5, 1)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ([], "no tracks yet; run `murmur run AUDIO_DIR`"),
        ([{"flags": ["silent"]}] * 2, "2 silent or too short"),
        (
            [{"feature_set": "other"}, {"flags": ["silent"]}],
            "1 of another feature set, 1 silent .* run `murmur run AUDIO_DIR`",
        ),
        ([{"features": {}}], "no track has features that fit"),
    ],
)
def test_nothing_to_cluster_is_one_line_that_says_why(
    store: SQLiteStore, changes: Sequence[dict[str, object]], told: str
) -> None:
    store.upsert([track.model_copy(update=change) for track, change in zip(library.tracks(2), changes, strict=False)])
    with pytest.raises(MurmurError, match=f"^sqlite:///.*: .*{told}"):
        fit(store)
    assert store.count(Run) == 0


def test_more_clusters_than_distinct_tracks_are_refused_and_leave_nothing(store: SQLiteStore) -> None:
    twins = library.tracks(3)
    store.upsert([*twins, *(track.model_copy(update={"track_id": f"copy {track.track_id}"}) for track in twins)])
    with pytest.raises(ConfigError, match="4 is more than the 3 distinct tracks"):
        fit(store, n_clusters=4)
    assert store.count(Run) == 0
    assert fit(store, n_clusters=3).clusters == 3


@pytest.mark.parametrize("n", [1, 2])
def test_one_and_two_tracks_are_a_cluster_each(store: SQLiteStore, n: int) -> None:
    store.upsert(library.tracks(n))
    run = run_of(store, fit(store))
    assert [(one.cluster_id, one.size, one.radius) for one in run.clusters] == [("c01", 1, 0), ("c02", 1, 0)][:n]
    for found in store.scan(Assignment, prefix=f"{run.run_id}/"):
        assert (found["distance"], found["score"], len(found["neighbours"])) == (0, 1, n - 1)


def test_equal_tracks_are_one_cluster(store: SQLiteStore) -> None:
    one = library.tracks(1)[0]
    store.upsert([one.model_copy(update={"track_id": f"t{i}"}) for i in range(12)])
    report = fit(store)
    neighbours = [found["neighbours"] for found in store.scan(Assignment, prefix=f"{report.run_id}/")]
    assert report.clusters == 1
    assert [near["track_id"] for near in neighbours[0]] == ["t1", "t10", "t11", *(f"t{i}" for i in range(2, 9))]
    assert {near["score"] for near in neighbours[0]} == {1}


def test_tracks_without_rhythm_are_clustered_by_their_timbre(store: SQLiteStore) -> None:
    store.upsert(library.tracks(30, kinds=3, flags=["no_rhythm"]))
    report = fit(store, n_clusters=3)
    assert library.partition(library.assigned(store, report.run_id).values()) == library.partition(np.arange(30) % 3)


def test_the_configured_blocks_span_the_space(store: SQLiteStore) -> None:
    store.upsert(library.tracks(30))
    groups = {"timbre": {"blocks": ["spectral_contrast"], "components": 4}, "rhythm": {"weight": 0}}
    (group,) = run_of(store, fit(store, groups=groups)).space
    assert {column.partition(".")[0] for column in group.columns} == {"spectral_contrast"}
    assert (group.name, len(group.components)) == ("timbre", 4)


@pytest.mark.parametrize(
    ("profiles", "groups", "told"),
    [
        ("fma", {}, r"clustering.groups.timbre: needs mfcc_delta, .* \[fma\] .*; write \[default, fma\]"),
        ("default", {"rhythm": {"blocks": ["tempo"]}}, r"clustering.groups.rhythm: needs tempo, .*\[default, tempo\]"),
        ("tempo", {"timbre": {"blocks": ["tempo"]}, "rhythm": {"weight": 0}}, "copies: needs mfcc, "),
    ],
)
def test_blocks_that_are_not_extracted_are_named_with_their_group(
    store: SQLiteStore, profiles: str, groups: dict[str, object], told: str
) -> None:
    asked = parse_config({"features": {"profiles": profiles}, "clustering": {"engine": "sklearn", "groups": groups}})
    with pytest.raises(ConfigError, match=told):
        cluster.run(asked, store=store)


def test_what_a_group_of_weight_0_names_need_not_be_extracted() -> None:
    timbre = {"blocks": ["mfcc", "spectral_contrast"]}
    groups = {"timbre": timbre, "rhythm": {"weight": 0}}
    cluster.check(parse_config({"features": {"profiles": "fma"}, "clustering": {"groups": groups}}))


class Killed(Exception):  # noqa: N818  # no error: what SIGKILL does
    pass


class Dying:
    """A store that stops after some writes, as a killed process does."""

    def __init__(self, store: SQLiteStore, writes: int) -> None:
        self.store, self.writes = store, writes

    def __getattr__(self, name: str) -> object:
        return getattr(self.store, name)

    def upsert(self, records: Sequence[Record]) -> Upserted:
        if self.writes == 0:
            raise Killed
        self.writes -= 1
        return self.store.upsert(records)


@pytest.mark.parametrize("writes", [0, 1, 2, 3, 4])
def test_a_job_that_dies_between_two_writes_is_ignored_and_done_again(
    store: SQLiteStore, writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "BATCH", 10)
    store.upsert(library.tracks(20))
    before = fit(store, n_clusters=2)
    try:
        cluster.run(config(n_clusters=3), store=Dying(store, writes))  # type: ignore[arg-type]
    except Killed:
        assert runs.latest_run(store) == run_of(store, before)
    report = fit(store, n_clusters=3)
    assert runs.latest_run(store) == run_of(store, report)
    assert len(library.assigned(store, report.run_id)) == 20
    assert report.written == (0 if writes == 4 else 20)


@pytest.mark.parametrize(("died", "ids"), [(3, ["c01", "c02", "c03"]), (2, ["c03", "c04", "c05"])])
def test_the_ids_of_a_job_that_died_go_to_the_next_that_does_the_same(
    store: SQLiteStore, died: int, ids: list[str]
) -> None:
    """And not to one that does something else: the former may still be alive then."""
    store.upsert(library.tracks(20))
    for _ in range(2):
        with pytest.raises(Killed):
            cluster.run(config(n_clusters=died), store=Dying(store, 1))  # type: ignore[arg-type]
    made = run_of(store, fit(store, n_clusters=3))
    assert [one.cluster_id for one in made.clusters] == ids


def test_old_assignments_go_but_those_of_the_last_runs_and_the_run_in_force_stay(store: SQLiteStore) -> None:
    store.upsert(library.tracks(12))
    made = [fit(store, n_clusters=2, random_state=0, keep_runs=2).run_id]
    store.upsert([RunInForce(rev=1, run_id=made[0])])
    stopped = Dying(store, 1)
    with pytest.raises(Killed):
        cluster.run(config(n_clusters=3), store=stopped)  # type: ignore[arg-type]
    (interrupted,) = runs.run_ids_of(store, complete=False)
    made += [fit(store, n_clusters=2, random_state=seed, keep_runs=2).run_id for seed in range(1, 5)]
    kept = {found["run_id"] for found in store.scan(Assignment, fields=["run_id"])}
    assert kept == {made[0], *made[-2:]}
    assert runs.run_ids_of(store, complete=True) == made == sorted(made)
    assert store.get(Run, interrupted) is None


def test_runs_made_within_a_second_have_ids_in_their_order(store: SQLiteStore) -> None:
    store.upsert(library.tracks(4))
    made = [run_of(store, fit(store, n_clusters=2, random_state=seed)) for seed in range(3)]
    assert sorted(made, key=lambda run: run.run_id) == sorted(made, key=lambda run: run.created_at) == made


def test_the_run_in_force_is_the_one_that_was_published(store: SQLiteStore) -> None:
    store.upsert(library.tracks(4))
    assert runs.run_in_force(store) is runs.latest_run(store) is None
    first, second = fit(store, n_clusters=2), fit(store, n_clusters=3)
    store.upsert([RunInForce(rev=next_rev(), run_id=first.run_id)])
    assert runs.run_in_force(store) == run_of(store, first)
    assert runs.latest_run(store) == run_of(store, second)


def test_what_the_store_refuses_ends_the_job(store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.upsert(library.tracks(4))
    monkeypatch.setattr(SQLiteStore, "upsert", lambda _, records: Upserted(0, {records[0].key: "too large"}))
    with pytest.raises(BackendError, match=r"cannot store run-.*: too large"):
        fit(store)


def test_progress_reaches_its_end_in_every_stage(store: SQLiteStore) -> None:
    store.upsert(library.tracks(30))
    seen: list[Progress] = []
    cluster.run(config(), store=store, progress=seen.append)
    assert list(dict.fromkeys(now.stage for now in seen)) == ["read", "fit", "neighbours", "write"]
    assert seen[-1] == Progress("write", 30, 30)


def test_whether_anything_changed_is_found_without_reading_features(store: SQLiteStore) -> None:
    store.upsert(library.tracks(3, rev=5))
    read: list[set[str]] = []
    scan = store.scan
    store.scan = lambda kind, **how: (read.append(set(how["fields"])), scan(kind, **how))[1]  # type: ignore[method-assign]
    assert current_revs(store, Config().feature_set) == {"t000": 5, "t001": 5, "t002": 5}
    assert "features" not in set.union(*read)
