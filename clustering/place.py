"""Tracks in the space of a run: what assigns one more with numpy alone, in batch and live alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np

from clustering.assign import Labels, assign, neighbours, score
from clustering.library import UNCLUSTERABLE, clusterable, row_of
from clustering.space import Matrix, layouts, stack, transform
from core.errors import BackendError
from core.jobs import Progress, Watch, ignore
from core.records import Assignment, Neighbour, Record, Run, next_rev
from core.store import Document, Store

BATCH = 500
FIELDS = ("track_id", "rev", "feature_set", "flags", "features", "duration", "artist")
"""What must be known of a track."""


class Places:
    """Where the tracks of a library are in the space of a run.

    Parameters
    ----------
    run : Run
        With its space; tracks of its feature set alone have a place.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.rev = run.rev
        """The last one of an assignment."""
        self._rows: dict[str, int] = {}
        self._ids: list[str] = []
        self._revs: list[int] = []
        self._X = np.empty((BATCH, sum(len(group.components) for group in run.space)))
        """The rows beyond the last track are room for more."""

    def place(self, tracks: Iterable[Document]) -> list[Assignment]:
        """Take in tracks, and return their assignments; a track without a place has none, and is no longer there.

        The tracks that were there before keep what they were assigned.
        """
        given = {track["track_id"]: track for track in tracks}
        self.put(given.values())
        return self.assign(given)

    def put(self, tracks: Iterable[Document]) -> None:
        """Take in tracks, or their newer versions, with `FIELDS`; what has no place, or none any more, is not there."""
        given = {track["track_id"]: track for track in tracks}
        placed = {
            track["track_id"]: position for track, position in positions(self.run, filter(self._fits, given.values()))
        }
        for track_id, track in given.items():
            if track_id in placed:
                self._put(track_id, track["rev"], placed[track_id])
            else:
                self.drop(track_id)

    def drop(self, track_id: str) -> None:
        """Forget a track; the last one takes its row."""
        row = self._rows.pop(track_id, None)
        if row is None:
            return
        last, rev = self._ids.pop(), self._revs.pop()
        if last != track_id:
            self._rows[last], self._ids[row], self._revs[row] = row, last, rev
            self._X[row] = self._X[len(self._ids)]

    def assign(self, track_ids: Iterable[str]) -> list[Assignment]:
        """Return the assignments of those tracks that have a place."""
        rows = np.array([self._rows[track_id] for track_id in track_ids if track_id in self._rows], dtype=np.intp)
        if not len(rows):
            return []
        self.rev = next_rev(self.rev)
        return list(place(self.run, self._ids, self._revs, self._X[: len(self._ids)], rows, rev=self.rev))

    def _fits(self, track: Document) -> bool:
        return track["feature_set"] == self.run.feature_set and UNCLUSTERABLE.isdisjoint(track["flags"])

    def _put(self, track_id: str, rev: int, position: Matrix) -> None:
        row = self._rows.setdefault(track_id, len(self._ids))
        if row == len(self._ids):
            self._ids.append(track_id)
            self._revs.append(rev)
            if row == len(self._X):
                self._X = np.concatenate([self._X, np.empty_like(self._X)])
        self._revs[row], self._X[row] = rev, position


def read_places(store: Store, run: Run) -> Places:
    """Return the places of all tracks of a run's feature set."""
    places = Places(run)
    tracks = clusterable(store, run.feature_set, FIELDS)
    while batch := list(islice(tracks, BATCH)):
        places.put(batch)
    return places


def located(store: Store, run: Run, fields: Sequence[str]) -> Iterator[tuple[Document, Matrix]]:
    """Stream the tracks of a run's feature set, their `features` and some other fields, each with its (d,) position.

    In order of the `track_id`; those whose features do not fit are left out with a warning.
    """
    return positions(run, clusterable(store, run.feature_set, [*fields, "track_id", "features"]))


def positions(run: Run, tracks: Iterable[Document]) -> Iterator[tuple[Document, Matrix]]:
    """Yield tracks of a run's feature set, each with its (d,) position; those that do not fit are left out."""
    slots = layouts(run.space)
    rows = ((track, row) for track in tracks if (row := row_of(track, slots)))
    while batch := list(islice(rows, BATCH)):
        X = transform(run.space, stack([row for _, row in batch]))
        for (track, _), position in zip(batch, X, strict=True):
            yield track, position


def settle(store: Store, run: Run, progress: Watch = ignore) -> int:
    """Assign the tracks of a run's feature set that the run has not assigned, or not as they are now.

    Parameters
    ----------
    store : Store
    run : Run
    progress : callable

    Returns
    -------
    int
        How many assignments the run has then.
    """
    known: dict[str, int] = {}
    rev = run.rev
    for found in store.scan(Assignment, fields=("track_id", "track_rev", "rev"), prefix=f"{run.run_id}/"):
        known[found["track_id"]] = found["track_rev"]
        rev = max(rev, found["rev"])
    tracks = clusterable(store, run.feature_set, ("track_id", "rev"))
    stale = [track["track_id"] for track in tracks if known.get(track["track_id"], -1) < track["rev"]]
    if stale:
        places = read_places(store, run)
        places.rev = max(places.rev, rev)
        for first in range(0, len(stale), BATCH):
            assigned = places.assign(stale[first : first + BATCH])
            store_all(store, assigned)
            known |= {assignment.track_id: assignment.track_rev for assignment in assigned}
            progress(Progress("assign", first + len(assigned), len(stale)))
    return len(known)


def place(
    run: Run, track_ids: Sequence[str], revs: Sequence[int], X: Matrix, rows: Labels | None = None, *, rev: int
) -> Iterator[Assignment]:
    """Yield where a run puts tracks, with their 10 nearest others by exact distance.

    A neighbour's score is ``1 / (1 + d/r)`` with the radius r of the track's own cluster, so that the
    scores of a track and of its neighbours are on one scale: 1/2 is as far as half the members are from
    the centre.

    Parameters
    ----------
    run : Run
    track_ids, revs : sequences of length n
    X : ndarray, shape (n, d)
        All tracks in the space of the run.
    rows : ndarray of int, shape (m,), optional
        The tracks to assign; default: all n.
    rev : int
        Of the assignments.
    """
    rows = np.arange(len(X)) if rows is None else rows
    placed = assign(run.clusters, X[rows])
    indices, distances = neighbours(X, rows=rows)
    radii = np.array([cluster.radius for cluster in run.clusters])[placed.labels]
    scores = score(distances, radii[:, None])
    for i, row in enumerate(rows):
        yield Assignment(
            rev=rev,
            run_id=run.run_id,
            track_id=track_ids[row],
            track_rev=revs[row],
            cluster_id=run.clusters[placed.labels[i]].cluster_id,
            distance=float(placed.distances[i]),
            score=float(placed.scores[i]),
            neighbours=[
                Neighbour(track_id=track_ids[j], score=float(near))
                for j, near in zip(indices[i], scores[i], strict=True)
            ],
        )


def store_all(store: Store, records: Sequence[Record]) -> None:
    """Write records; raise `BackendError` if the store refuses one."""
    for key, reason in store.upsert(records).refused.items():
        raise BackendError(f"{store.url}: cannot store {key}: {reason}")
