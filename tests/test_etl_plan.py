from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.names import path_digest
from core.records import Failure, File
from etl.catalogue import Row
from etl.folders import AudioFile, Walk
from etl.known import KnownSource, KnownTrack
from etl.metadata import Metadata
from etl.plan import Lost, Plan, known_digests, plan, remembered_failures, remembered_rows

ROOT = "/music"
FEATURES = "set 1"


def file(path: str, mtime: int = 1) -> AudioFile:
    return AudioFile(path, path, 1, mtime)


def row(track_id: str | None = None, title: str | None = "Blue") -> Row:
    return Row(track_id, Metadata(title=title))


def failed(path: str) -> Failure:
    return Failure(
        rev=1,
        path_digest=path_digest(path),
        path=path,
        stage="decode",
        error="AudioError",
        message="holds no audio",
        advice="leave it out",
        failed_at="2026-01-01T00:00:00Z",
        size=1,
        mtime_ns=1,
        feature_set=FEATURES,
    )


@dataclass
class World:
    """Files (path → content and time), a catalogue, and what is known of them."""

    files: dict[str, tuple[str, int]] = field(default_factory=dict)
    rows: dict[str, Row] = field(default_factory=dict)
    known: dict[str, KnownTrack] = field(default_factory=dict)
    failing: set[str] = field(default_factory=set)
    hidden: set[str] = field(default_factory=set)
    """Folders that cannot be read."""

    def plan(self, root: str = ROOT, feature_set: str = FEATURES) -> Plan:
        files = [
            file(path, mtime)
            for path, (_, mtime) in sorted(self.files.items())
            if path.startswith(root + "/") and not self.is_hidden(path)
        ]
        unchanged = known_digests(files, self.known)
        digests = {one.path: self.files[one.path][0] for one in files if one.path not in self.failing}
        assert unchanged.items() <= {path: content for path, (content, _) in self.files.items()}.items()
        rows = {path: found for path, found in self.rows.items() if path.startswith(root + "/")}
        return plan(
            Walk(root, files, []),
            rows,
            digests | unchanged,
            self.known,
            feature_set,
            look=self.look,
            is_gone=self.is_gone,
        )

    def look(self, path: str) -> AudioFile | None:
        return file(path, self.files[path][1]) if path in self.files and not self.is_hidden(path) else None

    def is_gone(self, path: str) -> bool:
        return path not in self.files and not self.is_hidden(path)

    def is_hidden(self, path: str) -> bool:
        return any(path.startswith(f"{folder}/") for folder in self.hidden)

    def extract(self, root: str = ROOT, feature_set: str = FEATURES) -> Plan:
        """Do what the plan says, as the job does when nothing fails."""
        todo = self.plan(root, feature_set)
        for draft in todo.drafts:
            source = KnownSource(
                path=draft.file.path,
                size=draft.file.size,
                mtime_ns=draft.file.mtime_ns,
                digest=draft.digest,
                row_digest=draft.row.digest if draft.row else None,
            )
            self.known[draft.track_id] = KnownTrack(
                track_id=draft.track_id,
                rev=draft.rev + 1,
                title=(draft.row and draft.row.metadata.title) or PurePath(draft.file.path).stem,
                duration=1.0,
                feature_set=feature_set,
                source=source,
                copies=[File(path=file.path, size=file.size, mtime_ns=file.mtime_ns) for file in draft.copies],
            )
        for lost in todo.lost:
            del self.known[lost.track_id]
        return todo


def world(files: Mapping[str, str], rows: Mapping[str, Row] | None = None) -> World:
    made = World({f"{ROOT}/{name}": (content, 1) for name, content in files.items()})
    made.rows = {f"{ROOT}/{name}": found for name, found in (rows or {}).items()}
    return made


def sent(todo: Plan) -> dict[str, str | None]:
    """Track → the known track whose features it takes, None where they are computed."""
    return {draft.track_id: draft.donor for draft in todo.drafts}


def test_a_new_file_is_computed_once_and_its_copies_are_named() -> None:
    todo = world({"b.mp3": "X", "a.mp3": "X", "c.mp3": "Y"}).plan()
    assert [(draft.track_id, draft.donor, draft.paths) for draft in todo.drafts] == [
        ("X", None, (f"{ROOT}/a.mp3", f"{ROOT}/b.mp3")),
        ("Y", None, (f"{ROOT}/c.mp3",)),
    ]
    assert todo.copies == 1


def test_the_second_time_there_is_nothing_to_do() -> None:
    music = world({"a.mp3": "X", "b.mp3": "X", "c.mp3": "Y"}, {"c.mp3": row("cat:1")})
    music.extract()
    todo = music.plan()
    assert (todo.drafts, todo.lost, todo.gone) == ([], [], [])
    assert sorted(todo.unchanged) == sorted(music.files)


def test_a_changed_row_sends_the_track_again_with_its_features() -> None:
    music = world({"a.mp3": "X", "b.mp3": "Y"}, {"a.mp3": row(), "b.mp3": row()})
    music.extract()
    music.rows[f"{ROOT}/a.mp3"] = row(title="Green")
    assert sent(music.plan()) == {"X": "X"}
    assert music.plan().drafts[0].rev == 1


def test_a_touched_or_retagged_file_is_sent_again_with_its_features() -> None:
    music = world({"a.mp3": "X", "b.mp3": "Y"})
    music.extract()
    music.files[f"{ROOT}/a.mp3"] = ("X", 2)
    assert sent(music.plan()) == {"X": "X"}


def test_a_moved_file_keeps_its_track_and_its_features() -> None:
    music = world({"a.mp3": "X"})
    music.extract()
    music.files[f"{ROOT}/new/a.mp3"] = music.files.pop(f"{ROOT}/a.mp3")
    todo = music.plan()
    assert sent(todo) == {"X": "X"}
    assert (todo.drafts[0].paths, todo.lost, todo.gone) == ((f"{ROOT}/new/a.mp3",), [], [])


def test_a_new_copy_is_added_and_becomes_the_source_if_it_is_first_in_order() -> None:
    music = world({"b.mp3": "X"})
    music.extract()
    music.files[f"{ROOT}/a.mp3"] = ("X", 1)
    todo = music.plan()
    assert sent(todo) == {"X": "X"}
    assert todo.drafts[0].paths == (f"{ROOT}/a.mp3", f"{ROOT}/b.mp3")


def test_other_features_are_computed_for_every_track() -> None:
    music = world({"a.mp3": "X", "b.mp3": "Y"}, {"b.mp3": row("cat:1")})
    music.extract()
    assert sent(music.plan(feature_set="set 2")) == {"X": None, "cat:1": None}


def test_audio_that_replaces_another_ends_the_old_track() -> None:
    music = world({"a.mp3": "X"})
    music.extract()
    music.files[f"{ROOT}/a.mp3"] = ("Y", 2)
    todo = music.plan()
    assert sent(todo) == {"Y": None}
    assert todo.lost == [Lost("X", 1, frozenset({f"{ROOT}/a.mp3"}))]


def test_a_replaced_file_leaves_the_track_to_its_copy() -> None:
    music = world({"a.mp3": "X", "b.mp3": "X"})
    music.extract()
    music.files[f"{ROOT}/a.mp3"] = ("Y", 2)
    todo = music.plan()
    assert sent(todo) == {"Y": None, "X": "X"}
    assert (todo.drafts[1].paths, todo.lost) == ((f"{ROOT}/b.mp3",), [])


def test_a_file_that_cannot_be_read_now_keeps_its_track() -> None:
    music = world({"a.mp3": "X"})
    music.extract()
    music.files[f"{ROOT}/a.mp3"] = ("?", 2)
    music.failing = {f"{ROOT}/a.mp3"}
    todo = music.plan()
    assert (todo.drafts, todo.lost, todo.gone) == ([], [], [])


def test_a_file_that_is_gone_is_counted_and_kept() -> None:
    music = world({"a.mp3": "X", "b.mp3": "Y"})
    music.extract()
    del music.files[f"{ROOT}/a.mp3"]
    todo = music.plan()
    assert (todo.drafts, todo.lost, todo.gone, todo.unseen) == ([], [], ["X"], [])


def test_a_track_is_gone_only_when_all_its_files_surely_are() -> None:
    music = World({path: (path, 1) for path in ("/m/a", "/m/b/c", "/m/d", "/other/e")})
    for copy, of in {"/m/d 2": "/m/d", "/m/b/a": "/m/a", "/other/f": "/m/g", "/m/g": "/m/g"}.items():
        music.files[copy] = (of, 1)
    music.extract("/m")
    music.extract("/other")
    music.hidden = {"/m/b", "/other"}
    for path in ("/m/a", "/m/d", "/m/d 2", "/m/g"):
        del music.files[path]
    music.files["/m/new"] = ("new", 1)
    todo = music.plan("/m")
    assert (todo.gone, sorted(todo.unseen)) == (["/m/d"], ["/m/a", "/m/b/c", "/m/g"])
    music.hidden.clear()
    del music.files["/m/b/c"]
    todo = music.plan("/m")
    assert (sorted(todo.gone), todo.unseen) == (["/m/b/c", "/m/d"], [])
    assert {draft.track_id: draft.paths for draft in todo.drafts} == {"/m/a": ("/m/b/a",), "new": ("/m/new",)}


@pytest.mark.parametrize(
    ("change", "is_remembered"),
    [
        ({}, True),
        ({"size": 2}, False),
        ({"mtime_ns": 2}, False),
        ({"size": None, "mtime_ns": None, "feature_set": None}, False),
        ({"feature_set": "set 2"}, False),
        ({"retry": True}, False),
        ({"stage": "read", "error": "TimeoutError"}, True),
        ({"stage": "read", "error": "AudioError"}, False),
    ],
)
def test_a_failure_is_remembered_until_file_or_features_change_or_a_retry_is_asked_for(
    change: dict[str, object], is_remembered: bool
) -> None:
    """A record of before there were such fields, and a file that could not be opened, are tried again."""
    failure = failed("/music/a.mp3").model_copy(update=change)
    found = remembered_failures([file("/music/a.mp3"), file("/music/b.mp3")], [failure], FEATURES)
    assert found == ({"/music/a.mp3"} if is_remembered else set())


def test_an_empty_file_is_remembered_although_it_failed_at_reading() -> None:
    empty = AudioFile("/music/a.mp3", "/music/a.mp3", 0, 1)
    failure = failed(empty.path).model_copy(update={"size": 0, "stage": "read"})
    assert remembered_failures([empty], [failure], FEATURES) == {empty.path}


def test_the_track_of_a_file_whose_failure_is_remembered_stays_as_it_is() -> None:
    music = world({"a.mp3": "X"})
    music.extract()
    todo = plan(Walk(ROOT, [file(f"{ROOT}/a.mp3")], []), {}, {}, music.known, "set 2")
    assert (todo.drafts, todo.lost, todo.gone, todo.unseen) == ([], [], [], [])


def test_an_id_from_the_catalogue_takes_over_the_features_and_ends_the_digest() -> None:
    music = world({"a.mp3": "X"})
    music.extract()
    music.rows = {f"{ROOT}/a.mp3": row("cat:1")}
    todo = music.extract()
    assert sent(todo) == {"cat:1": "X"}
    assert [lost.track_id for lost in todo.lost] == ["X"]
    music.rows = {}
    assert sent(music.plan()) == {"X": "cat:1"}


def test_a_copy_without_a_row_belongs_to_the_track_of_its_twin() -> None:
    todo = world({"a.mp3": "X", "b.mp3": "X"}, {"b.mp3": row("cat:1")}).plan()
    assert [(draft.track_id, draft.paths) for draft in todo.drafts] == [("cat:1", (f"{ROOT}/a.mp3", f"{ROOT}/b.mp3"))]
    assert todo.drafts[0].row == row("cat:1")


def test_two_files_of_one_row_that_differ_are_two_tracks_and_both_have_its_metadata() -> None:
    shared = row("cat:1")
    todo = world({"a.flac": "X", "a.mp3": "Y"}, {"a.flac": shared, "a.mp3": shared}).plan()
    assert [(draft.track_id, draft.row) for draft in todo.drafts] == [("cat:1", shared), ("Y", shared)]


def test_a_copy_in_another_folder_is_added_and_the_first_folders_catalogue_still_counts() -> None:
    music = World({"/b/x.mp3": ("X", 1), "/a/x.mp3": ("X", 1)}, {"/b/x.mp3": row()})
    music.extract("/b")
    todo = music.extract("/a")
    assert [draft.paths for draft in todo.drafts] == [("/a/x.mp3", "/b/x.mp3")]
    assert todo.drafts[0].row
    assert (todo.drafts[0].row.digest, todo.drafts[0].row.metadata.title) == (row().digest, "Blue")
    for folder in ("/a", "/b", "/a"):
        assert music.extract(folder).drafts == []
    (anew,) = music.extract("/a", feature_set="set 2").drafts
    assert (anew.donor, anew.row and anew.row.digest) == (None, row().digest)


def test_a_title_that_was_only_the_name_of_the_file_follows_it() -> None:
    music = world({"old name.mp3": "X", "b.mp3": "Y"}, {"old name.mp3": row(title=None), "b.mp3": row()})
    music.extract()
    files = [file(f"{ROOT}/new name.mp3"), file(f"{ROOT}/c.mp3")]
    rows = remembered_rows(files, {files[0].path: "X", files[1].path: "Y"}, music.known)
    assert [(row.metadata.title, row.digest) for row in rows.values()] == [
        (None, row(title=None).digest),
        ("Blue", row().digest),
    ]


def test_a_file_that_moved_to_another_folder_leaves_nothing_behind() -> None:
    music = World({"/b/x.mp3": ("X", 1)})
    music.extract("/b")
    music.files = {"/c/x.mp3": ("X", 1), "/b/y.mp3": ("Y", 1)}
    assert [draft.paths for draft in music.extract("/c").drafts] == [("/c/x.mp3",)]
    assert music.extract("/b").gone == []


def test_a_track_whose_file_was_replaced_goes_on_as_its_copy_in_another_folder() -> None:
    music = World({"/a/x.mp3": ("X", 1), "/b/x.mp3": ("X", 1)})
    music.extract("/b")
    music.extract("/a")
    music.files["/a/x.mp3"] = ("Y", 2)
    todo = music.extract("/a")
    assert {draft.track_id: draft.paths for draft in todo.drafts} == {"X": ("/b/x.mp3",), "Y": ("/a/x.mp3",)}
    assert todo.lost == []


names = st.sampled_from(["/a/1", "/a/2", "/a/3", "/b/1", "/b/2"])
contents = st.tuples(st.sampled_from("XYZ"), st.integers(1, 2))
rows = st.builds(row, st.sampled_from([None, "cat:1", "cat:2"]), st.sampled_from(["Blue", "Green"]))
edits = st.tuples(st.sampled_from(["/a", "/b"]), st.dictionaries(names, contents), st.dictionaries(names, rows))


@given(st.lists(edits, max_size=5))
def test_whatever_happens_to_files_and_rows_one_extraction_settles_it(history: list[tuple]) -> None:  # type: ignore[type-arg]
    """After it the next has nothing to do, each file is in one track, and no audio was computed twice."""
    music = World()
    for step, (root, files, catalogue) in enumerate(history):
        # A file whose content changes has another time: equal path, size and time mean the same file.
        music.files = {path: (content, 10 * step + time) for path, (content, time) in files.items()}
        music.rows = catalogue
        before = {track.source.digest for track in music.known.values()}
        todo = music.extract(root)
        computed = [draft.digest for draft in todo.drafts if draft.donor is None]
        assert before.isdisjoint(computed)
        again = music.plan(root)
        assert (again.drafts, again.lost) == ([], [])
        here = sorted(path for path in files if path.startswith(root))
        assert sorted(again.unchanged) == here
        owners = [track.track_id for path in here for track in music.known.values() if path in track.paths]
        assert len(owners) == len(here)
        for path in here:
            (track,) = (track for track in music.known.values() if path in track.paths)
            assert track.source.digest == files[path][0]
