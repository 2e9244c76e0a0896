"""Placing tracks one at a time in the space of a run: as the batch does, while the library changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import clustering_library as library
import pytest

from clustering.place import Places, read_places, settle
from core.config import parse_config
from core.records import Assignment, Record, Run, Track
from core.sqlite_store import SQLiteStore
from core.store import Document

CONFIG = parse_config({"clustering": {"engine": "sklearn"}})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLiteStore]:
    with closing(SQLiteStore(f"sqlite:///{tmp_path}/test.db")) as opened:
        yield opened


def clustered(store: SQLiteStore, tracks: list[Track]) -> Run:
    store.upsert(tracks)
    run = store.get(Run, library.cluster_them(CONFIG, store).run_id)
    assert run is not None
    return run


def assert_same(found: Assignment, expected: Assignment) -> None:
    """All but when it was assigned is the same, numbers within rounding."""
    one, other = found.model_dump(), expected.model_dump()
    names = [[near.pop("track_id") for near in fields["neighbours"]] for fields in (one, other)]
    assert names[0] == names[1]
    assert one["neighbours"] == [pytest.approx(near) for near in other["neighbours"]]
    for name in one.keys() - {"rev", "neighbours"}:
        exact = not isinstance(other[name], float)
        assert one[name] == (other[name] if exact else pytest.approx(other[name])), name


def near(assignment: Assignment) -> list[str]:
    return [one.track_id for one in assignment.neighbours]


def test_tracks_placed_one_by_one_are_where_the_batch_put_them(store: SQLiteStore) -> None:
    tracks = library.tracks(60, spread=1)
    run = clustered(store, tracks)
    places = read_places(store, run)
    for track in reversed(tracks):
        (assignment,) = places.place([track.model_dump()])
        stored = store.get(Assignment, f"{run.run_id}/{track.track_id}")
        assert stored is not None
        assert_same(assignment, stored)


def test_a_placed_track_is_a_neighbour_of_the_next_one_and_a_dropped_one_is_none(store: SQLiteStore) -> None:
    *tracks, new = library.tracks(41)
    run = clustered(store, tracks)
    places = read_places(store, run)
    like_it = new.model_copy(update={"track_id": "like it", "duration": 9.0})
    assert "new" not in near(places.place([like_it.model_dump()])[0])
    places.place([new.model_copy(update={"track_id": "new"}).model_dump()])
    (again,) = places.assign(["like it"])
    assert (near(again)[0], again.neighbours[0].score) == ("new", 1)
    places.drop("new")
    assert "new" not in near(places.assign(["like it"])[0])
    assert places.assign(["new"]) == []


def test_a_new_version_of_a_track_takes_the_place_of_the_old_one(store: SQLiteStore) -> None:
    tracks = library.tracks(24)
    run = clustered(store, tracks)
    places = read_places(store, run)
    (before,) = places.assign(["t001"])
    assert before.cluster_id == places.assign(["t005"])[0].cluster_id
    moved = tracks[1].model_copy(update={"features": tracks[2].features, "rev": 7})
    (after,) = places.place([moved.model_dump()])
    assert (after.track_rev, after.cluster_id) == (7, places.assign(["t002"])[0].cluster_id)
    assert near(after)[0] == "t002"
    assert "t001" not in near(places.assign(["t005"])[0])


@pytest.mark.parametrize("changed", [{"flags": ["silent"]}, {"feature_set": "another"}, {"features": {}}])
def test_a_track_that_has_no_place_any_more_is_gone(store: SQLiteStore, changed: dict[str, Any]) -> None:
    tracks = library.tracks(12, kinds=1)
    places = read_places(store, clustered(store, tracks))
    assert places.place([tracks[3].model_copy(update=changed).model_dump()]) == []
    assert "t003" not in near(places.assign(["t004"])[0])


def test_dropping_whatever_remains_leaves_the_others_as_they_were(store: SQLiteStore) -> None:
    """Each in turn, the last row and the first among them, until one is left, which has no neighbour."""
    tracks = library.tracks(8, kinds=1)
    run = clustered(store, tracks)
    places = read_places(store, run)
    for gone in range(8):
        there = tracks[gone:]
        documents = [track.model_dump() for track in there]
        for found, expected in zip(places.place(documents), Places(run).place(documents), strict=True):
            assert_same(found, expected)
        places.drop(f"t{gone:03d}")
        places.drop(f"t{gone:03d}")
    assert places.assign(["t007"]) == []


class Watched(SQLiteStore):
    """A store that remembers whether it was asked for the features of the whole library."""

    read_all = False

    def scan(self, kind: type[Record], **options: Any) -> Iterator[Document]:
        self.read_all |= kind is Track and "features" in (options.get("fields") or ["features"])
        return super().scan(kind, **options)


def test_tracks_that_came_later_are_assigned_and_what_does_not_fit_is_no_reason_to_read_the_library(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    *tracks, unfit, late = library.tracks(32)
    with closing(Watched(f"sqlite:///{tmp_path}/test.db")) as store:
        run = clustered(store, tracks)
        store.upsert([unfit.model_copy(update={"features": {}})])
        store.read_all = False
        assert (settle(store, run), store.read_all, caplog.text) == (30, False, "")
        store.upsert([late])
        assert (settle(store, run), store.read_all) == (31, True)
        assert {unfit.track_id, late.track_id} & library.assigned(store, run.run_id).keys() == {late.track_id}
        store.read_all = False
        assert (settle(store, run), store.read_all) == (31, False)
