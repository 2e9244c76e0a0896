"""Tracks in the space of a run: what assigns one more with numpy alone, in batch and live alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from types import MappingProxyType

import numpy as np

from clustering.assign import Labels, assign
from clustering.library import UNCLUSTERABLE, clusterable, fits, row_of
from clustering.neighbours import products
from clustering.ranking import Points, points, recommend
from clustering.recordings import RECORDING, recording
from clustering.space import Matrix, layouts, stack, transform
from core.errors import BackendError
from core.jobs import Progress, Watch, ignore
from core.records import Assignment, Neighbour, Record, Run, Track, next_rev
from core.store import Document, Store

BATCH = 500
FIELDS = ("track_id", "rev", "feature_set", "flags", "features", "duration", "artist")
"""What must be known of a track."""
KNOWN = ("track_id", "track_rev", "neighbourhood", "rev")
"""What is read of an assignment."""


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
        self.rows: dict[str, int] = {}
        """`track_id` → row."""
        self.ids: list[str] = []
        """The `track_id` of each row."""
        self._revs: list[int] = []
        d = sum(len(group.components) for group in run.space)
        self._points = points(np.zeros((BATCH, d)), np.zeros(BATCH, dtype=RECORDING))
        """The rows beyond the last track are room for more."""

    @property
    def points(self) -> Points:
        """The rows; what is measured of them stays known."""
        return Points._make(values[: len(self.ids)] for values in self._points)

    def place(self, tracks: Iterable[Document]) -> list[Assignment]:
        """Take in tracks, and return their assignments; a track without a place has none, and is no longer there.

        What the tracks that were there before were assigned stays as it is, their neighbourhoods too: a ranking
        follows the library as it was when each was placed.
        """
        given = {track["track_id"]: track for track in tracks}
        self.put(given.values())
        return self.assign(given)

    def put(self, tracks: Iterable[Document], neighbourhoods: Mapping[str, float] = MappingProxyType({})) -> None:
        """Take in tracks, or their newer versions, with `FIELDS`; what has no place, or none any more, is not there.

        Of those that are not in `neighbourhoods`, by `track_id`, it is measured with the next assignment.
        """
        given = {track["track_id"]: track for track in tracks}
        placed = {
            track["track_id"]: position for track, position in positions(self.run, filter(self._fits, given.values()))
        }
        for track_id, track in given.items():
            if track_id in placed:
                self._put(track, placed[track_id], neighbourhoods.get(track_id, np.nan))
            else:
                self.drop(track_id)

    def drop(self, track_id: str) -> None:
        """Forget a track; the last one takes its row."""
        row = self.rows.pop(track_id, None)
        if row is None:
            return
        last, rev = self.ids.pop(), self._revs.pop()
        if last != track_id:
            self.rows[last], self.ids[row], self._revs[row] = row, last, rev
            for values in self._points:
                values[row] = values[len(self.ids)]

    def assign(self, track_ids: Iterable[str]) -> list[Assignment]:
        """Return the assignments of those tracks that have a place."""
        rows = np.array([self.rows[track_id] for track_id in track_ids if track_id in self.rows], dtype=np.intp)
        self.rev = next_rev(self.rev)
        return list(place(self.run, self.ids, self._revs, self.points, rows, rev=self.rev))

    def _fits(self, track: Document) -> bool:
        return track["feature_set"] == self.run.feature_set and UNCLUSTERABLE.isdisjoint(track["flags"])

    def _put(self, track: Document, position: Matrix, neighbourhood: float) -> None:
        row = self.rows.setdefault(track["track_id"], len(self.ids))
        if row == len(self.ids):
            self.ids.append(track["track_id"])
            self._revs.append(track["rev"])
            if row == len(self._points.X):
                self._points = Points._make(np.concatenate([values, np.zeros_like(values)]) for values in self._points)
        self._revs[row] = track["rev"]
        self._points.X[row], self._points.P[row] = position, products(position)
        self._points.neighbourhoods[row], self._points.recordings[row] = neighbourhood, recording(track)


def read_places(store: Store, run: Run, progress: Watch = ignore) -> Places:
    """Return the places of all tracks of a run's feature set, with the neighbourhoods as the run assigned them."""
    places = Places(run)
    known: dict[str, Document] = {}
    for found in store.scan(Assignment, fields=KNOWN, prefix=f"{run.run_id}/"):
        places.rev = max(places.rev, found["rev"])
        if found.get("neighbourhood") is not None:
            known[found["track_id"]] = found
    tracks = clusterable(store, run.feature_set, FIELDS)
    while batch := list(islice(tracks, BATCH)):
        places.put(
            batch,
            {
                track["track_id"]: known[track["track_id"]]["neighbourhood"]
                for track in batch
                if track["track_id"] in known and known[track["track_id"]]["track_rev"] == track["rev"]
            },
        )
        progress(Progress("place", len(places.ids), None))
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
    known = {
        found["track_id"]: found["track_rev"]
        for found in store.scan(Assignment, fields=("track_id", "track_rev"), prefix=f"{run.run_id}/")
    }
    tracks = clusterable(store, run.feature_set, ("track_id", "rev"))
    stale = [track["track_id"] for track in tracks if known.get(track["track_id"], -1) < track["rev"]]
    if _any_fits(store, run, stale):
        places = read_places(store, run)
        for first in range(0, len(stale), BATCH):
            assigned = places.assign(stale[first : first + BATCH])
            store_all(store, assigned)
            known |= {assignment.track_id: assignment.track_rev for assignment in assigned}
            progress(Progress("assign", first + len(assigned), len(stale)))
    return len(known)


def _any_fits(store: Store, run: Run, track_ids: Iterable[str]) -> bool:
    """Return whether one of some tracks has a place; one whose features do not fit never will, and is no news."""
    slots = layouts(run.space)
    found = (store.get(Track, track_id) for track_id in track_ids)
    return any(fits(track.model_dump(), slots) for track in found if track)


def place(
    run: Run,
    track_ids: Sequence[str],
    revs: Sequence[int],
    points: Points,
    rows: Labels | None = None,
    *,
    rev: int,
) -> Iterator[Assignment]:
    """Yield where a run puts tracks, with the 10 others that `ranking.recommend` recommends.

    Parameters
    ----------
    run : Run
    track_ids, revs : sequences of length n
    points : Points
        All n tracks in the space of the run.
    rows : ndarray of int, shape (m,), optional
        The tracks to assign; default: all n.
    rev : int
        Of the assignments.
    """
    rows = np.arange(len(points.X)) if rows is None else rows
    for first in range(0, len(rows), BATCH):
        part = rows[first : first + BATCH]
        placed = assign(run.clusters, points.X[part])
        near = recommend(points, part[:, None])
        for i, row in enumerate(part):
            yield Assignment(
                rev=rev,
                run_id=run.run_id,
                track_id=track_ids[row],
                track_rev=revs[row],
                cluster_id=run.clusters[placed.labels[i]].cluster_id,
                distance=float(placed.distances[i]),
                score=float(placed.scores[i]),
                neighbours=[
                    Neighbour(track_id=track_ids[j], score=float(score))
                    for j, score in zip(near.indices[i], near.scores[i], strict=True)
                    if j >= 0
                ],
                neighbourhood=float(points.neighbourhoods[row]),
            )


def store_assignments(
    store: Store, assigned: Iterator[Assignment], total: int | None = None, progress: Watch = ignore
) -> int:
    """Write assignments in batches, as they are made; return how many."""
    written = 0
    while batch := list(islice(assigned, BATCH)):
        store_all(store, batch)
        written += len(batch)
        progress(Progress("write", written, total))
    return written


def store_all(store: Store, records: Sequence[Record]) -> None:
    """Write records; raise `BackendError` if the store refuses one."""
    for key, reason in store.upsert(records).refused.items():
        raise BackendError(f"{store.url}: cannot store {key}: {reason}")
