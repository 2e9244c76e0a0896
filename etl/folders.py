"""Folders of audio: which files there are, as the file system shows them."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from core.errors import ConfigError
from core.names import path_text


@dataclass(frozen=True, slots=True)
class AudioFile:
    """A file as the file system shows it, not opened."""

    path: str
    """Absolute, as it is stored: bytes that are not UTF-8 are percent-escaped."""
    real: str
    """Absolute, as it is opened."""
    size: int
    """Bytes."""
    mtime_ns: int
    """Modification time, ns since the epoch."""


@dataclass(frozen=True, slots=True)
class Walk:
    """What a walk found."""

    root: str
    """Absolute path of the folder, as it is stored."""
    files: list[AudioFile]
    """In order of their paths."""
    unreadable: list[str]
    """Folders and links that could not be followed, each with the reason."""


def walk(audio_dir: Path, extensions: tuple[str, ...]) -> Walk:
    """Find the audio files in a folder and the folders below it.

    Hidden files and folders are left out. Links are followed, but every folder is entered once, by
    its own name where it has one in here: so loops of links end. What has the name of audio and cannot be opened, such
    as a pipe or a link to nowhere, is a file here, and why it cannot be read is for its reader to say.

    Parameters
    ----------
    audio_dir : Path
        The folder.
    extensions : tuple of str
        Lower case, with the dot.

    Raises
    ------
    ConfigError
        If there is no such folder, or no audio in it.
    """
    root = os.path.abspath(audio_dir)  # noqa: PTH100  # resolve() would follow links: paths stay as they were typed
    if not Path(root).is_dir():
        what = "is a file; name the folder that holds it" if Path(root).exists() else "no such folder"
        raise ConfigError(f"{path_text(audio_dir)}: {what}")
    found = Walk(path_text(root), [], [])
    entered: set[tuple[int, int]] = set()
    pending = deque([root])
    while pending:
        for entry in _entries(pending.pop(), entered, found.unreadable):
            with _noting(found.unreadable):
                if entry.name.lower().endswith(extensions) and not Path(entry.path).is_dir():
                    found.files.append(_audio_file(entry.path, _status(entry)))
                elif entry.is_dir():
                    (pending.appendleft if entry.is_symlink() else pending.append)(entry.path)
    if not found.files:
        skipped = f"; not readable: {found.unreadable[0]}" if found.unreadable else ""
        raise ConfigError(
            f"{found.root}: no audio in it; looked for {' '.join(extensions)} (audio.extensions){skipped}"
        )
    found.files.sort(key=lambda file: file.path)
    return found


def look(path: str) -> AudioFile | None:
    """Return the file at a stored path, None if there is none."""
    for real in _spellings(path):
        with suppress(OSError):
            return _audio_file(real, Path(real).stat())
    return None


def is_gone(path: str) -> bool:
    """Return whether there is surely nothing any more at a stored path.

    There is no telling below a folder that cannot be read, a link to nowhere, or a folder without anything in it, as
    one is where nothing is mounted.
    """
    return all(map(_is_gone, _spellings(path)))


def _spellings(path: str) -> set[str]:
    """Return the names that `path_text` stores as this path: as it is, and with its escapes undone."""
    return {path, re.sub("%([89A-F][0-9A-F])", lambda escape: chr(0xDC00 + int(escape[1], 16)), path)}


def _is_gone(path: str) -> bool:
    places = (Path(path), *Path(path).parents)
    try:
        nearest = next(place for place in places if _is_there(place))
        return nearest != places[0] and any(entry.name[0] != "." for entry in nearest.iterdir())
    except OSError:
        return False


def _is_there(place: Path) -> bool:
    try:
        place.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _entries(folder: str, entered: set[tuple[int, int]], unreadable: list[str]) -> list[os.DirEntry[str]]:
    """List a folder in order of names, without hidden entries; nothing if it was entered before."""
    with _noting(unreadable):
        status = Path(folder).stat()
        if (place := (status.st_dev, status.st_ino)) not in entered:
            entered.add(place)
            with os.scandir(folder) as entries:
                return sorted((entry for entry in entries if entry.name[0] != "."), key=lambda entry: entry.name)
    return []


@contextmanager
def _noting(unreadable: list[str]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        unreadable.append(f"{path_text(error.filename)}: {error.strerror}")


def _status(entry: os.DirEntry[str]) -> os.stat_result:
    """Say what a file is like, or the link itself where it leads to none."""
    with suppress(OSError):
        return entry.stat()
    return entry.stat(follow_symlinks=False)


def _audio_file(path: str, status: os.stat_result) -> AudioFile:
    return AudioFile(path_text(path), path, status.st_size, status.st_mtime_ns)
