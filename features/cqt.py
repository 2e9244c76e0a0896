"""The constant-Q transform, and the descriptors that the FMA dataset takes from it; all equal to librosa to the bit.

The transform is put together from librosa's public parts, so that the filters of a tuning are made once and not for
each track, and memory serves block after block.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import librosa
import numpy as np
import scipy.fft
import soxr

from features.spectrum import HOP, Array

N_OCTAVES = 7
"""From C1, 32.7 Hz."""
BINS_PER_OCTAVE = 12
N_BINS = N_OCTAVES * BINS_PER_OCTAVE

_BLOCK = 512
"""Frames taken at a time: what lies between the steps stays in the cache."""
_HALVINGS = int(math.log2(HOP)) - N_OCTAVES + 1
"""Times the rate may be halved before the first octave, so that the last one still has a whole hop."""


class Octave(NamedTuple):
    """The filters of one octave, for a signal at the rate of that octave."""

    hop: int
    """Samples between the starts of two frames."""
    n_fft: int
    """Samples in a frame."""
    lines: slice
    """Lines of a frame's FFT that the filters look at."""
    filters: Any
    """(12, n_lines) complex64, sparse: the filters' FFT at these lines."""
    scale: Array
    """(12, 1): square root of the filters' lengths in samples at the rate of the first octave."""


class Bank(NamedTuple):
    """All that a transform needs to know of a sample rate and a tuning."""

    decimation: int
    """By how much the sample rate exceeds what the first octave needs; a power of two."""
    octaves: tuple[Octave, ...]
    """From the highest down, each at half the rate of the one before."""


def cqt(y: Array, sample_rate: int, tuning: float) -> Array:
    """Return the magnitude of the constant-Q transform, the very values of librosa.

    ``np.abs(librosa.cqt(y, sr=sample_rate, hop_length=512, n_bins=84, bins_per_octave=12, tuning=tuning))``, after
    Schörkhuber and Klapuri, "Constant-Q transform toolbox for music processing" (2010). A signal shorter than a filter
    is extended by zeros, without a warning; so is one that is too short for librosa.

    Parameters
    ----------
    y : (n_samples,) float32, at least one sample
    sample_rate : int
        Hz, 16,000 or more.
    tuning : float
        Deviation from A4 = 440 Hz in semitones.

    Returns
    -------
    (84, n_frames) float32
        A frame every 512 samples: 1 + n_samples // 512, at most one more where `sample_rate` is above 32 kHz.
    """
    bank = _bank(sample_rate, float(tuning))
    y = _decimated(y, bank.decimation)
    magnitude = np.empty((1 + len(y) // bank.octaves[0].hop, N_BINS), np.float32)
    for end, octave in zip(range(N_BINS, 0, -BINS_PER_OCTAVE), bank.octaves, strict=True):
        if end < N_BINS:
            y = _decimated(y, 2)
        _respond(y, octave, out=magnitude[:, end - BINS_PER_OCTAVE : end])
    return magnitude.T


def chroma_cqt(cqt: Array) -> Array:
    """Return the magnitude of the 12 pitch classes from C, (12, n_frames), each frame divided by its maximum.

    ``librosa.feature.chroma_cqt`` of the transform `cqt`, (84, n_frames), with 12 bins per octave.
    """
    found: Array = librosa.feature.chroma_cqt(C=cqt, bins_per_octave=BINS_PER_OCTAVE)
    return found


def chroma_cens(cqt: Array) -> Array:
    """Return the pitch classes quantised, smoothed over 41 frames and divided by their Euclidean norm, (12, n_frames).

    ``librosa.feature.chroma_cens`` of the transform `cqt`, (84, n_frames), with 12 bins per octave; after Müller and
    Ewert, "Chroma Toolbox" (2011).
    """
    found: Array = librosa.feature.chroma_cens(C=cqt, bins_per_octave=BINS_PER_OCTAVE)
    return found


def tonnetz(chroma: Array) -> Array:
    """Return the place of a chroma, (12, n_frames), on the circles of fifths, minor and major thirds, (6, n_frames).

    ``librosa.feature.tonnetz``: sine and cosine on each circle; after Harte, Sandler and Gasser (2006). The FMA dataset
    takes it of `chroma_cens`.
    """
    found: Array = librosa.feature.tonnetz(chroma=chroma)
    return found


def _respond(y: Array, octave: Octave, out: Array) -> None:
    """Write the magnitude of the filters' response to y, at the rate of the octave, to the frames of `out`."""
    frames = np.empty((_BLOCK, octave.n_fft))
    lines = np.empty((_BLOCK, octave.n_fft // 2 + 1), np.complex128)
    for first in range(0, len(out), _BLOCK):
        n = min(_BLOCK, len(out) - first)
        frames[:n] = _frames(y, octave, first, n)
        np.fft.rfft(frames[:n], out=lines[:n])
        response = octave.filters @ lines[:n, octave.lines].T.astype(np.complex64, order="C")
        response /= octave.scale
        out[first : first + n] = np.abs(response).T


def _frames(y: Array, octave: Octave, first: int, n: int) -> Array:
    """Return a view of n centred frames, (n, n_fft); zeros beyond the ends of y."""
    start = first * octave.hop - octave.n_fft // 2
    stop = start + (n - 1) * octave.hop + octave.n_fft
    part = y[max(start, 0) : stop]
    if start < 0 or stop > len(y):
        part = np.pad(part, (max(-start, 0), max(stop - len(y), 0)))
    view: Array = np.lib.stride_tricks.sliding_window_view(part, octave.n_fft)[:: octave.hop]
    return view


def _decimated(y: Array, factor: int) -> Array:
    """Return every `factor`-th sample of the low-passed y at the same energy, to the bits of ``librosa.resample``."""
    if factor == 1:
        return y
    fewer: Array = soxr.resample(y, factor, 1, quality="soxr_hq")
    fewer = librosa.util.fix_length(fewer, size=math.ceil(len(y) / factor))
    fewer /= np.sqrt(1 / factor)
    return fewer


@lru_cache(maxsize=128)  # tunings are multiples of 0.01
def _bank(sample_rate: int, tuning: float) -> Bank:
    frequencies = librosa.interval_frequencies(
        N_BINS,
        fmin=librosa.note_to_hz("C1") * 2 ** (tuning / BINS_PER_OCTAVE),
        intervals="equal",
        bins_per_octave=BINS_PER_OCTAVE,
    )
    bandwidths = _relative_bandwidths(frequencies)
    _, highest = librosa.filters.wavelet_lengths(freqs=frequencies, sr=sample_rate, alpha=bandwidths)
    halvings = min(max(math.ceil(math.log2(sample_rate / 2 / highest)) - 2, 0), _HALVINGS)
    rate = sample_rate / 2**halvings
    lengths, _ = librosa.filters.wavelet_lengths(freqs=frequencies, sr=rate, alpha=bandwidths)
    octaves = []
    for i in range(N_OCTAVES):
        bins = slice(N_BINS - BINS_PER_OCTAVE * (i + 1), N_BINS - BINS_PER_OCTAVE * i)
        n_fft, filters = _filters(frequencies[bins], bandwidths[bins], rate / 2**i)
        filters = (filters * np.sqrt(2.0**i)).astype(np.complex64)  # what decimation does to the level
        lines = slice(int(filters.indices.min()), int(filters.indices.max()) + 1)
        scale = np.sqrt(lengths[bins, np.newaxis])
        octaves.append(Octave(HOP >> (halvings + i), n_fft, lines, filters[:, lines], scale))
    return Bank(2**halvings, tuple(octaves))


def _filters(frequencies: Array, bandwidths: Array, rate: float) -> tuple[int, Any]:
    """Return the size of the FFT, and that of the filters, (12, 1 + n_fft / 2) complex64, 99 % of it, sparse."""
    alpha: Any = bandwidths  # librosa's own annotation knows of one number only
    wavelets, lengths = librosa.filters.wavelet(freqs=frequencies, sr=rate, alpha=alpha)
    n_fft = wavelets.shape[1]
    wavelets *= lengths[:, np.newaxis] / n_fft  # in place: it stays complex64, and so does its FFT
    lines = scipy.fft.fft(wavelets)[:, : n_fft // 2 + 1]
    return n_fft, librosa.util.sparsify_rows(lines, quantile=0.01, dtype=np.complex64)


def _relative_bandwidths(frequencies: Array) -> Array:
    """Return bandwidth over frequency by the distance to the neighbours, as librosa takes it: to the bit."""
    octaves = np.log2(frequencies)
    first, last = 1 / (octaves[1] - octaves[0]), 1 / (octaves[-1] - octaves[-2])
    density = np.concatenate([[first], 2 / (octaves[2:] - octaves[:-2]), [last]])  # per octave
    ratio: Array = 2 ** (2 / density)
    return (ratio - 1) / (ratio + 1)
