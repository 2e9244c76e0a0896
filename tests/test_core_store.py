"""One contract for every store: SQLite, MongoDB over the wire, and mongomock for the unit level."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import re
import signal
import sys
import time
import tracemalloc
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from itertools import islice, pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from urllib.parse import urlsplit

import bson
import mongomock
import pymongo
import pytest
from bson.raw_bson import RawBSONDocument
from mongomock.collection import BulkOperationBuilder

from core.errors import BackendError, ConfigError, MurmurError
from core.names import utc_now
from core.records import Assignment, Failure, Neighbour, Record, Source, Track
from core.store import Confirm, Store, Upserted, open_store

SOURCE = Source(
    path="/music/a.mp3",
    size=1,
    mtime_ns=10**18,
    digest="d",
    codec="mp3",
    sample_rate=44_100,
    channels=2,
    decoder="soundfile 0.13",
    librosa="0.11",
)
Reopen = Callable[[], Store]


def track(key: str, rev: int = 1, *, n_values: int = 3, **fields: object) -> Track:
    features = {"mfcc": {"mean": [index + 0.1 for index in range(n_values)], "std": [0.0, 1e-30, -3.4e38]}}
    known = {"track_id": key, "rev": rev, "duration": 1.5, "source": SOURCE, "feature_set": "f1", "features": features}
    return Track.model_validate(known | fields)


def unchecked(key: str, **fields: object) -> Track:
    """Return a track with values that its model may not allow."""
    return track(key).model_copy(update=fields)


def assignment(run_id: str, track_id: str, cluster_id: str = "c01") -> Assignment:
    return Assignment(
        rev=1,
        run_id=run_id,
        track_id=track_id,
        track_rev=1,
        cluster_id=cluster_id,
        distance=0.5,
        score=0.75,
        neighbours=[Neighbour(track_id="n", score=1.0)],
    )


def failure(key: str) -> Failure:
    return Failure(
        rev=1, path_digest=key, path="/x", stage="decode", error="E", message="m", advice="a", failed_at="2026-01-01"
    )


def keys(store: Store, kind: type[Record] = Track, *, field: str = "track_id", **options: object) -> list[str]:
    return [document[field] for document in store.scan(kind, fields=[field], **options)]  # type: ignore[arg-type]


def title(store: Store, key: str) -> str | None:
    found = store.get(Track, key)
    assert found is not None
    return found.title


class StoreContract:
    """What every store promises. A subclass gives `reopen`: a store on the same data, each time a new one."""

    @pytest.fixture
    def store(self, reopen: Reopen) -> Store:
        return reopen()

    def test_a_record_comes_back_as_it_was_written(self, store: Store) -> None:
        written = track(
            "a",
            title="Título 音楽 🎵",
            year=1999,
            extra={"mood": "calm"},
            copies=[{"path": "/b.mp3", "size": 1, "mtime_ns": 2}],
            flags=["clipped"],
        )
        assert store.upsert([written]) == Upserted(1, {})
        assert store.get(Track, "a") == written

    def test_a_missing_record_is_none(self, store: Store) -> None:
        assert store.get(Track, "nobody") is None

    def test_every_kind_of_record_is_kept(self, store: Store) -> None:
        for record in (track("a"), failure("f"), assignment("r", "t")):
            store.upsert([record])
            assert store.get(type(record), record.key) == record

    def test_an_empty_batch_does_nothing(self, store: Store) -> None:
        assert store.upsert([]) == Upserted(0, {})
        assert store.delete(Track, {}).written == 0

    def test_the_same_batch_twice_is_once(self, store: Store) -> None:
        batch = [track(f"t{n}", rev=5) for n in range(10)]
        assert store.upsert(batch) == Upserted(10, {})
        assert store.upsert(batch) == Upserted(0, {})
        assert store.count(Track) == 10

    @pytest.mark.parametrize("rev", [4, 5])
    def test_an_older_or_equal_rev_never_overwrites(self, store: Store, rev: int) -> None:
        store.upsert([track("a", rev=5, title="new")])
        assert store.upsert([track("a", rev=rev, title="old")]) == Upserted(0, {})
        assert title(store, "a") == "new"

    def test_a_newer_rev_replaces_the_whole_record(self, store: Store) -> None:
        store.upsert([track("a", rev=5, title="old", features={"mfcc": {"mean": [1.0]}, "rms": {"mean": [1.0]}})])
        newer = track("a", rev=6, features={"mfcc": {"mean": [2.0]}})
        assert store.upsert([newer]) == Upserted(1, {})
        assert store.get(Track, "a") == newer
        assert list(store.scan(Track)) == [newer.model_dump()]

    def test_records_may_be_made_as_they_are_asked_for(self, store: Store) -> None:
        assert store.upsert(track(name) for name in "ab") == Upserted(2, {})
        assert keys(store) == ["a", "b"]
        assert store.upsert(iter(())) == Upserted(0, {})

    @pytest.mark.parametrize("revs", [(1, 2, 3), (3, 2, 1), (2, 3, 1), (3, 3, 2)])
    def test_within_one_batch_the_highest_rev_wins(self, store: Store, revs: tuple[int, ...]) -> None:
        assert store.upsert([track("a", rev=rev, title=f"rev {rev}") for rev in revs]).refused == {}
        assert title(store, "a") == "rev 3"

    def test_a_batch_of_new_stale_and_newer_records_is_taken_record_by_record(self, store: Store) -> None:
        store.upsert([track("newer", rev=5), track("stale", rev=5, title="kept")])
        batch = [track("stale", rev=4), track("newer", rev=6, title="taken"), track("fresh", rev=1)]
        assert store.upsert(batch) == Upserted(2, {})
        assert [title(store, key) for key in ("stale", "newer")] == ["kept", "taken"]
        assert keys(store) == ["fresh", "newer", "stale"]

    def test_a_batch_may_be_large(self, store: Store) -> None:
        batch = [assignment("r", f"{n:05}") for n in range(1200)]
        assert store.upsert(batch) == Upserted(1200, {})
        assert keys(store, Assignment) == [record.track_id for record in batch]

    def test_revisions_use_all_63_bits(self, store: Store) -> None:
        store.upsert([track("a", rev=2**63 - 2, title="old")])
        assert store.upsert([track("a", rev=2**63 - 1, title="new")]) == Upserted(1, {})
        assert title(store, "a") == "new"

    def test_a_mark_hides_the_record_from_every_reader(self, store: Store) -> None:
        store.upsert([track("a"), track("b")])
        assert store.delete(Track, {"a": 2}).written == 1
        assert store.get(Track, "a") is None
        assert keys(store) == ["b"]
        assert keys(store, prefix="a") == []
        assert keys(store, where={"title": None}) == ["b"]
        assert store.count(Track) == 1
        assert store.count(Track, {"title": None}) == 1

    def test_a_mark_is_guarded_by_its_rev_and_twice_is_once(self, store: Store) -> None:
        store.upsert([track("a", rev=5)])
        assert store.delete(Track, {"a": 4}).written == 0
        assert store.delete(Track, {"a": 5}).written == 0
        assert store.get(Track, "a") is not None
        assert store.delete(Track, {"a": 6}).written == 1
        assert store.delete(Track, {"a": 6}).written == 0

    @pytest.mark.parametrize("rev", [1, 9, 10])
    def test_an_older_record_cannot_bring_a_deleted_one_back(self, store: Store, rev: int) -> None:
        store.upsert([track("a", rev=5)])
        store.delete(Track, {"a": 10})
        assert store.upsert([track("a", rev=rev)]) == Upserted(0, {})
        assert store.get(Track, "a") is None

    def test_a_mark_that_comes_before_its_record_keeps_it_out(self, store: Store) -> None:
        store.delete(Track, {"a": 10})
        store.upsert([track("a", rev=9)])
        assert store.get(Track, "a") is None

    def test_a_newer_record_lives_again_and_nothing_of_the_mark_survives(self, store: Store) -> None:
        store.upsert([track("a", rev=1)])
        store.delete(Track, {"a": 2})
        revived = track("a", rev=3, title="back")
        assert store.upsert([revived]) == Upserted(1, {})
        assert store.get(Track, "a") == revived
        assert list(store.scan(Track)) == [revived.model_dump()]
        assert store.count(Track) == 1

    def test_scan_returns_the_records_as_documents_in_order_of_their_key(self, store: Store) -> None:
        batch = [track(key) for key in ("b", "a", "ä", "B", "a/b", "10", "9", "音", "", "a b") if key]
        store.upsert(batch)
        expected = sorted((record.model_dump() for record in batch), key=lambda document: document["track_id"])
        assert list(store.scan(Track)) == expected
        assert [Track.from_document(document).model_dump() for document in store.scan(Track)] == expected

    def test_scan_of_an_empty_collection_is_empty(self, store: Store) -> None:
        assert list(store.scan(Track)) == []
        assert list(store.scan(Track, prefix="x", where={"title": "y"}, fields=["title"])) == []
        assert store.count(Track) == 0

    def test_scan_returns_the_asked_fields_and_no_others(self, store: Store) -> None:
        store.upsert([track("a", title="T", year=1999)])
        assert list(store.scan(Track, fields=["year", "title"])) == [{"title": "T", "year": 1999}]
        assert list(store.scan(Track, fields=["track_id", "artist"])) == [{"track_id": "a", "artist": None}]

    def test_scan_returns_bulky_fields_when_they_are_asked_for(self, store: Store) -> None:
        record = track("a")
        store.upsert([record])
        assert list(store.scan(Track, fields=["features"])) == [{"features": record.features}]

    @pytest.mark.parametrize(
        ("where", "found"),
        [
            ({"title": "x"}, ["a", "b"]),
            ({"title": "x", "year": 2000}, ["a"]),
            ({"title": None}, ["c"]),
            ({"year": 2001}, ["b", "c"]),
            ({"title": "nobody"}, []),
            ({"track_id": "b"}, ["b"]),
            ({"duration": 1.5}, ["a", "b", "c"]),
        ],
    )
    def test_where_selects_by_equal_fields(self, store: Store, where: dict[str, object], found: list[str]) -> None:
        store.upsert([track("a", title="x", year=2000), track("b", title="x", year=2001), track("c", year=2001)])
        assert keys(store, where=where) == found
        assert store.count(Track, where) == len(found)

    def test_where_takes_text_as_it_is(self, store: Store) -> None:
        odd = ["$x", "it's", 'say "x"', "%", "a.b", "true", "1"]
        store.upsert([track(f"t{index}", title=text) for index, text in enumerate(odd)])
        for index, text in enumerate(odd):
            assert keys(store, where={"title": text}) == [f"t{index}"]

    def test_prefix_selects_keys_that_start_so_and_is_taken_as_it_is(self, store: Store) -> None:
        store.upsert([assignment(run, name) for run in ("r%", "rx", "r", "r.", "R") for name in ("a", "ü")])
        assert keys(store, Assignment, field="run_id", prefix="r%/") == ["r%", "r%"]
        assert keys(store, Assignment, field="run_id", prefix="r/") == ["r", "r"]
        assert keys(store, Assignment, field="run_id", prefix="r.") == ["r.", "r."]
        assert keys(store, Assignment, field="run_id", prefix="") == [
            "R",
            "R",
            "r%",
            "r%",
            "r.",
            "r.",
            "r",
            "r",
            "rx",
            "rx",
        ]
        assert keys(store, Assignment, prefix="rx/", where={"track_id": "ü"}) == ["ü"]
        assert keys(store, Assignment, prefix="zz") == []

    def test_after_and_until_bound_the_keys_of_a_scan(self, store: Store) -> None:
        store.upsert([track(key) for key in ("a", "b", "ba", "c", "ü", "音")])
        assert keys(store, after="a", until="c") == ["b", "ba", "c"]
        assert keys(store, after="b") == ["ba", "c", "ü", "音"]
        assert keys(store, until="ab") == ["a"]
        assert keys(store, after="c", until="b") == []
        assert keys(store, after="b", until="z", prefix="b", where={"track_id": "ba"}) == ["ba"]
        assert keys(store, after="a", until="b", prefix="c") == []

    def test_a_bounded_scan_goes_on_page_after_page_to_its_bound(self, store: Store) -> None:
        store.upsert([track(f"{n:04}") for n in range(1300)])
        assert keys(store, after="0001", until="1277") == [f"{n:04}" for n in range(2, 1278)]

    @pytest.mark.parametrize(("n_keys", "n_parts"), [(20, 1), (20, 4), (23, 4), (3, 7), (1, 2), (0, 5)])
    def test_splits_part_a_collection_into_ranges_of_about_the_same_size(
        self, store: Store, n_keys: int, n_parts: int
    ) -> None:
        store.upsert([track(f"t{n:02}") for n in range(n_keys)])
        store.upsert([failure(f"f{n}") for n in range(30)])
        splits = store.splits(Track, n_parts)
        parts = [keys(store, after=a, until=b) for a, b in pairwise(["", *splits, None])]
        assert [key for part in parts for key in part] == [f"t{n:02}" for n in range(n_keys)]
        assert len(parts) <= n_parts
        assert max(map(len, parts)) == -(-n_keys // n_parts)

    def test_splits_count_marks_of_deletion_too(self, store: Store) -> None:
        store.upsert([track(f"t{n}") for n in range(8)])
        store.delete(Track, {f"t{n}": 2 for n in range(4)})
        assert store.splits(Track, 2) == ["t3"]

    def test_a_pickled_store_opens_the_same_collections_anew(self, store: Store) -> None:
        store.upsert([track("a")])
        with closing(pickle.loads(pickle.dumps(store))) as copy:
            copy.upsert([track("b")])
            store.close()
            assert keys(copy) == ["a", "b"]

    def test_kinds_do_not_mix(self, store: Store) -> None:
        store.upsert([track("same")])
        store.upsert([failure("same")])
        store.delete(Track, {"same": 2})
        assert store.count(Failure) == 1
        assert store.count(Track) == 0
        assert store.get(Failure, "same") == failure("same")

    def test_keys_and_field_names_may_hold_anything_a_catalogue_has(self, store: Store) -> None:
        extra = {"a.b": "1", "$price": "2", "": "3", "né": "4", "it's": "5", 'q"': "6", "_id": "7", "deleted": "8"}
        written = track("$set.a/b: %_*'\"", extra=extra)
        assert store.upsert([written]) == Upserted(1, {})
        assert store.get(Track, written.key) == written
        assert keys(store, prefix="$set.") == [written.key]

    @pytest.mark.parametrize(
        "bad",
        [
            pytest.param({"title": "half a pair \ud800"}, id="lone surrogate"),
            pytest.param({"rev": 2**63}, id="rev over 64 bits"),
            pytest.param({"year": 2**70}, id="integer over 64 bits"),
            pytest.param({"track_id": "bad \udc80"}, id="lone surrogate in the key"),
        ],
    )
    def test_what_it_cannot_take_is_refused_by_key_and_the_others_are_written(
        self, store: Store, bad: dict[str, object]
    ) -> None:
        culprit = unchecked("bad", **bad)
        written, refused = store.upsert([track("a"), culprit, track("z")])
        assert written == 2
        assert list(refused) == [culprit.key]
        assert refused[culprit.key].strip()
        assert "\n" not in refused[culprit.key]
        assert keys(store) == ["a", "z"]

    def test_purge_removes_a_prefix_and_leaves_no_mark(self, store: Store) -> None:
        store.upsert([assignment(run, name) for run in ("r1", "r10", "r2") for name in "abc"])
        assert store.purge(Assignment, "r1/") == 3
        assert keys(store, Assignment, field="run_id") == ["r10"] * 3 + ["r2"] * 3
        assert store.purge(Assignment, "r1/") == 0
        assert store.upsert([assignment("r1", "a")]) == Upserted(1, {})

    def test_purge_removes_marks_too(self, store: Store) -> None:
        store.delete(Track, {"x/1": 10})
        store.purge(Track, "x/")
        assert store.upsert([track("x/1", rev=1)]) == Upserted(1, {})

    def test_sweep_removes_old_marks_and_nothing_else(self, store: Store) -> None:
        store.upsert([track("kept"), track("gone")])
        store.delete(Track, {"gone": 2, "never": 2})
        store.delete(Failure, {"gone": 2})
        assert store.sweep(Track, 3600) == 0
        assert store.upsert([track("gone", rev=1), track("never", rev=1)]) == Upserted(0, {})
        assert store.sweep(Track, -1) == 2
        assert store.sweep(Track, -1) == 0
        assert keys(store) == ["kept"]
        assert store.upsert([track("gone", rev=1)]) == Upserted(1, {})
        assert store.sweep(Failure, -1) == 1

    def test_a_record_that_came_back_is_not_swept(self, store: Store) -> None:
        store.delete(Track, {"a": 2})
        store.upsert([track("a", rev=3)])
        assert store.sweep(Track, -1) == 0
        assert keys(store) == ["a"]

    def test_purge_leaves_other_kinds_alone(self, store: Store) -> None:
        store.upsert([track("x/1")])
        store.upsert([failure("x/1")])
        store.purge(Track, "x/")
        assert store.count(Failure) == 1

    def test_a_scan_goes_on_while_the_same_store_writes(self, store: Store) -> None:
        store.upsert([track(f"{n:03}", rev=1) for n in range(250)])
        seen = []
        for document in store.scan(Track, fields=["track_id"]):
            seen.append(document["track_id"])
            store.upsert([track(document["track_id"], rev=2)])
        assert seen == [f"{n:03}" for n in range(250)]

    def test_a_scan_goes_on_while_another_connection_writes_and_deletes(self, store: Store, reopen: Reopen) -> None:
        other = reopen()
        store.upsert([track(f"{n:03}") for n in range(0, 500, 2)])
        scan = store.scan(Track, fields=["track_id"])
        seen = [document["track_id"] for document in islice(scan, 10)]
        other.upsert([track(f"{n:03}", rev=2) for n in range(500)])
        other.delete(Track, {"498": 3})
        seen += [document["track_id"] for document in scan]
        assert seen == sorted(set(seen))
        assert {f"{n:03}" for n in range(0, 498, 2)} <= set(seen)

    def test_a_scan_that_is_left_early_blocks_nobody(self, store: Store, reopen: Reopen) -> None:
        store.upsert([track(f"{n:03}") for n in range(300)])
        scan = store.scan(Track)
        next(scan)
        assert store.upsert([track("new")]) == Upserted(1, {})
        assert reopen().upsert([track("newer")]) == Upserted(1, {})
        assert store.purge(Track, "new") == 2

    def test_scan_keeps_its_memory_bounded(self, store: Store) -> None:
        """The peak of a scan over all records is far below what the records take together."""
        n_tracks, n_values = 1500, 1000
        for start in range(0, n_tracks, 100):
            store.upsert([track(f"{n:05}", n_values=n_values) for n in range(start, start + 100)])
        tracemalloc.start()
        try:
            assert (
                sum(len(document["features"]["mfcc"]["mean"]) for document in store.scan(Track)) == n_tracks * n_values
            )
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < n_tracks * n_values * sys.getsizeof(0.1) / 3

    def test_what_was_written_is_there_when_the_store_is_opened_again(self, store: Store, reopen: Reopen) -> None:
        store.upsert([track("a", title="kept"), track("gone")])
        store.delete(Track, {"gone": 2})
        store.close()
        again = reopen()
        assert title(again, "a") == "kept"
        assert again.upsert([track("gone", rev=1)]) == Upserted(0, {})

    def test_two_connections_see_each_other_at_once(self, store: Store, reopen: Reopen) -> None:
        other = reopen()
        store.upsert([track("a", title="1")])
        assert title(other, "a") == "1"
        other.upsert([track("a", rev=2, title="2")])
        assert title(store, "a") == "2"

    def test_a_second_holder_of_a_lease_is_refused_at_once_and_told_who_has_it_since_when(
        self, store: Store, reopen: Reopen
    ) -> None:
        since = utc_now()
        with store.lease("work") as confirm, reopen().lease("other work"):
            with pytest.raises(BackendError, match=rf"`work` .* process {os.getpid()} on \S+, since (\S+Z)") as refused:
                reopen().lease("work").__enter__()
            confirm()
        told = re.search(r"since (\S+Z)", str(refused.value))
        assert told
        assert since <= told[1] <= utc_now()

    def test_a_lease_is_free_again_after_its_block_and_after_an_error_in_it(self, store: Store, reopen: Reopen) -> None:
        with store.lease("work"):
            pass
        with pytest.raises(ZeroDivisionError), reopen().lease("work"):
            raise ZeroDivisionError
        with store.lease("work") as confirm:
            confirm()

    def test_a_killed_holder_frees_its_lease(self, url: str, store: Store) -> None:
        spawn = multiprocessing.get_context("spawn")
        ours, theirs = spawn.Pipe()
        holder = spawn.Process(target=hold_lease, args=(url, theirs))
        holder.start()
        try:
            assert ours.recv() == "held"
            with pytest.raises(BackendError, match=f"process {holder.pid} on "):
                store.lease("work").__enter__()
        finally:
            holder.kill()
            holder.join()
        with ExitStack() as held:
            when_free(lambda: held.enter_context(store.lease("work")))()

    def test_size_is_a_number_of_bytes(self, store: Store) -> None:
        store.upsert([track("a")])
        assert isinstance(store.size(), int)
        assert store.size() >= 0


class TestSQLite(StoreContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/store.db"

    @pytest.fixture
    def reopen(self, url: str) -> Iterator[Reopen]:
        yield from opening(url)

    def test_processes_that_write_never_find_it_locked_while_another_scans(self, url: str, store: Store) -> None:
        store.upsert([track(f"{n:04}", n_values=200) for n in range(1000)])
        scan = store.scan(Track)
        assert next(scan)["track_id"] == "0000"
        spawn = multiprocessing.get_context("spawn")
        writers = [spawn.Process(target=write_tracks, args=(url, name, 60)) for name in ("x", "y")]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join(120)
        assert [writer.exitcode for writer in writers] == [0, 0]
        assert sum(1 for _ in scan) >= 999
        assert store.count(Track) == 1000 + 2 * 60 * 10

    def test_a_store_that_only_reads_makes_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"nothing\.db"):
            open_store(f"sqlite:///{tmp_path}/nothing.db", create=False)
        assert list(tmp_path.iterdir()) == []

    def test_a_pickled_store_is_found_from_another_folder_and_makes_no_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        pickled = pickle.dumps(open_store("sqlite:///here.db"))
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        with pytest.raises(ConfigError, match=rf"no here\.db in {tmp_path}"):
            pickle.loads(pickled)
        with closing(open_store(f"sqlite:///{tmp_path}/here.db")) as store:
            store.upsert([track("a")])
            assert keys(pickle.loads(pickled)) == ["a"]
            assert list((tmp_path / "elsewhere").iterdir()) == []

    def test_a_file_that_is_no_database_is_one_clear_line(self, tmp_path: Path) -> None:
        (tmp_path / "text.db").write_text("not a database, but long enough to be looked at as one\n" * 40)
        with pytest.raises(MurmurError, match=r"text\.db") as caught:
            open_store(f"sqlite:///{tmp_path}/text.db").count(Track)
        assert "\n" not in str(caught.value)


def hold_lease(url: str, pipe: Connection) -> None:
    """Take a lease and keep it until killed: what a holding process of the test above runs."""
    with open_store(url).lease("work", 5.0):
        pipe.send("held")
        signal.pause()


def when_free(take: Callable[[], Confirm]) -> Confirm:
    """Take a lease as soon as its holder is gone."""
    for _ in range(300):
        with suppress(BackendError):
            return take()
        time.sleep(0.1)
    return take()


def write_tracks(url: str, name: str, n_batches: int) -> None:
    """Write batches of ten tracks, then let go: what a writing process of the test above runs."""
    store = open_store(url)
    for batch in range(n_batches):
        written = store.upsert([track(f"{name}{batch:03}{n}", n_values=200) for n in range(10)])
        assert written == Upserted(10, {})
    store.close()


def opening(url: str) -> Iterator[Reopen]:
    """Yield a function that opens the store at `url`; close what it opened at the end."""
    opened: list[Store] = []

    def reopen() -> Store:
        opened.append(open_store(url))
        return opened[-1]

    yield reopen
    for store in opened:
        store.close()


@pytest.mark.servers
class TestMongoDB(StoreContract):
    @pytest.fixture
    def url(self, mongodb_url: str) -> Iterator[str]:
        """Yield the URL of a database of its own."""
        name = f"murmur_test_{uuid.uuid4().hex}"
        url = urlsplit(mongodb_url)._replace(path=f"/{name}").geturl()
        yield url
        with pymongo.MongoClient(url) as client:
            client.drop_database(name)

    @pytest.fixture
    def reopen(self, url: str) -> Iterator[Reopen]:
        yield from opening(url)


class TestMongomock(StoreContract):
    """The same without a server, so that the rules of writing are tested where there is no Java."""

    test_a_killed_holder_frees_its_lease = None  # its data are this process's own
    test_size_is_a_number_of_bytes = None  # it has no dbStats
    test_scan_keeps_its_memory_bounded = None  # it copies what it holds

    @pytest.fixture
    def reopen(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reopen]:
        with mocked_mongodb(monkeypatch) as url:
            yield from opening(url)


@contextmanager
def mocked_mongodb(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Put mongomock in the driver's place; yield the URL of its database."""
    for name in ("add_update", "add_replace"):
        monkeypatch.setattr(BulkOperationBuilder, name, for_this_driver(getattr(BulkOperationBuilder, name)))
    with mongomock.patch("mongodb://mocked"):
        yield "mongodb://mocked/music"


def for_this_driver(add: Callable[..., None]) -> Callable[..., None]:
    """Let mongomock's bulk builder take what the driver passes: a `sort` since 4.11, and documents encoded already."""

    def added(builder: BulkOperationBuilder, *arguments: object, sort: None = None, **options: object) -> None:
        assert sort is None
        decoded = [bson.decode(given.raw) if isinstance(given, RawBSONDocument) else given for given in arguments]
        add(builder, *decoded, **options)

    return added
