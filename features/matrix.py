"""The feature matrix: a row for each track, columns named as in the FMA dataset's ``features.csv``."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pandas as pd

from core.errors import ConfigError
from core.records import Features, Track

LEVELS = ("feature", "statistics", "number")
"""Names of the levels of a column's name."""


def frame(tracks: Iterable[Track]) -> pd.DataFrame:
    """Gather the features of tracks.

    Parameters
    ----------
    tracks : iterable of Track
        Of one feature set.

    Returns
    -------
    DataFrame, (n_tracks, n_values) float32
        The index is the `track_id`, the columns are those of `columns`; without tracks there are no columns.

    Raises
    ------
    ConfigError
        If there are tracks of two feature sets.
    """
    track_ids, rows = [], []
    first: Track | None = None
    for track in tracks:
        first = first or track
        if track.feature_set != first.feature_set:
            raise ConfigError(
                f"{first.track_id} has features of the set {first.feature_set}, {track.track_id} of "
                f"{track.feature_set}: gather the tracks of each `feature_set` for itself"
            )
        track_ids.append(track.track_id)
        rows.append(values(track.features))
    matrix = np.stack(rows) if rows else np.empty((0, 0), np.float32)
    names = columns(first.features if first else {})
    return pd.DataFrame(matrix, index=pd.Index(track_ids, name="track_id"), columns=names)


def columns(features: Features) -> pd.MultiIndex:
    """Name the values of a feature set.

    Parameters
    ----------
    features : dict of block → statistic → values
        Of any track of the set.

    Returns
    -------
    MultiIndex of n_values entries
        The block, the statistic and the number of the value, a text that counts from ``'01'``, or from ``'001'`` in a
        block of more than 99. All three ascend, so that the columns can be sliced.
    """
    names = [
        (block, statistic, f"{i:0{max(2, len(str(len(found))))}}")
        for block, statistics in sorted(features.items())
        for statistic, found in sorted(statistics.items())
        for i in range(1, len(found) + 1)
    ]
    return pd.MultiIndex.from_tuples(names, names=LEVELS)


def values(features: Features) -> npt.NDArray[np.float32]:
    """Return the values of one track, (n_values,), in the order of `columns`."""
    blocks = (statistics for _, statistics in sorted(features.items()))
    return np.concatenate([found for statistics in blocks for _, found in sorted(statistics.items())], dtype=np.float32)
