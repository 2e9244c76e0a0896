"""The job `export playlists`: the clusters of the run in force → a folder of playlists, in an order for listening."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clustering.assign import home
from clustering.overview import title
from clustering.place import located
from clustering.recordings import one_name
from clustering.runs import require_assignments, require_run_in_force
from clustering.space import Matrix
from core.config import Config
from core.errors import ConfigError, MurmurError
from core.files import replacing
from core.jobs import Progress, Report, Watch, ignore
from core.names import UNCLUSTERED, may_be_escaped, path_text, printable
from core.records import Cluster, Run
from core.store import Document, Store

log = logging.getLogger(__name__)

CHOICES = 5
"""Among so many nearest tracks the next one is looked for that is by another artist."""
MAX_NAME = 120
"""Bytes of a file's name without its suffix."""
MARK = "#MURMUR:"
"""Begins the third line: what tells our playlists from those of others."""


@dataclass(frozen=True, slots=True)
class PlaylistsReport(Report):
    """What an export did: `written` counts the tracks in the playlists, `failed` those that none can name."""

    playlists: int = 0
    unclustered: int = 0
    """Tracks left out because they are too far from every centre."""
    removed: int = 0
    """Playlists of an earlier export, of clusters that have gone or are described otherwise now."""


class Heard(NamedTuple):
    """A track as a member of its cluster."""

    track: Document
    position: Matrix
    distance: float
    """To the cluster's centre."""


def run(_: Config, out: Path, *, store: Store, progress: Watch = ignore) -> PlaylistsReport:
    """Write an M3U8 playlist for each cluster of the run in force, and remove those of an earlier export.

    Reads the assignments and the tracks. Each file is written beside its place and renamed, and files that are not
    ours stay: twice is the same as once. Tracks too far from every centre, and those that a playlist cannot name, are
    left out; a cluster of which no track remains has no playlist.

    Parameters
    ----------
    _ : Config
        Not needed: the run has its settings with it.
    out : Path
        The folder, made if it is missing.
    store : Store
    progress : callable
        Told how many tracks are in playlists.

    Raises
    ------
    ConfigError
        If no run is in force, or `out` is no folder in which files can be written, or has a file of somebody else with
        the name of a playlist.
    MurmurError
        If the run has no assignments, or a file cannot be written.
    BackendError
        If the store fails.
    """
    started = time.monotonic()
    in_force = require_run_in_force(store)
    _check_folder(out)
    members, unclustered, failed = _members(store, in_force)
    headings = {one.cluster_id: heading(one) for one in in_force.clusters if members[one.cluster_id]}
    files = {cluster_id: out / file_name(text) for cluster_id, text in headings.items()}
    total, written = sum(map(len, members.values())), 0
    try:
        for file in files.values():
            if os.path.lexists(file) and not _is_ours(file):
                raise ConfigError(f"{path_text(file)}: not a playlist of ours; move it, or name another folder")
        for cluster_id, file in files.items():
            tracks = in_order(members[cluster_id])
            with replacing(file) as part:
                part.write_bytes(playlist(headings[cluster_id], in_force.run_id, tracks).encode())
            written += len(tracks)
            progress(Progress("export", written, total, failed))
        removed = _remove_others(out, files.values())
    except OSError as error:
        raise MurmurError(f"{path_text(out)}: {error.strerror or error}") from error
    return PlaylistsReport(
        read=total + unclustered + failed,
        written=written,
        failed=failed,
        seconds=time.monotonic() - started,
        playlists=len(files),
        unclustered=unclustered,
        removed=removed,
    )


def in_order(members: Sequence[Heard]) -> list[Document]:
    """Return the tracks of a cluster as `listening_order` has them."""
    X = np.stack([one.position for one in members])
    distances = np.array([one.distance for one in members])
    artists = [one_name(one.track["artist"]) for one in members]
    return [members[i].track for i in listening_order(X, distances, artists)]


def listening_order(X: Matrix, distances: Matrix, artists: Sequence[str]) -> list[int]:
    """Return the rows from the one nearest to the centre on, after each the nearest that was not played yet.

    A track of the same artist as the one before gives way to the nearest of another among `CHOICES`, if there is one.

    Parameters
    ----------
    X : ndarray, shape (n, d)
    distances : ndarray, shape (n,)
        To the centre.
    artists : sequence of n str
        Empty where it is no one artist.
    """
    norms = np.square(X).sum(axis=1)
    order = [int(distances.argmin())]
    while len(order) < len(X):
        last = order[-1]
        norms[last] = np.inf  # it is played
        squares = norms - 2 * (X @ X[last])
        k = min(CHOICES, len(X) - len(order))
        near = np.sort(np.argpartition(squares, k - 1)[:k])
        near = near[np.argsort(squares[near], kind="stable")]
        others = (i for i in near.tolist() if not artists[i] or artists[i] != artists[last])
        order.append(next(others, int(near[0])))
    return order


def playlist(heading: str, run_id: str, tracks: Iterable[Document]) -> str:
    """Return the text of an M3U8 file."""
    lines = ["#EXTM3U", f"#PLAYLIST:{heading}", f"{MARK}{run_id}"]
    for track in tracks:
        said = " - ".join(filter(None, [_one_line(track["artist"] or ""), _one_line(title(track))]))
        lines += [f"#EXTINF:{round(track['duration'])},{said}", track["source"]["path"]]
    return "\n".join(lines) + "\n"


def heading(cluster: Cluster) -> str:
    """Return what a cluster is called: its id and what it is."""
    return _one_line(f"{cluster.cluster_id} {cluster.description.text if cluster.description else ''}")


def file_name(heading: str) -> str:
    """Return the name of the file: what of the heading no file system objects to."""
    words = re.sub(r"[^\w-]+", " ", heading).encode()[:MAX_NAME].decode(errors="ignore")
    return f"{words.strip()}.m3u8"


def _members(store: Store, run: Run) -> tuple[dict[str, list[Heard]], int, int]:
    """Return the members of each cluster, and how many tracks are unclustered and cannot be named."""
    clusters = {cluster.cluster_id: cluster for cluster in run.clusters}
    assigned = require_assignments(store, run, ("cluster_id", "distance"))
    members: dict[str, list[Heard]] = {cluster_id: [] for cluster_id in clusters}
    unclustered, nameless = 0, []
    for track, position in located(store, run, ("title", "artist", "duration", "source")):
        del track["features"]
        found = assigned.get(track["track_id"])
        if found is None or found["cluster_id"] not in clusters:
            continue
        cluster_id, distance = found["cluster_id"], found["distance"]
        if home(clusters[cluster_id], distance) == UNCLUSTERED:
            unclustered += 1
        elif not _can_be_named(path := track["source"]["path"]):
            nameless.append(path)
        else:
            members[cluster_id].append(Heard(track, position, distance))
    if nameless:
        log.warning(
            "%d left out: a playlist cannot name a path that has a line break or is not UTF-8, such as %s",
            len(nameless),
            printable(nameless[0]),
        )
    return members, unclustered, len(nameless)


def _can_be_named(path: str) -> bool:
    if "\n" in path or "\r" in path:
        return False
    return not may_be_escaped(path) or os.path.exists(path)  # noqa: PTH110  # no error where a folder cannot be read


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _check_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise ConfigError(f"{path_text(out)}: a file, not a folder; name a folder for the playlists") from error
    except OSError as error:
        raise ConfigError(f"{path_text(out)}: {error.strerror or error}; name another folder") from error
    if not os.access(out, os.W_OK | os.X_OK):
        raise ConfigError(f"{path_text(out)}: cannot be written; name another folder")


def _remove_others(out: Path, files: Iterable[Path]) -> int:
    """Remove our playlists but for these files; a file system may spell their names otherwise."""
    kept = {file.stat().st_ino for file in files}
    stale = [file for file in out.iterdir() if _is_ours(file) and file.stat().st_ino not in kept]
    for file in stale:
        file.unlink()
    return len(stale)


def _is_ours(file: Path) -> bool:
    if not re.fullmatch(r"c\d+\b.*\.m3u8", file.name) or file.is_symlink() or not file.is_file():
        return False
    with file.open("rb") as lines:
        _, second, third = (lines.readline(1 << 16) for _ in range(3))
    return second.startswith(b"#PLAYLIST:") and third.startswith(MARK.encode())
