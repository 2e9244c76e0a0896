"""Descriptions of clusters: words, genres and typical tracks that follow from the data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from math import comb
from pathlib import Path

import clustering_library as library
import numpy as np
import pytest

from clustering.describe import SCALES, describe, how_it_sounds, over_represented, sounds, typical
from clustering.overview import overview
from core.config import parse_config
from core.names import Names
from core.records import Assignment, Features, Run, RunInForce, Track, next_rev
from core.sqlite_store import SQLiteStore

HEARD: Features = {
    "spectral_centroid": {"mean": [2000.0]},
    "rms": {"mean": [0.1], "std": [0.05]},
    "spectral_flatness": {"mean": [0.02]},
    "mfcc_delta": {"mean_abs": [1.0, 3.0]},
    "spectral_bandwidth": {"mean": [1500.0]},
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLiteStore]:
    with closing(SQLiteStore(f"sqlite:///{tmp_path}/test.db")) as opened:
        yield opened


def test_a_track_has_a_place_on_each_scale() -> None:
    assert sounds(HEARD).tolist() == pytest.approx([2000, 0.1, 0.5, 0.02, 2, 1500])


def test_what_another_profile_lacks_is_no_place() -> None:
    fma = {block: HEARD[block] for block in ("spectral_centroid", "rms", "spectral_bandwidth")}
    assert np.isnan(sounds(fma)).tolist() == [False, False, False, True, True, False]


@pytest.mark.parametrize("i", range(len(SCALES)))
def test_each_scale_has_a_word_for_either_side(i: int) -> None:
    """One half of a library is 1 everywhere, the other 0, but on one scale: each is one standard deviation away."""
    library_ = np.zeros((20, len(SCALES)))
    library_[:10, i] = 1
    (high, *rest), (low, *_) = how_it_sounds(library_[:10], library_), how_it_sounds(library_[10:], library_)
    assert (high.word, high.mean, high.library_mean, high.deviation) == (SCALES[i].high, 1, 0.5, 1)
    assert (low.word, low.deviation) == (SCALES[i].low, -1)
    assert {sound.word for sound in rest} == {None}


@pytest.mark.parametrize(("shift", "word"), [(0.51, "bright"), (0.49, None), (-0.49, None), (-0.51, "dark")])
def test_half_a_standard_deviation_makes_a_word(shift: float, word: str | None) -> None:
    places = np.random.default_rng(0).normal(size=(200, len(SCALES)))
    member = places.mean(axis=0, keepdims=True)
    member[0, 0] += shift * places[:, 0].std()
    found = {sound.scale: sound.word for sound in how_it_sounds(member, places)}
    assert found["spectral_centroid.mean"] == word


def test_at_most_three_words_are_said_of_what_deviates_most() -> None:
    places = np.random.default_rng(0).normal(size=(500, len(SCALES)))
    member = places.mean(axis=0) + places.std(axis=0) * [0.6, -0.7, 0.8, -0.9, 1.0, 1.1]
    found = how_it_sounds(member[None], places)
    assert [sound.word for sound in found] == ["wide", "restless", "tonal", None, None, None]
    assert [round(sound.deviation, 6) for sound in found] == [1.1, 1.0, -0.9, 0.8, -0.7, 0.6]


def test_a_constant_has_no_word_and_what_is_unknown_is_left_out() -> None:
    places = np.full((10, len(SCALES)), 7.0)
    places[0, 1] = np.nan
    found = how_it_sounds(places[1:3], places)
    assert {sound.deviation for sound in found} == {0.0}
    assert len(found) == len(SCALES) - 1
    assert "rms.mean" not in {sound.scale for sound in found}


def test_a_genre_is_over_represented_if_a_draw_would_hardly_have_so_many() -> None:
    """Of 20 tracks 10 are folk; 6 of 6 has the probability C(10, 6)/C(20, 6) = 0.0054, 5 of 5 has 0.016."""
    tracks = Counter(folk=10, waltz=10)
    (found,) = over_represented(Counter(folk=6), tracks)
    assert (found.genre, found.tracks, found.share, found.lift) == ("folk", 6, 1, 2)
    assert found.p == pytest.approx(comb(10, 6) / comb(20, 6))
    assert over_represented(Counter(folk=5), tracks) == []


def test_four_tracks_are_too_few_for_a_genre_and_the_rarer_goes_first() -> None:
    tracks = Counter(folk=4, waltz=1000, jazz=30, rock=300)
    found = over_represented(Counter(folk=4, waltz=20, jazz=15, rock=60), tracks)
    assert [one.genre for one in found] == ["jazz", "rock"]
    assert found[0].lift > found[1].lift > 1


def test_the_typical_tracks_are_the_nearest_and_the_same_title_comes_once() -> None:
    titles = ["a", "a", "b", "a", "c", "d"]
    tracks = [{"track_id": str(i), "title": title, "artist": "x"} for i, title in enumerate(titles)]
    assert [one.track_id for one in typical(tracks)] == ["0", "2", "4"]
    tracks[1]["artist"] = "y"
    assert [one.track_id for one in typical(tracks)] == ["0", "1", "2"]
    for track in tracks:
        track["title"] = None
    assert [one.track_id for one in typical(tracks)] == ["0", "1", "2"], "one without a title is like no other"


def test_a_description_says_it_in_a_line() -> None:
    labels, places = np.repeat([0, 1], 12), np.zeros((24, len(SCALES)))
    places[:, 0] = labels
    tracks = [
        {"track_id": f"t{i}", "title": f"Title {i}", "artist": None, "genre": "jazz" if i < 12 else None}
        for i in range(24)
    ]
    tracks[12:20] = [track | {"genre": "folk"} for track in tracks[12:20]]
    dark, bright = describe(labels, np.arange(24.0)[::-1], places, tracks)
    assert (dark.text, bright.text) == ("dark; jazz", "bright; folk")
    assert [one.title for one in dark.typical] == ["Title 11", "Title 10", "Title 9"]
    (alone,) = describe(np.zeros(24, dtype=int), np.zeros(24), places, tracks)
    assert (alone.text, alone.genres) == ("close to the average", [])


def test_the_run_and_the_overview_hold_what_each_cluster_is(store: SQLiteStore) -> None:
    """The kinds differ in loudness too: kind 0 is the loudest."""
    tracks = []
    for i, track in enumerate(library.tracks(45, kinds=3)):
        loudness = {"mean": [0.3 - 0.1 * (i % 3)], "std": [0.02]}
        named = track.features | {"rms": loudness}
        tracks.append(track.model_copy(update={"features": named, "genre": f"genre {i % 3}"}))
    store.upsert(tracks)
    report = library.cluster_them(parse_config({"clustering": {"engine": "sklearn", "n_clusters": 3}}), store)
    store.upsert([RunInForce(rev=1, run_id=report.run_id)])
    run = store.get(Run, report.run_id)
    assert run is not None
    for one, shown in zip(run.clusters, overview(store, Names()), strict=True):
        assert one.description is not None
        (genre,) = one.description.genres
        words = {sound.word for sound in one.description.sounds}
        assert (genre.tracks, genre.lift) == (15, 3)
        assert words & {"loud", "quiet"} == {"genre 0": {"loud"}, "genre 1": set(), "genre 2": {"quiet"}}[genre.genre]
        assert shown.description == one.description.model_dump()
        assert shown.typical == [track.title for track in one.description.typical]


def test_the_overview_counts_the_members_there_are_and_those_of_no_cluster_apart(store: SQLiteStore) -> None:
    store.upsert(library.tracks(30, kinds=2))
    report = library.cluster_them(parse_config({"clustering": {"engine": "sklearn", "n_clusters": 2}}), store)
    store.upsert([RunInForce(rev=1, run_id=report.run_id)])
    first, second = overview(store, Names())
    store.delete(Track, {first.typical_id: next_rev()})
    far = store.get(Assignment, f"{report.run_id}/{second.typical_id}")
    assert far is not None
    store.upsert([far.model_copy(update={"distance": 1e6, "rev": next_rev(far.rev)})])
    left, stayed, unclustered = overview(store, Names())
    assert (left.size, stayed.size, unclustered.size) == (first.size - 1, second.size - 1, 1)
    assert left.typical_id != first.typical_id
    assert (unclustered.cluster_id, unclustered.typical_id) == ("unclustered", second.typical_id)
    assert unclustered.topic == Names().cluster("unclustered")
