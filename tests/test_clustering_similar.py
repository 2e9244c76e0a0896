"""The nearest tracks to liked ones, copies of a recording as one, and naming a track."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import clustering_library as library
import pytest

from clustering.assign import FAR, home
from clustering.runs import run_in_force
from clustering.similar import Similar, resolve, similar
from core.config import parse_config
from core.errors import ConfigError
from core.names import Names
from core.records import Assignment, Cluster, Features, File, RunInForce, Track
from core.sqlite_store import SQLiteStore

CONFIG = parse_config({"clustering": {"engine": "sklearn"}})
NAMES = Names("lab.")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLiteStore]:
    with closing(SQLiteStore(f"sqlite:///{tmp_path}/test.db")) as opened:
        yield opened


def publish(store: SQLiteStore, tracks: list[Track]) -> None:
    store.upsert(tracks)
    store.upsert([RunInForce(rev=1, run_id=library.cluster_them(CONFIG, store).run_id)])


def ids(found: list[Similar]) -> list[str]:
    return [one.track_id for one in found]


def nudged(features: Features, by: float) -> Features:
    return {
        block: {name: [value + by for value in values] for name, values in statistics.items()}
        for block, statistics in features.items()
    }


def test_the_nearest_are_those_of_the_assignment(store: SQLiteStore) -> None:
    publish(store, library.tracks(30, spread=1))
    found = similar(store, NAMES, ["t004"])
    stored = next(store.scan(Assignment, where={"track_id": "t004"}))
    assert [(one.track_id, one.score) for one in found] == [
        (near["track_id"], pytest.approx(near["score"])) for near in stored["neighbours"]
    ]
    of = library.assigned(store, stored["run_id"])
    assert [one.cluster_id for one in found] == [of[one.track_id] for one in found]
    assert all(one.topic == f"lab.clusters.{one.cluster_id}.tracks.v1" for one in found)
    assert (found[0].title, found[0].path) == (f"Title of {found[0].track_id}", f"/music/{found[0].track_id}.flac")


def test_a_track_is_in_the_cluster_where_it_is_published_or_in_none(store: SQLiteStore) -> None:
    """The members of one cluster are said to be near enough to be in it, so that those at its edge are too far."""
    publish(store, library.tracks(30, spread=1))
    run = run_in_force(store)
    assert run is not None
    first, *others = run.clusters
    store.upsert([run.model_copy(update={"rev": run.rev + 1, "clusters": [near_by(first), *others]})])
    clusters = {cluster.cluster_id: cluster for cluster in (near_by(first), *others)}
    homes = {one["track_id"]: home(clusters[one["cluster_id"]], one["distance"]) for one in store.scan(Assignment)}
    assert {first.cluster_id, "unclustered"} < set(homes.values())
    found = similar(store, NAMES, ["t004"], n=99)
    assert {one.track_id: one.cluster_id for one in found} == {one.track_id: homes[one.track_id] for one in found}
    assert {one.topic for one in found if one.cluster_id == "unclustered"} == {"lab.clusters.unclustered.tracks.v1"}


def near_by(cluster: Cluster) -> Cluster:
    """Return a cluster of which half the members are far from the centre."""
    return cluster.model_copy(update={"p99": cluster.radius / FAR})


def test_there_are_as_many_as_asked_for_and_never_the_liked_one(store: SQLiteStore) -> None:
    publish(store, library.tracks(6))
    assert len(similar(store, NAMES, ["t000"], n=3)) == 3
    assert sorted(ids(similar(store, NAMES, ["t000"], n=99))) == ["t001", "t002", "t003", "t004", "t005"]


def test_one_track_alone_has_none_similar(store: SQLiteStore) -> None:
    publish(store, library.tracks(1))
    assert similar(store, NAMES, ["t000"]) == []


def test_near_any_of_several_liked_tracks_is_near(store: SQLiteStore) -> None:
    """Tracks of two kinds are liked: what comes is of these kinds, at the distance to the nearer of them."""
    publish(store, library.tracks(40, kinds=4))
    found = similar(store, NAMES, ["t000", "t001"], n=18)
    assert {int(one[1:]) % 4 for one in ids(found)} == {0, 1}
    alone = {one.track_id: one for liked in ("t000", "t001") for one in similar(store, NAMES, [liked], n=9)}
    assert all(alone[one.track_id] == one for one in found)


def test_two_tracks_of_an_artist_are_enough_unless_more_are_asked_for(store: SQLiteStore) -> None:
    """A name that stands for no artist, or for many, is no artist; letters' case and spaces make no other one."""
    names = ["The Band", " the  band", "Various", "", None, "Various Artists"]
    tracks = library.tracks(24, kinds=1)
    publish(store, [one.model_copy(update={"artist": names[i % 6]}) for i, one in enumerate(tracks)])
    everything = similar(store, NAMES, ["t000"], n=99, per_artist=0)
    of_the_band = [one for one in everything if one.artist in names[:2]]
    assert (len(everything), len(of_the_band)) == (23, 7)
    assert similar(store, NAMES, ["t000"], n=99) == [one for one in everything if one not in of_the_band[2:]]


def test_tracks_that_came_after_the_run_are_found_too(store: SQLiteStore) -> None:
    tracks = library.tracks(31)
    publish(store, tracks[:30])
    store.upsert(tracks[30:])
    assert "t030" in ids(similar(store, NAMES, ["t002"], n=8))


def test_encodings_of_one_recording_are_one_result_unless_they_are_kept_apart(store: SQLiteStore) -> None:
    """Each of 12 recordings has a copy, 0.9 s longer, its values moved a little."""
    tracks = library.tracks(12)
    twins = [
        track.model_copy(
            update={
                "track_id": f"{track.track_id} twin",
                "duration": track.duration + 0.9,
                "features": nudged(track.features, 1e-3),
            }
        )
        for track in tracks
    ]
    publish(store, [*tracks, *twins])
    apart = ids(similar(store, NAMES, ["t003"], n=99, copies=True))
    assert (apart[0], len(apart)) == ("t003 twin", 23)
    together = ids(similar(store, NAMES, ["t003"], n=99))
    assert sorted(one[:4] for one in together) == [f"t{i:03d}" for i in range(12) if i != 3]
    assert together == [
        one for i, one in enumerate(apart) if one[:4] not in {"t003", *(near[:4] for near in apart[:i])}
    ]


def test_before_any_run_the_line_says_what_to_run(store: SQLiteStore) -> None:
    with pytest.raises(ConfigError, match="no clusters are published yet; run `murmur run AUDIO_DIR` first"):
        similar(store, NAMES, ["t000"])
    store.upsert(library.tracks(3))
    library.cluster_them(CONFIG, store)
    with pytest.raises(ConfigError, match="no clusters are published yet; run `murmur publish` first"):
        similar(store, NAMES, ["t000"])


def test_a_silent_track_has_nothing_similar(store: SQLiteStore) -> None:
    tracks = library.tracks(5)
    publish(store, [tracks[0].model_copy(update={"flags": ["silent"]}), *tracks[1:]])
    with pytest.raises(ConfigError, match=r"track t000 has no place in run-.*: it is silent"):
        similar(store, NAMES, ["t000", "t001"])


def test_a_track_whose_features_do_not_fit_is_passed_over(store: SQLiteStore) -> None:
    tracks = library.tracks(5)
    publish(store, [tracks[0].model_copy(update={"features": {}}), *tracks[1:]])
    assert sorted(ids(similar(store, NAMES, ["t001"]))) == ["t002", "t003", "t004"]


def test_a_track_is_named_by_id_path_copy_title_or_part_of_a_title(
    store: SQLiteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, three = library.tracks(3)
    store.upsert(
        [
            one.model_copy(update={"title": "Ode", "copies": [File(path=f"{tmp_path}/ode.mp3", size=1, mtime_ns=1)]}),
            two.model_copy(update={"title": "Ode to Joy"}),
            three.model_copy(update={"title": None}),
        ]
    )
    monkeypatch.chdir(tmp_path)
    texts = {
        "t001": "t001",
        "/music/t001.flac": "t001",
        "ode.mp3": "t000",
        "elsewhere/../ode.mp3": "t000",
        "ode": "t000",
        "TO JOY": "t001",
        "t002": "t002",
    }
    assert {text: resolve(store, text) for text in texts} == texts


def test_a_name_that_fits_several_tracks_names_them(store: SQLiteStore) -> None:
    store.upsert(library.tracks(7))
    with pytest.raises(
        ConfigError,
        match=r"'title of' names 7 tracks: t000 \(Title of t000\), .*t004 \(Title of t004\) and 2 more; give an id",
    ):
        resolve(store, "title of")


def test_a_name_that_fits_none_says_what_would(store: SQLiteStore) -> None:
    with pytest.raises(ConfigError, match="no tracks yet; run `murmur run AUDIO_DIR` first"):
        resolve(store, "anything")
    store.upsert(library.tracks(1))
    with pytest.raises(ConfigError, match="no track is named 'anything': give an id, a path, or a part of a title"):
        resolve(store, "anything")


@pytest.fixture(scope="module")
def real() -> list[Track]:
    """Return 14 real recordings in two encodings each."""
    folder = os.environ.get("MURMUR_TEST_AUDIO")
    if not folder:
        pytest.skip("MURMUR_TEST_AUDIO names no folder of real audio")
    from features import compute

    tracks = []
    with (Path(folder) / "metadata.csv").open(encoding="utf-8") as catalogue:
        for row in csv.DictReader(catalogue):
            one = compute(Path(folder) / row["filename"])
            known = {"flags": one.flags, "duration": one.duration, "artist": row["artist"], "title": row["title"]}
            tracks.append(library.track(row["filename"], one.features, extra={"recording": row["recording"]}, **known))
    return tracks


def test_the_other_encoding_of_each_real_recording_is_the_nearest(store: SQLiteStore, real: list[Track]) -> None:
    publish(store, real)
    recordings = {track.track_id: track.extra["recording"] for track in real}
    for name, of in recordings.items():
        nearest = min(similar(store, NAMES, [name], n=99, copies=True, per_artist=0), key=lambda one: one.distance)
        assert recordings[nearest.track_id] == of
        assert of not in {recordings[one] for one in ids(similar(store, NAMES, [name], n=99))}


def test_no_list_of_real_tracks_has_a_recording_twice_or_a_third_track_of_an_artist(
    store: SQLiteStore, real: list[Track]
) -> None:
    publish(store, real)
    known = {track.track_id: track for track in real}
    for found in store.scan(Assignment):
        listed = [known[near["track_id"]] for near in found["neighbours"]]
        recordings = [known[found["track_id"]].extra["recording"], *(one.extra["recording"] for one in listed)]
        assert len(set(recordings)) == len(recordings) == 11
        assert max(Counter(one.artist for one in listed).values()) <= 2


def test_no_list_has_a_recording_twice_or_a_third_track_of_an_artist(store: SQLiteStore) -> None:
    """Of 30 artists with three recordings, each with a twin."""
    tracks = [one.model_copy(update={"artist": f"artist {i % 30}"}) for i, one in enumerate(library.tracks(90))]
    twins = [one.model_copy(update={"track_id": f"{one.track_id} twin"}) for one in tracks]
    publish(store, tracks + twins)
    artists = {one.track_id: one.artist for one in tracks + twins}
    for found in store.scan(Assignment):
        listed = [near["track_id"] for near in found["neighbours"]]
        assert len({one[:4] for one in (found["track_id"], *listed)}) == 11
        assert max(Counter(artists[one] for one in listed).values()) <= 2
