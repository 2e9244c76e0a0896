from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.errors import ConfigError
from etl.folders import is_gone, look, walk

EXTENSIONS = (".mp3", ".wav")


def fill(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"audio")


def found(folder: Path) -> list[str]:
    return [os.path.relpath(file.real, folder) for file in walk(folder, EXTENSIONS).files]


def test_audio_is_found_by_extension_in_any_case_and_in_order_of_its_path(tmp_path: Path) -> None:
    fill(tmp_path, "b.MP3", "a/2.wav", "a/1.wav", "notes.txt", "cover.jpg", "mp3")
    assert found(tmp_path) == ["a/1.wav", "a/2.wav", "b.MP3"]


def test_hidden_files_and_folders_are_left_out_but_a_hidden_root_is_not(tmp_path: Path) -> None:
    fill(tmp_path, ".music/a.mp3", ".music/._a.mp3", ".music/.trash/b.mp3")
    assert found(tmp_path / ".music") == ["a.mp3"]


def test_a_loop_of_links_ends_and_each_file_is_found_once_by_its_own_folder(tmp_path: Path) -> None:
    fill(tmp_path, "zoo/a.mp3")
    (tmp_path / "alias").symlink_to(tmp_path / "zoo")
    (tmp_path / "zoo" / "up").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    assert found(tmp_path) == ["zoo/a.mp3"]
    assert walk(tmp_path, EXTENSIONS).unreadable == [f"{tmp_path}/self: Too many levels of symbolic links"]


def test_linked_folders_and_files_from_elsewhere_are_followed(tmp_path: Path) -> None:
    fill(tmp_path, "elsewhere/a.mp3", "b.mp3", "music/c.mp3")
    (tmp_path / "music" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "music" / "d.mp3").symlink_to(tmp_path / "b.mp3")
    assert found(tmp_path / "music") == ["c.mp3", "d.mp3", "more/a.mp3"]


def test_what_has_the_name_of_audio_and_is_none_is_found_so_that_reading_it_says_why(tmp_path: Path) -> None:
    fill(tmp_path, "a.mp3")
    (tmp_path / "gone.mp3").symlink_to("nowhere")
    (tmp_path / "loop.mp3").symlink_to("loop.mp3")
    os.mkfifo(tmp_path / "pipe.mp3")
    assert found(tmp_path) == ["a.mp3", "gone.mp3", "loop.mp3", "pipe.mp3"]
    assert walk(tmp_path, EXTENSIONS).unreadable == []


def test_a_folder_with_the_name_of_audio_is_entered(tmp_path: Path) -> None:
    fill(tmp_path, "live.mp3/a.mp3", "b.mp3")
    (tmp_path / "link.mp3").symlink_to(tmp_path / "live.mp3")
    assert found(tmp_path) == ["b.mp3", "live.mp3/a.mp3"]


def test_an_unreadable_folder_is_reported_and_the_rest_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, "a.mp3", "closed/b.mp3")
    scandir = os.scandir

    def refuse(folder: str) -> object:
        if folder.endswith("closed"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    assert found(tmp_path) == ["a.mp3"]
    assert walk(tmp_path, EXTENSIONS).unreadable == [f"{tmp_path}/closed: Permission denied"]


def test_a_name_that_is_not_utf8_is_stored_escaped_and_opened_as_it_is(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe4.mp3")).write_bytes(b"audio")
    (file,) = walk(tmp_path, EXTENSIONS).files
    assert file.path == f"{tmp_path}/%E4.mp3"
    assert Path(file.real).read_bytes() == b"audio"


def test_paths_are_absolute_and_without_dots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "music/a.mp3")
    monkeypatch.chdir(tmp_path / "music")
    assert walk(Path("../music"), EXTENSIONS).files == walk(tmp_path / "music", EXTENSIONS).files


def test_looking_at_a_file_again_finds_the_same_and_nothing_where_it_is_gone(tmp_path: Path) -> None:
    fill(tmp_path, "a.mp3")
    (file,) = walk(tmp_path, EXTENSIONS).files
    assert look(file.path) == file
    assert look(f"{tmp_path}/b.mp3") is None


def test_looking_at_a_name_that_is_not_utf8_finds_it_by_its_stored_path(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe4.mp3")).write_bytes(b"audio")
    (file,) = walk(tmp_path, EXTENSIONS).files
    assert look(file.path) == file
    assert not is_gone(file.path)


def test_a_file_is_gone_where_its_folder_shows_other_things_or_is_gone_itself(tmp_path: Path) -> None:
    fill(tmp_path, "music/a.mp3")
    assert not is_gone(f"{tmp_path}/music/a.mp3")
    assert is_gone(f"{tmp_path}/music/b.mp3")
    assert is_gone(f"{tmp_path}/music/album/1.mp3")


@pytest.mark.parametrize("place", ["empty", "hidden only", "link", "a file", "closed", "not entered", "caf%E9"])
def test_nobody_can_say_whether_a_file_is_gone_where_nothing_may_be_mounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    fill(tmp_path, "b.mp3", "a file", "hidden only/.b.mp3", "closed/b.mp3", "not entered/b.mp3")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")).mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("/nowhere")
    iterdir, lstat = Path.iterdir, Path.lstat

    def refuse_list(path: Path) -> Iterator[Path]:
        if path.name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return iterdir(path)

    def refuse_entry(path: Path) -> os.stat_result:
        if path.parent.name == "not entered":
            raise PermissionError(13, "Permission denied", str(path))
        return lstat(path)

    monkeypatch.setattr(Path, "iterdir", refuse_list)
    monkeypatch.setattr(Path, "lstat", refuse_entry)
    for file in ("a.mp3", "album/1.mp3"):
        assert not is_gone(f"{tmp_path}/{place}/{file}")


@pytest.mark.parametrize(
    ("folder", "says"),
    [("nowhere", "no such folder"), ("notes.mp3", "is a file; name the folder"), ("empty", r"no audio .* \.mp3 \.wav")],
)
def test_a_folder_that_cannot_serve_gets_one_line_with_its_name(tmp_path: Path, folder: str, says: str) -> None:
    (tmp_path / "notes.mp3").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=f"^{tmp_path / folder}: {says}"):
        walk(tmp_path / folder, EXTENSIONS)
