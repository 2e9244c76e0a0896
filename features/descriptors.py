"""What is measured of a track: the table of descriptors.

Every descriptor equals librosa 0.11 called with its defaults on the same samples. To add one: a function of `Frames`,
a line in `DESCRIPTORS`, its rows, statistics and profile in `core.blocks`, a test whose answer follows from the
definition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property, lru_cache

import librosa
import numpy as np
from numba import njit

from core.blocks import PROFILES, Profile
from features import cqt, rhythm
from features.spectrum import HOP, N_FFT, Array, Indices, Spectrum, spectrum, tuning, tuning_lines

NEGATIVE = np.float32(-1e-10)
"""The float32 next below −1e-10, librosa's threshold: what lies above counts as positive."""

Descriptor = Callable[["Frames"], Array]
"""Frames → (n_rows, n_frames)."""


class Frames:
    """A track cut into frames, and what several descriptors share; each part is computed when first asked for.

    Parameters
    ----------
    y : (n_samples,) float32
        At least one sample; full scale is 1.
    spectrum : Spectrum
        Of its 1 + n_samples // HOP frames.
    """

    def __init__(self, y: Array, spectrum: Spectrum) -> None:
        self.y = y
        self.sample_rate = spectrum.sample_rate
        self.spectrum = spectrum

    @cached_property
    def tuning(self) -> float:
        """Deviation from A4 = 440 Hz, in semitones, as the chroma of the STFT estimates it: from the power."""
        return tuning(self.spectrum.power, self.spectrum.loudest, self.sample_rate)

    @cached_property
    def cqt_tuning(self) -> float:
        """The same as the constant-Q transform estimates it: from the magnitude, which is the root to the bit."""
        looked_at = self.spectrum.power[:, : tuning_lines(self.sample_rate).stop + 1]
        return tuning(np.sqrt(looked_at), np.sqrt(self.spectrum.loudest), self.sample_rate)

    @cached_property
    def mel(self) -> Array:
        """(128, n_frames): the mel spectrogram, dB, at most 80 below its peak."""
        return decibel(self.spectrum.mel)

    @cached_property
    def mfcc(self) -> Array:
        """(20, n_frames): the DCT of `mel`."""
        found: Array = librosa.feature.mfcc(S=self.mel, n_mfcc=20)
        return found

    @cached_property
    def cqt(self) -> Array:
        """(84, n_frames) float32: the magnitude of the constant-Q transform."""
        return cqt.cqt(self.y, self.sample_rate, self.cqt_tuning)

    @cached_property
    def chroma_cens(self) -> Array:
        """(12, n_frames): the pitch classes of `cqt`, quantised and smoothed."""
        return cqt.chroma_cens(self.cqt)

    @cached_property
    def onset_strength(self) -> Array:
        """(n_frames,): the mean rise of `mel`, dB."""
        return rhythm.onset_strength(self.mel)

    @cached_property
    def tempo(self) -> Array:
        """(1, 1) bpm."""
        return rhythm.tempo(self.onset_strength, self.sample_rate)


def frames(y: Array, sample_rate: int, power: Array | None = None) -> Frames:
    """Cut a track into frames; parameters as in `features.spectrum.spectrum`."""
    return Frames(y, spectrum(y, sample_rate, power))


def decibel(power: Array) -> Array:
    """Return 10 · log₁₀ of a power, at least 1e-10, at most 80 dB below its peak: ``librosa.power_to_db``.

    In float64, and by the natural logarithm, which is the one that numpy takes in lanes.
    """
    level = np.log(np.maximum(power, 1e-10), dtype=np.float64)
    level *= 10 / np.log(10)
    found: Array = np.maximum(level, level.max() - 80, out=level)
    return found


def mfcc(frames: Frames) -> Array:
    """Return 20 mel-frequency cepstral coefficients, (20, n_frames)."""
    return frames.mfcc


def mfcc_delta(frames: Frames) -> Array:
    """Return the first difference of the MFCCs from frame to frame, (20, n_frames − 1)."""
    return np.diff(frames.mfcc, axis=1)


def chroma_stft(frames: Frames) -> Array:
    """Return the energy of the 12 pitch classes from C, (12, n_frames), each frame divided by its maximum.

    As ``librosa.feature.chroma_stft`` with its own estimate of the tuning.
    """
    energy = _chroma_basis(frames.sample_rate, frames.tuning) @ frames.spectrum.power.T
    found: Array = librosa.util.normalize(energy, norm=np.inf, axis=0)
    return found


def mel(frames: Frames) -> Array:
    """Return the mel spectrogram that the MFCCs use, (128, n_frames) dB, at most 80 below its peak."""
    return frames.mel


def spectral_contrast(frames: Frames) -> Array:
    """Return the difference of peaks and valleys in 7 bands, (7, n_frames) dB (Jiang et al. 2002)."""
    peaks, valleys = frames.spectrum.extremes
    return decibel(peaks) - decibel(valleys)


def spectral_centroid(frames: Frames) -> Array:
    """Return the mean frequency of the magnitude, (1, n_frames) Hz."""
    return frames.spectrum.centroid


def spectral_bandwidth(frames: Frames) -> Array:
    """Return the standard deviation of frequency around the centroid, (1, n_frames) Hz."""
    return frames.spectrum.bandwidth


def spectral_rolloff(frames: Frames) -> Array:
    """Return the frequency below which 85 % of the magnitude lies, (1, n_frames) Hz."""
    return frames.spectrum.rolloff


def spectral_flatness(frames: Frames) -> Array:
    """Return the ratio of geometric and arithmetic mean of the power, (1, n_frames) in [0, 1]."""
    return frames.spectrum.flatness


def zcr(frames: Frames) -> Array:
    """Return the share of zero crossings among a frame's samples, (1, n_frames).

    What lies above −1e-10 counts as positive; beyond its ends a track keeps its first and last value. Counted
    once for each hop, then summed over the hops of each frame, without the crossing into the next frame.
    """
    n_hops = len(frames.spectrum.power) + N_FFT // HOP - 1
    counts, last = _crossings(frames.y, n_hops)
    counted = np.convolve(counts, np.ones(N_FFT // HOP, np.int64), mode="valid")
    return ((counted - last[N_FFT // HOP - 1 :]) / N_FFT)[np.newaxis]


def rms(frames: Frames) -> Array:
    """Return the root mean square of the samples under the window, (1, n_frames), from the STFT's magnitude."""
    return frames.spectrum.rms


@njit(cache=True)
def _crossings(y: Array, n_hops: int) -> tuple[Indices, Indices]:
    """Count the sign changes in each hop of a track with half a frame before it, and those after its last sample."""
    counts = np.zeros(n_hops, np.int64)
    last = np.zeros(n_hops, np.int64)
    for hop in range(n_hops):
        start = hop * HOP - N_FFT // 2
        part = y[max(start, 0) : max(start + HOP + 1, 0)]
        count = 0
        for i in range(len(part) - 1):
            count += (part[i] <= NEGATIVE) != (part[i + 1] <= NEGATIVE)
        counts[hop] = count
        if start >= 0 and len(part) == HOP + 1:
            last[hop] = (part[-2] <= NEGATIVE) != (part[-1] <= NEGATIVE)
    return counts, last


DESCRIPTORS: dict[str, Descriptor] = {
    "mfcc": mfcc,
    "mfcc_delta": mfcc_delta,
    "chroma_stft": chroma_stft,
    "mel": mel,
    "spectral_contrast": spectral_contrast,
    "spectral_centroid": spectral_centroid,
    "spectral_bandwidth": spectral_bandwidth,
    "spectral_rolloff": spectral_rolloff,
    "spectral_flatness": spectral_flatness,
    "zcr": zcr,
    "rms": rms,
    "fluctuation": lambda frames: rhythm.fluctuation(frames.mel, frames.sample_rate),
    "chroma_cqt": lambda frames: cqt.chroma_cqt(frames.cqt),
    "chroma_cens": lambda frames: frames.chroma_cens,
    "tonnetz": lambda frames: cqt.tonnetz(frames.chroma_cens),
    "tempo": lambda frames: frames.tempo,
    "onset_rate": lambda frames: rhythm.onset_rate(frames.onset_strength, frames.sample_rate),
    "beat_strength": lambda frames: rhythm.beat_strength(frames.onset_strength, frames.sample_rate, frames.tempo),
}
"""How each block of `core.blocks.BLOCKS` is measured."""


def blocks(profiles: Iterable[Profile]) -> dict[str, Descriptor]:
    """Return the part of the table that some profiles need."""
    wanted = {block for profile in profiles for block in PROFILES[profile]}
    return {block: descriptor for block, descriptor in DESCRIPTORS.items() if block in wanted}


@lru_cache(maxsize=128)
def _chroma_basis(sample_rate: int, tuning: float) -> Array:
    found: Array = librosa.filters.chroma(sr=sample_rate, n_fft=N_FFT, tuning=tuning)
    return found
