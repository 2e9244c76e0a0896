"""The job: tracks of the store become a run and its assignments, once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import clustering_library as library
import numpy as np
import pytest

from clustering import cluster, place, runs, space
from clustering.assign import assign
from clustering.cluster import ClusterReport
from clustering.library import current_revs
from core.bus import Topic
from core.config import Config, parse_config
from core.errors import BackendError, ConfigError, MurmurError
from core.jobs import Progress
from core.records import Assignment, PublishedRun, Record, Run, RunInForce, Track, next_rev
from core.sqlite_bus import SQLiteBus
from core.sqlite_store import SQLiteStore
from core.store import Upserted


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLiteStore]:
    with closing(SQLiteStore(f"sqlite:///{tmp_path}/test.db")) as opened:
        yield opened


def config(**clustering: object) -> Config:
    return parse_config({"clustering": {"engine": "sklearn", **clustering}})


def fit(store: SQLiteStore, *, fresh: bool = False, like: str | None = None, **clustering: object) -> ClusterReport:
    return library.cluster_them(config(**clustering), store, fresh=fresh, like=like)


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
            f"feature set {Config().feature_set} .1 of other, 1 silent .* run `murmur run AUDIO_DIR`",
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
    store.upsert([one.model_copy(update={"track_id": f"t{i}", "duration": 60.0 * i}) for i in range(12)])
    report = fit(store)
    neighbours = [found["neighbours"] for found in store.scan(Assignment, prefix=f"{report.run_id}/")]
    assert report.clusters == 1
    assert [near["track_id"] for near in neighbours[0]] == ["t1", "t10", "t11", *(f"t{i}" for i in range(2, 9))]
    assert {near["score"] for near in neighbours[0]} == {1}


def test_tracks_without_rhythm_are_clustered_by_their_timbre(store: SQLiteStore) -> None:
    store.upsert(library.tracks(30, kinds=3, flags=["no_rhythm"]))
    report = fit(store, n_clusters=3)
    assert library.partition(library.assigned(store, report.run_id).values()) == library.partition(np.arange(30) % 3)


def test_a_constant_descriptor_has_no_part_in_the_clustering(store: SQLiteStore) -> None:
    """Nor has it in the kept space, where it differs in a new track."""
    tracks = [
        track.model_copy(update={"features": track.features | {"mfcc": track.features["mfcc"] | {"mean": [1.0] * 20}}})
        for track in library.tracks(41, kinds=4)
    ]
    store.upsert(tracks[:40])
    first = run_of(store, fit(store, n_clusters=4))
    assert library.partition(library.assigned(store, first.run_id).values()) == library.partition(np.arange(40) % 4)
    assert first.space[0].std[first.space[0].columns.index("mfcc.mean[3]")] == 0
    other = tracks[40].features | {"mfcc": tracks[40].features["mfcc"] | {"mean": [1e6] * 20}}
    store.upsert([tracks[40].model_copy(update={"features": other})])
    assert sorted(one.size for one in run_of(store, fit(store, n_clusters=4)).clusters) == [10, 10, 10, 11]
    assert library.partition(library.assigned(store, fit(store, n_clusters=4).run_id).values()) == library.partition(
        np.arange(41) % 4
    )


def test_a_library_that_shrinks_to_one_track_keeps_that_tracks_cluster(store: SQLiteStore) -> None:
    store.upsert(library.tracks(20))
    before = library.assigned(store, fit(store, n_clusters=4).run_id)
    for number in range(20):
        if number != 7:
            store.purge(Track, f"t{number:03d}")
    after = run_of(store, fit(store))
    assert library.assigned(store, after.run_id) == {"t007": before["t007"]}
    assert (len(after.lineage.deaths), after.lineage.stayed, after.lineage.left) == (3, 1, 19)


def test_a_library_that_was_exchanged_starts_cold_with_new_ids(store: SQLiteStore) -> None:
    store.upsert(library.tracks(20))
    fit(store, n_clusters=2)
    store.purge(Track, "t")
    store.upsert([track.model_copy(update={"track_id": f"u{track.track_id}"}) for track in library.tracks(20)])
    found = run_of(store, fit(store, n_clusters=2)).lineage
    assert (found.births, found.deaths, found.joined, found.left) == (["c03", "c04"], ["c01", "c02"], 20, 20)


def test_fewer_distinct_tracks_than_clusters_before_leave_as_many_as_there_are(store: SQLiteStore) -> None:
    tracks = library.tracks(20)
    store.upsert(tracks)
    fit(store, n_clusters=4)
    few = [tracks[min(i % 4, 2)].features for i in range(20)]
    store.upsert([track.model_copy(update={"features": one, "rev": 2}) for track, one in zip(tracks, few, strict=True)])
    with pytest.raises(ConfigError, match="4 is more than the 3 distinct tracks"):
        fit(store, n_clusters=4)
    assert fit(store).clusters == 3


def test_only_silent_tracks_after_a_clustering_are_one_line_and_change_nothing(store: SQLiteStore) -> None:
    tracks = library.tracks(6)
    store.upsert(tracks)
    fit(store)
    store.upsert([track.model_copy(update={"flags": ["silent"], "rev": 2}) for track in tracks])
    with pytest.raises(MurmurError, match=r"nothing to cluster \(6 silent or too short\)"):
        fit(store)
    assert store.count(Run) == 1


def test_a_change_of_the_feature_set_is_told_with_both_and_the_command_and_the_clusters_go_on(
    store: SQLiteStore, caplog: pytest.LogCaptureFixture
) -> None:
    old = [track.model_copy(update={"feature_set": "earlier"}) for track in library.tracks(24)]
    store.upsert(old)
    parsed = config(n_clusters=4)
    earlier = parsed.model_copy(update={"audio": parsed.audio.model_copy(update={"max_duration": 9.0})})
    store.upsert([track.model_copy(update={"feature_set": earlier.feature_set, "rev": 2}) for track in old])
    first = library.cluster_them(earlier, store)
    store.upsert([track.model_copy(update={"feature_set": parsed.feature_set, "rev": 3}) for track in old[:20]])
    second = run_of(store, library.cluster_them(parsed, store))
    (told,) = caplog.messages
    for word in (first.run_id, earlier.feature_set, parsed.feature_set, "4 tracks", "`murmur run AUDIO_DIR`"):
        assert word in told
    assert (second.space_tracks, second.lineage.stayed, second.lineage.left) == (20, 20, 4)
    with pytest.raises(
        ConfigError, match=f"{first.run_id} .* {earlier.feature_set}, .* {parsed.feature_set}: .*`murmur"
    ):
        library.cluster_them(parsed, store, like=first.run_id)


def test_clusters_whose_members_nobody_knows_any_more_end(store: SQLiteStore, caplog: pytest.LogCaptureFixture) -> None:
    """As after `restore`, which brings no assignments, and an extraction with other settings."""
    tracks, parsed = library.tracks(24), config(n_clusters=4)
    earlier = parsed.model_copy(update={"audio": parsed.audio.model_copy(update={"max_duration": 9.0})})
    store.upsert([track.model_copy(update={"feature_set": earlier.feature_set}) for track in tracks])
    first = run_of(store, library.cluster_them(earlier, store))
    store.purge(Assignment, f"{first.run_id}/")
    store.upsert([track.model_copy(update={"rev": next_rev(track.rev)}) for track in tracks])
    second = run_of(store, library.cluster_them(parsed, store))
    assert second.lineage.deaths == [cluster.cluster_id for cluster in first.clusters]
    assert [cluster.cluster_id for cluster in second.clusters] == second.lineage.births == ["c05", "c06", "c07", "c08"]
    assert (second.lineage.joined, second.lineage.left) == (24, 24)
    assert any("no longer kept" in told and first.run_id in told for told in caplog.messages)


def test_a_fresh_run_starts_cold_in_a_space_of_its_own_and_the_ids_stay(store: SQLiteStore) -> None:
    tracks = library.tracks(52)
    store.upsert(tracks[:50])
    first = fit(store, n_clusters=4)
    store.upsert(tracks[50:])
    kept, fresh = run_of(store, fit(store, n_clusters=4)), run_of(store, fit(store, n_clusters=4, fresh=True))
    assert (kept.space_tracks, fresh.space_tracks) == (50, 52)
    assert kept.space == run_of(store, first).space != fresh.space
    assert library.assigned(store, fresh.run_id) == library.assigned(store, kept.run_id)
    assert fit(store, n_clusters=4).written == 0, "the latest run is up to date, whatever it started from"


def test_a_run_like_one_whose_assignments_are_gone_gives_them_again(store: SQLiteStore) -> None:
    store.upsert(library.tracks(40, spread=0.5))
    first = fit(store, n_clusters=5, keep_runs=1)
    before = library.assigned(store, first.run_id)
    fit(store, n_clusters=3, keep_runs=1, fresh=True)
    assert library.assigned(store, first.run_id) == {}
    assert library.assigned(store, fit(store, keep_runs=1, like=first.run_id).run_id) == before


def test_a_run_like_one_of_other_tracks_is_a_new_fit_in_its_space_and_says_so(
    store: SQLiteStore, caplog: pytest.LogCaptureFixture
) -> None:
    tracks = library.tracks(80)
    store.upsert(tracks[:20])
    first = run_of(store, fit(store, n_clusters=4))
    fit(store, like=first.run_id)
    assert caplog.messages == []
    store.upsert(tracks[20:])
    second = run_of(store, fit(store, n_clusters=2, like=first.run_id))
    assert [message for message in caplog.messages if f"{first.run_id} was made of other tracks" in message]
    assert (second.space, second.start, second.space_tracks) == (first.space, first.start, 20)
    assert (second.n_tracks, second.n_clusters, second.lineage.stayed, second.lineage.joined) == (80, 4, 20, 60)


def test_a_run_like_one_that_is_unknown_or_was_interrupted_names_those_there_are(store: SQLiteStore) -> None:
    store.upsert(library.tracks(4))
    with pytest.raises(ConfigError, match="no run yet; run `murmur run AUDIO_DIR` first"):
        fit(store, like="run-1")
    made = [fit(store, n_clusters=2, random_state=seed).run_id for seed in range(7)]
    with pytest.raises(Killed):
        library.cluster_them(config(n_clusters=3), Dying(store, 1))  # type: ignore[arg-type]
    (interrupted,) = runs.run_ids_of(store, complete=False)
    for unknown in ("run-1", interrupted):
        with pytest.raises(
            ConfigError, match=f"no run is named '{unknown}'; there are {', '.join(made[:1:-1])} and 2 older"
        ):
            fit(store, like=unknown)


def test_the_lineage_of_a_run_like_another_is_against_the_run_in_force(store: SQLiteStore) -> None:
    """So that what is published says what changes for a subscriber."""
    store.upsert(library.tracks(40))
    first, second = fit(store, n_clusters=4), fit(store, n_clusters=3)
    store.upsert([RunInForce(rev=1, run_id=second.run_id)])
    again = run_of(store, fit(store, like=first.run_id)).lineage
    (reborn,) = run_of(store, second).lineage.deaths
    assert (again.former, again.births, again.deaths, again.moved) == (second.run_id, [reborn], [], 10)


@pytest.mark.parametrize(
    ("topics", "run"), [(["clusters.c07.tracks.v1", "clusters.unclustered.tracks.v1"], {}), ([], {"c05": 3, "c07": 1})]
)
def test_no_id_is_given_that_a_topic_or_a_published_run_has(
    store: SQLiteStore, topics: list[str], run: dict[str, int]
) -> None:
    """The store was lost, the bus was not, and one begins anew; what does not fit the runs topic has no part in it."""
    known = PublishedRun(
        run_id="run-1", created_at="", engine="", feature_set="", n_clusters=2, n_tracks=4, sizes=run, metrics={}
    )
    store.upsert(library.tracks(8))
    with closing(SQLiteBus(store.url)) as bus:
        bus.create_topics([Topic(name, "compact") for name in ("clusters.runs.v1", *topics)])
        producer = bus.producer()
        for key, value in ((b"run-1", known.to_json()), (b"run-0", b"?"), (b"current", b"{}"), (b"run-2", None)):
            producer.send("clusters.runs.v1", key, value)
        producer.flush()
        producer.close()
    made = run_of(store, fit(store, n_clusters=2, fresh=True))
    assert [one.cluster_id for one in made.clusters] == ["c08", "c09"]


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
        library.cluster_them(asked, store)


def test_other_groups_span_another_space_at_once(store: SQLiteStore) -> None:
    store.upsert(library.tracks(30))
    first = run_of(store, fit(store))
    kept = run_of(store, fit(store, random_state=1))
    other = run_of(store, fit(store, groups={"rhythm": {"weight": 0.25}}))
    assert kept.space == first.space
    assert [group.weight for group in other.space] == [1, 0.25]


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
    monkeypatch.setattr(place, "BATCH", 10)
    store.upsert(library.tracks(20))
    before = fit(store, n_clusters=2)
    try:
        library.cluster_them(config(n_clusters=3), Dying(store, writes))  # type: ignore[arg-type]
    except Killed:
        assert runs.latest_run(store) == run_of(store, before)
    report = fit(store, n_clusters=3)
    assert runs.latest_run(store) == run_of(store, report)
    assert len(library.assigned(store, report.run_id)) == 20
    assert report.written == (0 if writes == 4 else 20)


def test_a_second_clustering_of_a_store_is_refused_while_the_first_is_at_work(store: SQLiteStore) -> None:
    store.upsert(library.tracks(20))
    refused: list[str] = []

    def begin_another(_: Progress) -> None:
        with (
            closing(SQLiteStore(store.url)) as other,
            pytest.raises(BackendError, match="`cluster` is at work") as told,
        ):
            library.cluster_them(config(n_clusters=3), other)
        refused.append(str(told.value))

    report = library.cluster_them(config(n_clusters=2), store, progress=begin_another)
    assert refused
    assert runs.run_ids_of(store, complete=True) == [report.run_id]
    assert fit(store, n_clusters=3).clusters == 3, "it lets go at its end"


def test_a_job_that_lost_its_lease_completes_nothing(store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def lost(*_: object) -> Iterator[Callable[[], None]]:
        def confirm() -> None:
            raise BackendError("lost")

        yield confirm

    store.upsert(library.tracks(20))
    monkeypatch.setattr(SQLiteStore, "lease", lost)
    with pytest.raises(BackendError, match="lost"):
        fit(store, n_clusters=3)
    assert runs.latest_run(store) is None
    assert len(runs.run_ids_of(store, complete=False)) == 1


@pytest.mark.parametrize(("died", "ids"), [(3, ["c01", "c02", "c03"]), (2, ["c03", "c04", "c05"])])
def test_the_ids_of_a_job_that_died_go_to_the_next_that_does_the_same(
    store: SQLiteStore, died: int, ids: list[str]
) -> None:
    """And not to one that does something else: the former may still be alive then."""
    store.upsert(library.tracks(20))
    for _ in range(2):
        with pytest.raises(Killed):
            library.cluster_them(config(n_clusters=died), Dying(store, 1))  # type: ignore[arg-type]
    made = run_of(store, fit(store, n_clusters=3))
    assert [one.cluster_id for one in made.clusters] == ids


def test_old_assignments_go_but_those_of_the_last_runs_and_the_run_in_force_stay(store: SQLiteStore) -> None:
    store.upsert(library.tracks(12))
    made = [fit(store, n_clusters=2, random_state=0, keep_runs=2).run_id]
    store.upsert([RunInForce(rev=1, run_id=made[0])])
    stopped = Dying(store, 1)
    with pytest.raises(Killed):
        library.cluster_them(config(n_clusters=3), stopped)  # type: ignore[arg-type]
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
    library.cluster_them(config(), store, progress=seen.append)
    assert list(dict.fromkeys(now.stage for now in seen)) == ["read", "fit", "neighbours", "write"]
    assert seen[-1] == Progress("write", 30, 30)


def test_whether_anything_changed_is_found_without_reading_features(store: SQLiteStore) -> None:
    store.upsert(library.tracks(3, rev=5))
    read: list[set[str]] = []
    scan = store.scan
    store.scan = lambda kind, **how: (read.append(set(how["fields"])), scan(kind, **how))[1]  # type: ignore[method-assign]
    assert current_revs(store, Config().feature_set) == {"t000": 5, "t001": 5, "t002": 5}
    assert "features" not in set.union(*read)
