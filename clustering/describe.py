"""What a cluster is, in words made from data: typical tracks, over-represented genres, how it sounds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

from clustering.assign import Labels
from clustering.space import Matrix
from core.records import Description, Features, OverRepresented, Sound, Typical
from core.store import Document

AVERAGE = "close to the average"
TYPICAL = 3
MAX_WORDS = 3
MIN_DEVIATION = 0.5
"""Standard deviations of the library from which on a word is said."""
MIN_TRACKS = 5
MAX_P = 0.01


class Scale(NamedTuple):
    """A descriptor that listeners have words for."""

    name: str
    value: Callable[[Features], float]
    high: str
    low: str


SCALES = (
    Scale("spectral_centroid.mean", lambda f: f["spectral_centroid"]["mean"][0], "bright", "dark"),
    Scale("rms.mean", lambda f: f["rms"]["mean"][0], "loud", "quiet"),
    Scale("rms.std/mean", lambda f: f["rms"]["std"][0] / max(f["rms"]["mean"][0], 1e-9), "dynamic", "even"),
    Scale("spectral_flatness.mean", lambda f: f["spectral_flatness"]["mean"][0], "noisy", "tonal"),
    Scale("mfcc_delta.mean_abs", lambda f: float(np.mean(f["mfcc_delta"]["mean_abs"])), "restless", "steady"),
    Scale("spectral_bandwidth.mean", lambda f: f["spectral_bandwidth"]["mean"][0], "wide", "narrow"),
)


def sounds(features: Features) -> Matrix:
    """Return a track's place on each of `SCALES`, NaN where its block was not extracted."""
    return np.array([_value(scale, features) for scale in SCALES])


def describe(labels: Labels, distances: Matrix, places: Matrix, tracks: Sequence[Document]) -> list[Description]:
    """Describe each of the clusters 0 … k − 1.

    Parameters
    ----------
    labels : ndarray of int, shape (n,)
        None without members.
    distances : ndarray, shape (n,)
        To the centres.
    places : ndarray, shape (n, n_scales)
        From `sounds`.
    tracks : sequence of n documents
        With `track_id`, `title`, `artist` and `genre`.
    """
    library = genres_of(tracks)
    found = []
    for label in range(labels.max() + 1):
        members = np.flatnonzero(labels == label)
        nearest_first = [tracks[i] for i in members[np.argsort(distances[members], kind="stable")].tolist()]
        genres = over_represented(genres_of(nearest_first), library)
        heard = how_it_sounds(places[members], places)
        words = ", ".join(sound.word for sound in heard if sound.word) or AVERAGE
        found.append(
            Description(
                text="; ".join(filter(None, [words, ", ".join(one.genre for one in genres)])),
                typical=typical(nearest_first),
                genres=genres,
                sounds=heard,
            )
        )
    return found


def typical(tracks: Sequence[Document]) -> list[Typical]:
    """Return the first tracks, of those with the same title and artist only one."""
    firsts: dict[tuple[str, str], Document] = {}
    for track in tracks:
        firsts.setdefault((track["title"] or track["track_id"], track["artist"]), track)
    return [Typical.from_document(track) for track in islice(firsts.values(), TYPICAL)]


def genres_of(tracks: Sequence[Document]) -> Counter[str]:
    """Return how many tracks there are of each genre, those without one left out."""
    return Counter(track["genre"] for track in tracks if track["genre"])


def over_represented(members: Counter[str], library: Counter[str]) -> list[OverRepresented]:
    """Return the genres that are more frequent in a cluster than chance allows, the highest lift first.

    By the hypergeometric test: the probability that as many tracks drawn at random from the library as the cluster has
    would hold so many of the genre. Tracks without a genre do not count.

    Parameters
    ----------
    members, library : Counter
        Genre → number of tracks, of the cluster and of all.
    """
    from scipy.stats import hypergeom

    drawn, total = members.total(), library.total()
    found = [
        OverRepresented(
            genre=genre,
            tracks=count,
            share=count / drawn,
            lift=(count / drawn) / (library[genre] / total),
            p=float(hypergeom.sf(count - 1, total, library[genre], drawn)),
        )
        for genre, count in members.items()
        if count >= MIN_TRACKS
    ]
    return sorted((one for one in found if one.p < MAX_P), key=lambda one: (-one.lift, one.genre))


def how_it_sounds(members: Matrix, library: Matrix) -> list[Sound]:
    """Return the place of a cluster on each scale, the farthest from the library's mean first, three of them in a word.

    Parameters
    ----------
    members, library : ndarray, shape (n, n_scales)
        A scale on which any track has no place is left out.
    """
    means, stds = library.mean(axis=0), library.std(axis=0)
    stds[stds < 1e-8 * np.maximum(1.0, np.abs(means))] = np.inf  # a constant: nothing deviates from it
    deviations = (members.mean(axis=0) - means) / stds
    known = np.flatnonzero(np.isfinite(deviations))
    order = known[np.argsort(-np.abs(deviations[known]), kind="stable")]
    return [
        Sound(
            scale=SCALES[i].name,
            mean=float(members[:, i].mean()),
            library_mean=float(means[i]),
            deviation=float(deviations[i]),
            word=_word(SCALES[i], float(deviations[i])) if rank < MAX_WORDS else None,
        )
        for rank, i in enumerate(order)
    ]


def _word(scale: Scale, deviation: float) -> str | None:
    if abs(deviation) < MIN_DEVIATION:
        return None
    return scale.high if deviation > 0 else scale.low


def _value(scale: Scale, features: Features) -> float:
    try:
        return scale.value(features)
    except KeyError:  # of another profile
        return np.nan
