"""Libraries and circumstances at the edge, through the jobs and the command: each has an answer of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import clustering_library as library
import pytest
import yaml
from topics_library import World, add_run, delete_topic, said

from cli.main import main
from core import open_bus, open_store
from core.bus import read_to_end
from core.config import Config, parse_config
from core.names import CURRENT, Names
from core.records import LedgerEntry, Member, Run, RunInForce, Track
from topics.fold import fold

if TYPE_CHECKING:
    pass

URL = "sqlite:///murmur.db"
READERS = (
    "clusters",
    "clusters --json",
    "clusters --history",
    "clusters --plot map.png",
    "status",
    "similar t000",
    "subscribe c01",
    "export features features.csv",
    "export assignments assignments.csv",
    "export playlists playlists",
)


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Murmur = Callable[[str], Outcome]


@pytest.fixture
def murmur(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Murmur:
    """Return a function that runs the command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(line: str) -> Outcome:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["murmur", "-q", *line.split()])
        return Outcome(main(), *capfd.readouterr())

    return run


@pytest.fixture(params=["sklearn", "spark"])
def engine(request: pytest.FixtureRequest) -> str:
    """Return the name of an engine; Spark stays open from one to the next."""
    if request.param == "spark":
        request.getfixturevalue("spark")
    return str(request.param)


def alike(kinds: list[int]) -> list[Track]:
    """Return a track for each number; those of one number have the same features."""
    models = library.tracks(max(kinds) + 1, kinds=max(kinds) + 1)
    return [
        models[kind].model_copy(
            update={"track_id": f"t{i:03d}", "title": f"Title of t{i:03d}", "duration": 100.0 + 3 * i}
        )
        for i, kind in enumerate(kinds)
    ]


def with_constant(tracks: list[Track], blocks: tuple[str, ...]) -> list[Track]:
    """Return the tracks with a value for all of them in each statistic of some blocks."""

    def flattened(track: Track) -> Track:
        flat = {block: {name: [0.5] * len(row) for name, row in track.features[block].items()} for block in blocks}
        return track.model_copy(update={"features": track.features | flat})

    return list(map(flattened, tracks))


def silent(tracks: list[Track]) -> list[Track]:
    return [track.model_copy(update={"flags": ["silent"]}) for track in tracks]


ODD: dict[str, tuple[list[Track], list[set[int]]]] = {
    "one track": (library.tracks(1), [{0}]),
    "two tracks": (library.tracks(2), [{0}, {1}]),
    "all equal": (alike([0] * 12), [set(range(12))]),
    "two distinct ones where five clusters are usual": (
        alike([0, 1] * 25),
        [set(range(0, 50, 2)), set(range(1, 50, 2))],
    ),
    "a constant descriptor": (
        with_constant(library.tracks(40), ("spectral_centroid",)),
        [set(range(kind, 40, 4)) for kind in range(4)],
    ),
    "a constant group": (
        with_constant(library.tracks(40), ("fluctuation",)),
        [set(range(kind, 40, 4)) for kind in range(4)],
    ),
    "one that is not silent": ([*library.tracks(1), *silent(library.tracks(9)[1:])], [{0}]),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_library_is_clustered_published_and_shown(murmur: Murmur, engine: str, name: str) -> None:
    tracks, expected = ODD[name]
    wanted = f" --clusters {len(expected)}" if name.startswith("a constant") else ""
    with closing(open_store(URL)) as store:
        store.upsert(tracks)
    assert murmur(f"cluster --engine {engine}{wanted}").code == 0
    assert murmur("publish").code == 0
    with closing(open_bus(URL)) as bus:
        found = said(bus, Names())
    members: dict[str, set[int]] = {}
    for track_id, cluster_id in found.items():
        members.setdefault(cluster_id, set()).add(int(track_id[1:]))
    assert sorted(members.values(), key=min) == expected
    for line in READERS:
        assert murmur(line)[::2] == (0, ""), line
    again = murmur(f"cluster --engine {engine}{wanted}")
    assert (again.code, "nothing new" in again.out) == (0, True)
    assert "nothing new" in murmur("publish").out


@pytest.mark.parametrize(
    ("tracks", "told"),
    [
        ([], "no tracks yet; run `murmur run AUDIO_DIR` first"),
        (silent(library.tracks(3)), "nothing to cluster (3 silent or too short); run `murmur run AUDIO_DIR` on a"),
    ],
    ids=["no track", "only silent tracks"],
)
def test_nothing_to_cluster_is_one_line_for_each_command(murmur: Murmur, tracks: list[Track], told: str) -> None:
    with closing(open_store(URL)) as store:
        store.upsert(tracks)
        store.count(Track)
    for line in ("cluster --engine sklearn", "cluster --engine spark"):
        done = murmur(line)
        assert (done.code, done.err.count("\n"), told in done.err) == (1, 1, True), done.err
    done = murmur("publish")
    assert (done.code, done.err) == (1, f"murmur: {URL} holds no complete run; run `murmur cluster` first\n")
    for line in ("clusters", "similar t000", "export playlists playlists", "clusters --plot map.png"):
        done = murmur(line)
        assert (done.code, done.err.count("\n"), "first" in done.err) == (2, 1, True), (line, done.err)
    assert murmur("status").code == 0


def test_fewer_distinct_vectors_than_clusters_are_asked_for_are_refused(murmur: Murmur, engine: str) -> None:
    with closing(open_store(URL)) as store:
        store.upsert(alike([0, 1, 2] * 4))
    done = murmur(f"cluster --engine {engine} --clusters 4")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "4 is more than the 3 distinct tracks" in done.err


def test_tracks_of_another_feature_set_are_told_with_both_and_the_command(murmur: Murmur) -> None:
    """Before the configuration was changed there was a run, which stays in force until there is something new."""
    with closing(open_store(URL)) as store:
        store.upsert(library.tracks(20))
    murmur("cluster --engine sklearn")
    murmur("publish")
    Path("config.yaml").write_text(yaml.safe_dump({"audio": {"max_duration": 60}}))
    changed = parse_config({"audio": {"max_duration": 60}}).feature_set
    done = murmur("cluster --engine sklearn")
    assert (done.code, done.err.count("\n")) == (1, 1)
    for word in (Config().feature_set, changed, "20 of ", "`murmur run AUDIO_DIR`"):
        assert word in done.err
    assert "nothing new" in murmur("publish").out
    assert murmur("clusters").code == 0


FIRST = {"a": "c01", "b": "c01", "c": "c01", "d": "c02", "e": "c02", "f": "c02"}
MOVED = FIRST | {"b": "c02"}


@pytest.mark.parametrize("topic", ["a cluster's", "the ledger", "the runs'", "all of them"])
def test_a_topic_that_was_deleted_is_made_again_and_no_track_is_in_two_clusters_or_in_none(
    world: World, topic: str
) -> None:
    names = world.names
    add_run(world.store, FIRST)
    world.publish()
    every = {"a cluster's": names.cluster("c01"), "the ledger": names.members, "the runs'": names.runs}
    for name in [every[topic]] if topic in every else [*every.values(), names.cluster("c02"), names.spaces]:
        delete_topic(world.bus, name)
    run = add_run(world.store, MOVED)
    world.publish()
    assert world.said() == MOVED
    current = [message for message in read_to_end(world.bus, [names.runs]) if message.key == CURRENT.encode()]
    assert fold(current, RunInForce)[CURRENT].run_id == run.run_id
    assert fold(read_to_end(world.bus, [names.members]), LedgerEntry).keys() == MOVED.keys()
    assert world.publish().sent == 0


def test_a_topic_of_the_spaces_that_was_deleted_has_all_published_runs_again(world: World) -> None:
    runs = [add_run(world.store, FIRST)]
    world.publish()
    delete_topic(world.bus, world.names.spaces)
    runs.append(add_run(world.store, MOVED))
    world.publish()
    kept = fold(read_to_end(world.bus, [world.names.spaces]), Run)
    assert kept == {run.run_id: run for run in runs}


def test_after_the_ledger_was_deleted_tracks_keep_the_run_in_which_they_joined(world: World) -> None:
    first = add_run(world.store, FIRST)
    world.publish()
    delete_topic(world.bus, world.names.members)
    second = add_run(world.store, MOVED)
    world.publish()
    topics = [read_to_end(world.bus, [world.names.cluster(cluster_id)]) for cluster_id in ("c01", "c02")]
    since = {track_id: one.since_run for topic in topics for track_id, one in fold(topic, Member).items()}
    assert since == dict.fromkeys(FIRST, first.run_id) | {"b": second.run_id}
