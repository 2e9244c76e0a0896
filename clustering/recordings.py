"""What tells encodings of one recording, and tracks of one artist: so that a list has neither twice."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from clustering.assign import Labels
from core.blocks import BLOCKS
from core.names import digest
from core.store import Document

MAX_DURATION_DIFFERENCE = 1.0
"""s"""
MAX_TIMBRE_DIFFERENCE = 5.0
"""rms of the differences of the 20 MFCC means; encodings of one recording stay below 3.6, others above 8.6."""
VARIOUS = frozenset({"", "various", "various artists", "va", "unknown", "unknown artist"})
"""What stands for no one artist, in lower case."""
PER_ARTIST = 2
"""Tracks of one artist in a list: a taste is more than an artist's catalogue."""

RECORDING = np.dtype([("duration", np.float64), ("timbre", np.float64, BLOCKS["mfcc"].rows), ("artist", np.int64)])
"""Of one track: s; the MFCC means, NaN where they are not known; what is the same for all of one artist, 0 for none."""
Recordings = npt.NDArray[np.void]
"""(n,) of `RECORDING`."""


def recording(track: Document) -> tuple[float, Any, int]:
    """Return what tells a track's copies and its artist, in the order of `RECORDING`."""
    timbre = track["features"].get("mfcc", {}).get("mean", ())
    known = len(timbre) == BLOCKS["mfcc"].rows
    artist = one_name(track["artist"]).encode()
    return track["duration"], timbre if known else np.nan, int(digest(artist)[:15], 16) if artist else 0


def one_name(name: str | None) -> str:
    """Return what is the same for all spellings of a name, in case and spaces; empty where none or many are meant."""
    name = " ".join((name or "").casefold().split())
    return "" if name in VARIOUS else name


def same_recording(recordings: Recordings, a: Labels, b: Labels) -> npt.NDArray[np.bool_]:
    """Return whether the tracks in rows `a` and `b` are encodings of one recording, by duration and timbre."""
    duration, timbre = recordings["duration"], recordings["timbre"]
    same: npt.NDArray[np.bool_] = np.abs(duration[a] - duration[b]) <= MAX_DURATION_DIFFERENCE
    a, b = (rows[same] for rows in np.broadcast_arrays(a, b))
    same[same] = np.sqrt(np.square(timbre[a] - timbre[b]).mean(axis=-1)) <= MAX_TIMBRE_DIFFERENCE
    return same


def choose(
    recordings: Recordings, lists: Labels, liked: Labels, n: int, *, copies: bool = False, per_artist: int = PER_ARTIST
) -> Labels:
    """Return the first `n` of each list that are no copies and leave room for other artists.

    Parameters
    ----------
    recordings : ndarray of RECORDING
    lists : ndarray of int, shape (m, c)
        Rows, in the order of preference; −1 is passed over.
    liked : ndarray of int, shape (m, q)
        The rows to which they belong: their copies are none of the list.
    n : int
    copies : bool
        Whether copies of what is liked or chosen count as well.
    per_artist : int
        How many tracks of one artist at most; 0 for any number.

    Returns
    -------
    ndarray of int, shape (m, n)
        Their places in `lists`, −1 where there are too few.
    """
    m, q = liked.shape
    kept = np.hstack([liked, np.full((m, n), -1)])
    chosen = np.full((m, n), -1)
    counts = np.zeros(m, dtype=np.intp)
    artists = recordings["artist"]
    for place, column in enumerate(lists.T):
        if (counts == n).all():
            break
        asked = np.flatnonzero((counts < n) & (column >= 0))
        there, one = kept[asked, : q + counts.max()], column[asked, None]
        refused = np.zeros(len(asked), dtype=bool)
        if not copies:
            refused |= ((there >= 0) & same_recording(recordings, there, one)).any(axis=1)
        if per_artist:
            of_artist = (artists[there[:, q:]] == artists[one]) & (there[:, q:] >= 0) & (artists[one] != 0)
            refused |= of_artist.sum(axis=1) >= per_artist
        fine = asked[~refused]
        kept[fine, q + counts[fine]], chosen[fine, counts[fine]] = column[fine], place
        counts[fine] += 1
    return chosen
