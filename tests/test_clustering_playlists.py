"""Playlists of the clusters: their order, what they hold, what becomes of those of an earlier export."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import clustering_library as library
import m3u8
import numpy as np
import pytest

from clustering import playlists
from clustering.place import located
from clustering.playlists import PlaylistsReport, file_name, listening_order
from clustering.runs import require_run_in_force
from core.config import parse_config
from core.errors import ConfigError, MurmurError
from core.jobs import Progress
from core.names import may_be_escaped, path_text
from core.records import Assignment, Cluster, Description, Run, RunInForce, Track
from core.sqlite_store import SQLiteStore

CONFIG = parse_config({"clustering": {"engine": "sklearn", "n_clusters": 2}})


class Playlist(NamedTuple):
    name: str
    tracks: list[tuple[int, str, str]]
    """Seconds, what is said, path."""

    @property
    def ids(self) -> list[str]:
        return [Path(path).stem for _, _, path in self.tracks]


def parse(file: Path) -> Playlist:
    """Read an M3U8 file, as players do, too; every line that is not as it should be is an error."""
    text = file.read_bytes().decode("utf-8")
    assert text.endswith("\n")
    first, second, *lines = text.removesuffix("\n").split("\n")
    assert first == "#EXTM3U"
    name = re.fullmatch(r"#PLAYLIST:(.+)", second)
    assert name
    entries = [line for line in lines if not line.startswith("#") or line.startswith("#EXT")]
    tracks = []
    for info, path in zip(entries[::2], entries[1::2], strict=True):
        found = re.fullmatch(r"#EXTINF:(\d+),(.+)", info)
        assert found
        assert path.startswith("/")
        tracks.append((int(found[1]), found[2], path))
    assert [(one.duration, one.uri) for one in m3u8.loads(text).segments] == [
        (length, path) for length, _, path in tracks
    ]
    return Playlist(name[1], tracks)


def parse_all(folder: Path) -> dict[str, Playlist]:
    """Return the playlists of a folder by cluster id."""
    return {(one := parse(file)).name.partition(" ")[0]: one for file in sorted(folder.glob("*.m3u8"))}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLiteStore]:
    with closing(SQLiteStore(f"sqlite:///{tmp_path}/test.db")) as opened:
        yield opened


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "for the car" / "playlists"


def publish(store: SQLiteStore, tracks: list[Track]) -> Run:
    store.upsert(tracks)
    store.upsert([RunInForce(rev=1, run_id=library.cluster_them(CONFIG, store).run_id)])
    return require_run_in_force(store)


def export(store: SQLiteStore, out: Path) -> PlaylistsReport:
    return playlists.run(CONFIG, out, store=store)


def at(track: Track, path: str, **changed: object) -> Track:
    return track.model_copy(update={"source": track.source.model_copy(update={"path": path}), **changed})


def redescribe(store: SQLiteStore, run: Run, *texts: str) -> list[Cluster]:
    """Put a run in force that differs in what is said of its clusters, those without a text left out."""
    clusters = [
        cluster.model_copy(update={"description": Description(text=text, typical=[], genres=[], sounds=[])})
        for cluster, text in zip(run.clusters, texts, strict=False)
    ]
    store.upsert([run.model_copy(update={"rev": run.rev + 10, "clusters": clusters})])
    return clusters


def order(places: list[float], artists: list[str] | None = None, centre: float = 0.0) -> list[int]:
    """Return the order of tracks on a line."""
    X = np.array(places, dtype=float)[:, None]
    return listening_order(X, np.abs(X[:, 0] - centre), artists or [""] * len(X))


def test_on_a_line_it_goes_from_the_centre_to_the_nearest_that_is_left() -> None:
    """From 0 to 1, 3 and 6, the other side being farther, then back to −4 and −9."""
    assert order([6, -4, 0, 3, -9, 1]) == [2, 5, 3, 0, 1, 4]
    assert order([6, -4, 0, 3, -9, 1], centre=6) == [0, 3, 5, 2, 1, 4]
    assert order([7]) == [0]


def test_an_artist_gives_way_to_the_nearest_of_another() -> None:
    assert order([0, 1, 2, 3, 4], ["a", "a", "a", "b", "a"]) == [0, 3, 2, 1, 4]
    assert order([0, 1, 2, 3], ["a", "a", "b", "b"]) == [0, 2, 1, 3]


def test_one_of_another_artist_beyond_the_five_nearest_is_too_far() -> None:
    assert order([0, 1, 2, 3, 4, 5], ["a"] * 5 + ["b"])[1] == 5
    assert order([0, 1, 2, 3, 4, 5, 6], ["a"] * 6 + ["b"])[1] == 1


def test_tracks_of_no_one_artist_may_follow_each_other() -> None:
    assert order([0, 1, 2, 3], ["", "", "a", ""]) == [0, 1, 2, 3]


def test_of_tracks_in_one_place_each_is_played_once() -> None:
    assert sorted(order([2.0] * 9)) == list(range(9))


@pytest.mark.parametrize("seed", range(5))
def test_the_order_is_that_of_the_definition(seed: int) -> None:
    """Written once more, with every distance measured and sorted."""
    rng = np.random.default_rng(seed)
    X, artists = rng.normal(size=(40, 3)), [f"{i}" for i in rng.integers(0, 4, size=40)]
    distances = np.linalg.norm(X, axis=1)
    expected = [min(range(40), key=lambda i: distances[i])]
    while left := set(range(40)) - set(expected):
        last = expected[-1]
        near = sorted(left, key=lambda i: np.linalg.norm(X[i] - X[last]))[:5]
        expected.append(next((i for i in near if artists[i] != artists[last]), near[0]))
    assert listening_order(X, distances, artists) == expected


def test_each_cluster_has_a_playlist_of_its_members_that_begins_at_the_centre(store: SQLiteStore, out: Path) -> None:
    run = publish(store, [one.model_copy(update={"artist": f"Band {one.track_id}"}) for one in library.tracks(20, 2)])
    report = export(store, out)
    assert (report.read, report.written, report.failed, report.playlists) == (20, 20, 0, 2)
    found = parse_all(out)
    of = library.assigned(store, run.run_id)
    assert {one: set(found[one].ids) for one in found} == {one: {i for i in of if of[i] == one} for one in of.values()}
    nearest = {one["track_id"]: one["distance"] for one in store.scan(Assignment, prefix=f"{run.run_id}/")}
    position = {track["track_id"]: position for track, position in located(store, run, ())}
    for cluster in run.clusters:
        ids = found[cluster.cluster_id].ids
        assert ids[0] == min(ids, key=nearest.__getitem__)
        steps = [np.linalg.norm(position[one] - position[ids[0]]) for one in ids[1:]]
        assert steps[0] == min(steps)
        assert cluster.description
        assert found[cluster.cluster_id].name == f"{cluster.cluster_id} {cluster.description.text}"
        assert (out / file_name(found[cluster.cluster_id].name)).is_file()
    assert (100, "Band t000 - Title of t000", "/music/t000.flac") in [*found["c01"].tracks, *found["c02"].tracks]


def test_without_an_artist_the_title_is_said_and_without_a_title_the_name_of_the_file(
    store: SQLiteStore, out: Path
) -> None:
    one, two = library.tracks(2, duration=99.6)
    publish(store, [one, two.model_copy(update={"title": None})])
    export(store, out)
    assert sorted(track for found in parse_all(out).values() for track in found.tracks) == [
        (100, "Title of t000", "/music/t000.flac"),
        (100, "t001", "/music/t001.flac"),
    ]


def test_a_line_break_in_a_name_is_a_space_and_one_in_a_path_leaves_the_track_out(
    store: SQLiteStore, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, two, three, *rest = library.tracks(6)
    one = one.model_copy(update={"title": "Two\r\nlines\u2028and\nmore", "artist": "#EXTINF:9,\nX"})
    broken = [at(two, "/music/a\nb.flac"), at(three, "/music/a\rb.flac")]
    publish(store, [one, *broken, *rest])
    report = export(store, out)
    assert (report.read, report.written, report.failed) == (6, 4, 2)
    tracks = [track for found in parse_all(out).values() for track in found.tracks]
    assert (100, "#EXTINF:9, X - Two lines and more", "/music/t000.flac") in tracks
    assert len(tracks) == 4
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "clustering.playlists"]
    assert warning.startswith("2 left out: ")
    assert warning.endswith(r"/music/a\nb.flac")


def test_a_path_that_was_escaped_is_left_out_unless_a_file_is_named_so(
    store: SQLiteStore, out: Path, tmp_path: Path
) -> None:
    escaped = path_text(os.fsdecode(b"/music/caf\xe9.flac"))
    (tmp_path / "100%FF.flac").touch()
    paths = [escaped, f"{tmp_path}/100%FF.flac", "/music/caf%C3%A9.flac", "/music/100%20.flac", "/music/café 日本.flac"]
    publish(store, [at(one, path) for one, path in zip(library.tracks(5), paths, strict=True)])
    assert export(store, out).failed == 1
    assert {path for found in parse_all(out).values() for _, _, path in found.tracks} == set(paths[1:])


@pytest.mark.parametrize(
    "raw", [b"/caf\xe9", b"/\xff\xfe", "/é/".encode() + b"\xe9", b"/%C3/\xe9", b"/\xc3\xa9", b"/a%41"]
)
def test_what_is_not_utf8_is_known_by_its_escapes(raw: bytes) -> None:
    path = os.fsdecode(raw)
    assert may_be_escaped(path_text(path)) == (path_text(path) != path)


def test_a_track_too_far_from_every_centre_is_in_no_playlist(store: SQLiteStore, out: Path) -> None:
    run = publish(store, library.tracks(12, 2))
    far = next(store.scan(Assignment, prefix=f"{run.run_id}/"))
    store.upsert([Assignment.from_document(far | {"rev": far["rev"] + 1, "distance": 1e6})])
    report = export(store, out)
    assert (report.read, report.written, report.unclustered) == (12, 11, 1)
    assert far["track_id"] not in [one for found in parse_all(out).values() for one in found.ids]


def test_twice_is_the_same_and_leaves_nothing_else(store: SQLiteStore, out: Path) -> None:
    publish(store, library.tracks(12, 2))
    export(store, out)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    assert export(store, out).removed == 0
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert {Path(name).suffix for name in before} == {".m3u8"}


def test_playlists_of_clusters_that_have_gone_or_are_called_otherwise_are_replaced(
    store: SQLiteStore, out: Path
) -> None:
    run = publish(store, library.tracks(12, 2))
    redescribe(store, run, "bright, loud; Rock/Pop", 'dark: "noir"')
    export(store, out)
    assert sorted(file.name for file in out.iterdir()) == ["c01 bright loud Rock Pop.m3u8", "c02 dark noir.m3u8"]
    redescribe(store, require_run_in_force(store), "quiet")
    assert export(store, out).removed == 2
    assert [file.name for file in out.iterdir()] == ["c01 quiet.m3u8"]


def test_what_others_wrote_stays(store: SQLiteStore, out: Path) -> None:
    publish(store, library.tracks(12, 2))
    export(store, out)
    mine = next(out.iterdir())
    text = mine.read_text()
    foreign = {
        "c90 mixtape.m3u8": "#EXTM3U\n#PLAYLIST:c90 mixtape\n#EXTINF:1,a\n/a.mp3\n",
        "c91 plain.m3u8": "#EXTM3U\n/a.mp3\n",
        "c92.m3u8": "",
        "party.m3u8": text,
        "cool.m3u8": text,
        "c01 bright.m3u": text,
    }
    for name, held in foreign.items():
        (out / name).write_text(held)
    (out / "c93 folder.m3u8").mkdir()
    (out / "c94 link.m3u8").symlink_to(mine)
    (out / "c95 stale.m3u8").write_text(text)
    there = {file.name for file in out.iterdir()} - {"c95 stale.m3u8"}
    assert export(store, out).removed == 1
    assert {file.name for file in out.iterdir()} == there
    assert {name: (out / name).read_text() for name in foreign} == foreign


def test_a_file_of_somebody_else_in_the_place_of_a_playlist_is_not_overwritten(store: SQLiteStore, out: Path) -> None:
    redescribe(store, publish(store, library.tracks(12, 2)), "loud", "quiet")
    out.mkdir(parents=True)
    (out / "c02 quiet.m3u8").write_text("#EXTM3U\n/a.mp3\n")
    with pytest.raises(ConfigError, match=r"c02 quiet.m3u8: not a playlist of ours; move it, or name another folder"):
        export(store, out)
    assert [(file.name, file.read_text()) for file in out.iterdir()] == [("c02 quiet.m3u8", "#EXTM3U\n/a.mp3\n")]


def test_a_long_name_is_cut_between_two_letters() -> None:
    assert file_name("c01 " + "ж" * 200) == "c01 " + "ж" * 58 + ".m3u8"
    assert file_name("c01 ../..\\a:b*c?\x00|<d>.") == "c01 a b c d.m3u8"


def test_a_run_that_is_stopped_leaves_whole_files_only(
    store: SQLiteStore, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(store, library.tracks(12, 2))
    seen: list[Progress] = []

    def interrupt(now: Progress) -> None:
        seen.append(now)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        playlists.run(CONFIG, out, store=store, progress=interrupt)
    (file,) = out.iterdir()
    assert len(parse(file).tracks) == seen[0].done

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(MurmurError, match=r"\.m3u8: cannot be written: No space left"):
        export(store, out)
    assert list(out.iterdir()) == [file]


def test_without_a_run_in_force_nothing_is_made(store: SQLiteStore, out: Path) -> None:
    store.upsert(library.tracks(4))
    with pytest.raises(ConfigError, match="no clusters are published yet"):
        export(store, out)
    assert not out.parent.exists()


def test_a_run_without_assignments_removes_no_playlist(store: SQLiteStore, out: Path) -> None:
    run = publish(store, library.tracks(12, 2))
    export(store, out)
    store.purge(Assignment, f"{run.run_id}/")
    with pytest.raises(MurmurError, match="has no assignments; run `murmur publish` first"):
        export(store, out)
    assert len(list(out.iterdir())) == 2


def test_a_folder_that_is_none_or_cannot_be_written_is_named(
    store: SQLiteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(store, library.tracks(4))
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file: a file, not a folder"):
        export(store, tmp_path / "file")
    with pytest.raises(ConfigError, match="Not a directory; name another folder"):
        export(store, tmp_path / "file" / "below")
    monkeypatch.setattr(os, "access", lambda *_: False)  # whom nothing is forbidden is who runs the tests, at times
    with pytest.raises(ConfigError, match="locked: cannot be written; name another folder"):
        export(store, tmp_path / "locked")
