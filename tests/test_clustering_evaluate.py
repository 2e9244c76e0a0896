"""The command `evaluate`: the space of a run, or of settings that are tried, against the catalogue."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import clustering_library as library
import pytest

from clustering.evaluate import evaluate, grid
from core.config import Config, parse_config
from core.errors import ConfigError
from core.jobs import Progress
from core.records import Run, RunInForce, Track
from core.sqlite_store import SQLiteStore

CONFIG = parse_config({"clustering": {"engine": "sklearn"}})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLiteStore]:
    with closing(SQLiteStore(f"sqlite:///{tmp_path}/test.db")) as opened:
        yield opened


def catalogue(n: int = 60, kinds: int = 3, **changed: object) -> list[Track]:
    """Return tracks whose genre is their kind; two artists a genre, an album each; the last 4 have no genre."""
    tracks = []
    for i, track in enumerate(library.tracks(n, kinds=kinds, **changed)):
        artist = f"artist {i % (2 * kinds)}"
        genre = f"genre {i % kinds}" if i < n - 4 else None
        extra = {"mood": f"mood {i % 2}", "serial": str(i)}
        tracks.append(track.model_copy(update={"genre": genre, "artist": artist, "album": artist, "extra": extra}))
    return tracks


def test_the_run_is_measured_against_any_column(store: SQLiteStore) -> None:
    store.upsert(catalogue())
    run_id = library.cluster_them(CONFIG, store).run_id
    found = evaluate(CONFIG, "genre", store=store)
    (one,) = found.settings
    assert (found.tracks, found.classes, found.unlabelled, found.apart) == (56, 3, 4, ("artist", "album"))
    assert one.setting == run_id
    assert one.apart is not None
    assert (one.neighbours.nn1, one.neighbours.nn5, one.apart.nn1, one.apart.nn5) == (1, 1, 1, 1)
    assert (one.neighbours.n, one.apart.n) == (56, 56)
    assert one.most_lists > 10
    mood = evaluate(CONFIG, "mood", store=store).settings[0]
    assert mood.purity < 0.65
    assert mood.ari < 0.05


def test_the_measures_of_a_run_are_those_of_its_genres(store: SQLiteStore) -> None:
    store.upsert(catalogue(spread=0.6))
    run = store.get(Run, library.cluster_them(CONFIG, store).run_id)
    assert run is not None
    (one,) = evaluate(CONFIG, "genre", store=store).settings
    for name in ("purity", "purity_chance", "nmi", "nmi_chance", "ari"):
        assert run.metrics[name] == pytest.approx(getattr(one, name)), name
    assert run.metrics.keys() > {"inertia", "silhouette", "davies_bouldin", "gini"}


def test_a_run_without_genres_has_no_measures_of_them(store: SQLiteStore) -> None:
    store.upsert(library.tracks(30))
    run = store.get(Run, library.cluster_them(CONFIG, store).run_id)
    assert run is not None
    assert run.metrics.keys() == {"inertia", "silhouette", "davies_bouldin", "gini"}


def test_an_artist_is_found_among_other_albums_and_an_album_among_all(store: SQLiteStore) -> None:
    """Each artist has one album: without it nothing of the artist is left."""
    store.upsert(catalogue())
    library.cluster_them(CONFIG, store)
    for label, apart in (("artist", ("album",)), ("album", ())):
        found = evaluate(CONFIG, label, store=store)
        assert (found.apart, found.settings[0].apart) == (apart, None)


def test_various_artists_are_not_one_artist(store: SQLiteStore) -> None:
    tracks = [track.model_copy(update={"artist": "Various Artists", "album": None}) for track in catalogue()]
    store.upsert(tracks)
    library.cluster_them(CONFIG, store)
    (one,) = evaluate(CONFIG, "genre", store=store).settings
    assert one.apart == one.neighbours


def test_an_artist_or_album_that_is_spelt_in_two_ways_is_one(store: SQLiteStore) -> None:
    tracks = catalogue(spread=0.6)
    respelt = [
        one.model_copy(update={"rev": 2, "artist": f" {one.artist}".upper(), "album": f"{one.album}  "})
        for i, one in enumerate(tracks)
        if i // 6 % 2  # half of each artist's
    ]
    found = []
    for written in (tracks, respelt):
        store.upsert(written)
        found += evaluate(Config(), "genre", ["clustering.n_clusters=3"], store=store).settings
    assert found[0] == found[1]
    assert found[0].apart != found[0].neighbours


def test_the_run_in_force_goes_before_the_latest(store: SQLiteStore) -> None:
    store.upsert(catalogue())
    first = library.cluster_them(CONFIG, store).run_id
    library.cluster_them(parse_config({"clustering": {"engine": "sklearn", "n_clusters": 9}}), store)
    store.upsert([RunInForce(rev=1, run_id=first)])
    assert evaluate(CONFIG, "genre", store=store).settings[0].setting == first


def test_a_number_of_clusters_that_is_chosen_can_be_tried_beside_one_that_is_given(store: SQLiteStore) -> None:
    store.upsert(catalogue(70, kinds=6))
    tried = ["clustering.n_clusters=auto", "clustering.n_clusters=5"]
    assert [one.n_clusters for one in evaluate(Config(), "genre", tried, store=store).settings] == [6, 5]


def test_a_grid_of_settings_is_fitted_anew_and_nothing_is_written(store: SQLiteStore) -> None:
    store.upsert(catalogue())
    seen: list[Progress] = []
    tried = ["clustering.n_clusters=3", "clustering.n_clusters=6", "clustering.groups.rhythm.weight=0"]
    found = evaluate(Config(), "genre", tried, store=store, progress=seen.append)
    assert [(one.setting, one.n_clusters, one.purity) for one in found.settings] == [
        ("clustering.n_clusters=3 clustering.groups.rhythm.weight=0", 3, 1),
        ("clustering.n_clusters=6 clustering.groups.rhythm.weight=0", 6, 1),
    ]
    assert [one.ari < 1 for one in found.settings] == [False, True]
    assert store.count(Run) == 0
    assert seen[-1] == Progress("evaluate", 2, 2)
    assert [now.done for now in seen if now.stage == "read"] == [60]


def test_other_blocks_are_read_from_the_store(store: SQLiteStore) -> None:
    store.upsert(catalogue())
    tried = [f"clustering.groups.timbre.blocks={blocks}" for blocks in ("[mfcc]", "[spectral_contrast, mfcc_delta]")]
    found = evaluate(CONFIG, "genre", tried, store=store)
    assert len({one.neighbours.nn5 for one in found.settings} | {one.most_lists for one in found.settings}) > 1


@pytest.mark.parametrize(
    ("tried", "told"),
    [
        (["rhythm"], "--try rhythm: write KEY=VALUE, such as clustering.groups.rhythm.weight=0.25"),
        (["audio.sample_rate=44100"], "--try audio.sample_rate=44100: write KEY=VALUE"),
        (["clustering.engine=spark"], "clustering.engine changes nothing here"),
        (["clustering.groups.rythm.weight=1"], "--try: clustering.groups.rythm: unknown key; did you mean 'rhythm'"),
        (["clustering.n_clusters.many=1"], "--try: clustering.n_clusters: a mapping is not valid"),
        (["clustering.n_clusters=[1"], "--try clustering.n_clusters=.1: the value is not YAML"),
        (["clustering.groups.rhythm.blocks=[tempo]"], "clustering.groups.rhythm: needs tempo"),
    ],
)
def test_a_setting_that_cannot_be_tried_is_one_line(tried: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        list(grid(CONFIG, tried))


def test_what_cannot_be_measured_is_one_line_that_says_what_can(store: SQLiteStore) -> None:
    with pytest.raises(ConfigError, match="no clusters yet; run `murmur cluster` first"):
        evaluate(CONFIG, "genre", store=store)
    store.upsert(catalogue())
    library.cluster_them(CONFIG, store)
    for label in ("year", "colour"):
        with pytest.raises(ConfigError, match=f"--label {label}: .* has genre, artist, album, mood, serial$"):
            evaluate(CONFIG, label, store=store)
    with pytest.raises(ConfigError, match="--label serial: needs two classes of 5 tracks or more, found 0"):
        evaluate(CONFIG, "serial", store=store)
