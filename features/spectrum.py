"""One pass over the STFT of a track: what looks at each frame alone is measured while the frame is in the cache.

Equal to librosa 0.11, to the bit where a descriptor depends on it: a float64 FFT of float32 samples, rounded to
complex64; numpy's magnitude of that; running sums in float32 from the lowest line up.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import librosa
import numpy as np
import numpy.typing as npt
from numba import njit

Array = npt.NDArray[np.floating[Any]]
Indices = npt.NDArray[np.int64]

N_FFT = 2048
"""Samples in a frame."""
N_LINES = 1 + N_FFT // 2
"""Lines of the spectrum."""
HOP = 512
"""Samples between the starts of two frames."""
N_MELS = 128
"""Mel bands."""

BLOCK = 128
"""Frames measured at a time."""
TINY = float(np.finfo(np.float32).tiny)
"""Sums of magnitude below this are silence."""
IN_LANES = {"reassoc", "contract", "nnan", "ninf", "nsz"}
"""Lets the compiler sum in lanes: for sums whose order does not matter."""


@dataclass(frozen=True, slots=True)
class Spectrum:
    """What is measured in each frame of a track."""

    sample_rate: int
    """Hz."""
    power: Array
    """(n_frames, N_LINES) float32, a row for each frame."""
    mel: Array
    """(N_MELS, n_frames) float32: the power in each mel band."""
    extremes: Array
    """(2, 7, n_frames) float32: mean of the largest and of the smallest 2 % of the magnitude in each octave band."""
    centroid: Array
    """(1, n_frames) float64: mean frequency of the magnitude, Hz."""
    bandwidth: Array
    """(1, n_frames) float64: standard deviation of the frequency around it, Hz."""
    rolloff: Array
    """(1, n_frames) float64: frequency up to which 85 % of the magnitude lie, Hz."""
    flatness: Array
    """(1, n_frames) float64: geometric over arithmetic mean of the power, in [0, 1]."""
    rms: Array
    """(1, n_frames) float64: root mean square of the samples under the window."""
    loudest: Array
    """(n_frames,) float32: largest power of a line."""


def spectrum(y: Array, sample_rate: int, power: Array | None = None) -> Spectrum:
    """Measure a track in centred frames of `N_FFT` samples every `HOP`, with zeros beyond its ends.

    Parameters
    ----------
    y : (n_samples,) float32, at least one sample
    sample_rate : int
        Hz.
    power : (n_frames, `N_LINES`) float32, optional
        Memory to fill; default: new memory.

    Returns
    -------
    Spectrum
        Of n_frames = 1 + n_samples // HOP.
    """
    power = np.empty((1 + len(y) // HOP, N_LINES), np.float32) if power is None else power
    return measure(magnitudes(y), sample_rate, power)


def magnitudes(y: Array) -> Iterator[Array]:
    """Yield the magnitude of the STFT in blocks of frames, (up to `BLOCK`, `N_LINES`) float32, each gone with the next.

    Parameters
    ----------
    y : (n_samples,) float32
    """
    n_frames = 1 + len(y) // HOP
    window = librosa.filters.get_window("hann", N_FFT)
    samples = np.empty((BLOCK - 1) * HOP + N_FFT)
    overlapping = np.lib.stride_tricks.sliding_window_view(samples, N_FFT)[::HOP]
    windowed = np.empty((BLOCK, N_FFT))
    lines = np.empty((BLOCK, N_LINES), np.complex128)
    stft = np.empty((BLOCK, N_LINES), np.complex64)
    magnitude = np.empty((BLOCK, N_LINES), np.float32)
    for first in range(0, n_frames, BLOCK):
        n = min(BLOCK, n_frames - first)
        _copy(y, first * HOP - N_FFT // 2, samples)
        np.multiply(overlapping[:n], window, out=windowed[:n])
        stft[:n] = np.fft.rfft(windowed[:n], out=lines[:n])
        yield np.abs(stft[:n], out=magnitude[:n])


def measure(blocks: Iterable[Array], sample_rate: int, power: Array) -> Spectrum:
    """Measure every frame of a magnitude spectrogram.

    Parameters
    ----------
    blocks : iterable of (n, `N_LINES`) float32
        The frames, n_frames in all.
    sample_rate : int
        Hz.
    power : (n_frames, `N_LINES`) float32
        Filled with the squares.
    """
    n_frames = len(power)
    mel = np.empty((N_MELS, n_frames), np.float32)
    extremes = np.empty((2, len(_octaves(sample_rate)), n_frames), np.float32)
    lines = np.empty((5, n_frames))
    loudest = np.empty(n_frames, np.float32)
    frequency = frequencies(sample_rate)
    first = 0
    for magnitude in blocks:
        here = slice(first, first := first + len(magnitude))
        _measure(magnitude, frequency, power[here], lines[:, here], loudest[here])
        for bands, span, weights in _mel_groups(sample_rate):
            mel[bands, here] = weights @ power[here, span].T
        for band, (span, count) in enumerate(_octaves(sample_rate)):
            _ends(np.sort(magnitude[:, span], axis=1), count, extremes[:, band, here])
    centroid, bandwidth, rolloff, flatness, rms = lines[:, np.newaxis]
    return Spectrum(sample_rate, power, mel, extremes, centroid, bandwidth, rolloff, flatness, rms, loudest)


def frequencies(sample_rate: int) -> Array:
    """Return the frequency of each line, (`N_LINES`,) Hz."""
    found: Array = librosa.fft_frequencies(sr=sample_rate, n_fft=N_FFT)
    return found


def tuning(spectrogram: Array, loudest: Array, sample_rate: int) -> float:
    """Return the deviation from A4 = 440 Hz in semitones, in [−0.5, 0.5).

    The value of ``librosa.estimate_tuning(S=spectrogram)``: peaks from 150 to 4,000 Hz, at least a tenth of the
    loudest line of their frame, interpolated by a parabola; those above the median height.

    Parameters
    ----------
    spectrogram : (n_frames, n_lines) float32
        Magnitude or power; lines beyond the one after `tuning_lines` may be left out.
    loudest : (n_frames,) float32
        Largest value of each frame, over all lines.
    sample_rate : int
        Hz.
    """
    lines = tuning_lines(sample_rate)
    peaks = np.empty((2, len(spectrogram) * (lines.stop - lines.start + 1) // 2), np.float32)
    pitch, height = peaks[:, : _peaks(spectrogram, loudest, lines.start, lines.stop, sample_rate, peaks)]
    return float(librosa.pitch_tuning(pitch[height >= np.median(height)])) if len(pitch) else 0.0


def tuning_lines(sample_rate: int) -> slice:
    """Return the lines in which `tuning` looks for peaks: from 150 to 4,000 Hz."""
    low, high = np.searchsorted(frequencies(sample_rate), (150.0, 4000.0))
    return slice(int(low), int(high))


@njit(cache=True, error_model="numpy", fastmath=IN_LANES)
def _sums(magnitude: Array, frequency: Array, power: Array) -> tuple[float, float, float, np.float32, np.float32]:
    """Square a frame; return the sums of magnitude · frequency⁰, ¹, ², the sum of the power and the largest power."""
    zeroth, first, second = 0.0, 0.0, 0.0
    total, loudest = np.float32(0), np.float32(0)
    for line in range(len(magnitude)):
        square = magnitude[line] * magnitude[line]
        power[line] = square
        total += square
        loudest = max(loudest, square)
        moment = np.float64(magnitude[line])
        zeroth += moment
        moment *= frequency[line]
        first += moment
        second += moment * frequency[line]
    return zeroth, first, second, total, loudest


@njit(cache=True, error_model="numpy", fastmath=IN_LANES)
def _flatness(power: Array, products: Array) -> float:
    """Return the geometric over the arithmetic mean of a frame's power, each line at least 1e-10.

    Eight lines are multiplied before the exponent is split off, so that there is one logarithm for each frame.
    """
    bits = products.view(np.int64)
    n_lanes = len(products)
    products[:] = 1.0
    total = 0.0
    for start in range(0, 8 * n_lanes, n_lanes):
        for lane in range(n_lanes):
            value = max(np.float64(power[start + lane]), 1e-10)
            products[lane] *= value
            total += value
    last = max(np.float64(power[8 * n_lanes]), 1e-10)
    exponents = 0
    for lane in range(n_lanes):
        exponents += (bits[lane] >> 52) - 1023
        bits[lane] = (bits[lane] & 0x000FFFFFFFFFFFFF) | 0x3FF0000000000000
    mantissa = last
    for lane in range(n_lanes):
        mantissa *= products[lane]
    mean_log = (np.log(mantissa) + exponents * np.log(2.0)) / len(power)
    return float(np.exp(mean_log) / ((total + last) / len(power)))


@njit(cache=True, error_model="numpy")
def _rolloff(magnitude: Array, running: Array, found: Array) -> None:
    """Find the first line of each frame at which 85 % of its magnitude are reached; four frames side by side."""
    n_frames, n_lines = magnitude.shape
    for frame in range(0, n_frames, 4):
        members = (frame, min(frame + 1, n_frames - 1), min(frame + 2, n_frames - 1), min(frame + 3, n_frames - 1))
        a, b, c, d = magnitude[members[0]], magnitude[members[1]], magnitude[members[2]], magnitude[members[3]]
        sum_a = sum_b = sum_c = sum_d = np.float32(0)
        for line in range(n_lines):
            sum_a += a[line]
            sum_b += b[line]
            sum_c += c[line]
            sum_d += d[line]
            running[0, line], running[1, line], running[2, line], running[3, line] = sum_a, sum_b, sum_c, sum_d
        for i in range(4):
            found[members[i]] = np.searchsorted(running[i], np.float32(0.85) * running[i, -1])


@njit(cache=True, error_model="numpy")
def _measure(magnitude: Array, frequency: Array, power: Array, lines: Array, loudest: Array) -> None:
    """Square a block of frames, and measure what takes a whole frame."""
    n_frames, n_lines = magnitude.shape
    products = np.empty(n_lines // 8)
    centroid, bandwidth, rolloff, flatness, rms = lines
    _rolloff(magnitude, np.empty((4, n_lines), np.float32), rolloff)
    for frame in range(n_frames):
        zeroth, first, second, total, loudest[frame] = _sums(magnitude[frame], frequency, power[frame])
        divisor = zeroth if zeroth >= TINY else 1.0  # as librosa: what is silent stays 0
        centroid[frame] = first / divisor
        bandwidth[frame] = np.sqrt(max(second / divisor - centroid[frame] ** 2, 0.0))
        rolloff[frame] = frequency[int(rolloff[frame])]
        flatness[frame] = _flatness(power[frame], products)
        both_sides = 2 * total - power[frame, 0] - power[frame, -1]
        rms[frame] = np.sqrt(max(both_sides, 0.0)) / N_FFT


@njit(cache=True, error_model="numpy", fastmath=IN_LANES)
def _ends(ascending: Array, count: int, means: Array) -> None:
    """Average the largest and the smallest of each row."""
    for frame in range(len(ascending)):
        largest, smallest = np.float32(0), np.float32(0)
        for i in range(count):
            largest += ascending[frame, -1 - i]
            smallest += ascending[frame, i]
        means[0, frame], means[1, frame] = largest / count, smallest / count


@njit(cache=True, error_model="numpy")
def _peaks(spectrogram: Array, loudest: Array, low: int, high: int, sample_rate: float, peaks: Array) -> int:
    """Write pitch and height of the peaks of lines `low` to `high`; return how many. float32 where librosa has it."""
    count = 0
    half = np.float32(0.5)
    for frame in range(len(spectrogram)):
        least = np.float32(0.1) * loudest[frame]
        row = spectrogram[frame]
        before, here, after = row[low - 1 : high - 1], row[low:high], row[low + 1 : high + 1]
        for i in range(high - low):
            if here[i] > least and here[i] > before[i] and here[i] >= after[i]:
                rise = after[i] - before[i]
                slope = np.float64(rise) / 2
                curve = np.float64(after[i] + before[i]) - 2 * np.float64(here[i])
                shift = np.float32(0 if abs(slope) >= abs(curve) else -slope / curve)
                peaks[0, count] = (low + i + np.float64(shift)) * sample_rate / N_FFT
                peaks[1, count] = here[i] + half * (rise * half) * shift
                count += 1
    return count


def _copy(y: Array, start: int, samples: Array) -> None:
    """Copy what there is of ``y[start:]``; zeros beyond its ends."""
    first, last = max(start, 0), min(start + len(samples), len(y))
    samples[: first - start] = 0
    samples[first - start : last - start] = y[first:last]
    samples[last - start :] = 0


@lru_cache(maxsize=4)
def _mel_groups(sample_rate: int) -> list[tuple[slice, slice, Array]]:
    """Return the mel filters in groups of neighbours: bands, the lines they look at, weights (bands, lines)."""
    with warnings.catch_warnings():  # librosa's, that near 192 kHz some narrow bands hold no line
        warnings.simplefilter("ignore", UserWarning)
        basis = librosa.filters.mel(sr=sample_rate, n_fft=N_FFT, n_mels=N_MELS)
    groups = []
    for first in range(0, N_MELS, 16):
        bands = slice(first, first + 16)
        used = np.flatnonzero(basis[bands].any(axis=0))
        span = slice(int(used[0]), int(used[-1]) + 1)
        groups.append((bands, span, np.ascontiguousarray(basis[bands, span])))
    return groups


@lru_cache(maxsize=4)
def _octaves(sample_rate: int) -> list[tuple[slice, int]]:
    """Return the lines of each octave band of the spectral contrast, and how many of them are 2 %.

    As ``librosa.feature.spectral_contrast``: from 0 and from 200 Hz · 2ⁿ, each one line early; all but the last also
    end one line early; the last goes up to the top.
    """
    edges = [0.0, *(200.0 * 2.0**octave for octave in range(7))]
    frequency = frequencies(sample_rate)
    octaves = []
    for low, high in pairwise(edges):
        first = max(int(np.searchsorted(frequency, low)) - 1, 0)
        end = int(np.searchsorted(frequency, high, side="right"))
        is_last = high == edges[-1]
        lines = slice(first, N_LINES if is_last else end - 1)
        n_lines = (N_LINES if is_last else end) - first
        octaves.append((lines, max(int(np.rint(0.02 * n_lines)), 1)))
    return octaves
