"""What is measured in each frame: one STFT, and one table of descriptors over it.

Every descriptor equals librosa 0.11 called with its defaults on the same samples. To add one: a function of `Frames`,
a line in `DESCRIPTORS`, a test whose answer follows from the definition.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import librosa
import numpy as np
import numpy.typing as npt
import scipy.fft

from features.statistics import SEVEN

Array = npt.NDArray[np.floating[Any]]

N_FFT = 2048
"""Samples in a frame."""
HOP = 512
"""Samples between the starts of two frames."""
BLOCK = 256
"""Frames taken at a time where the intermediate values of a whole track would leave the cache."""

RHYTHM_FRAMES = 256
"""Frames in a window of `fluctuation`."""
RHYTHM_HOP = 128
"""Frames between the starts of two windows."""
RHYTHM_EDGES = np.geomspace(0.3, 10.0, 17)
"""Edges of the 16 modulation-frequency bins, Hz."""


@dataclass(frozen=True)
class Frames:
    """A track cut into frames, and what several descriptors share; each part is computed when first asked for."""

    y: Array
    """(n_samples,) float32."""
    sample_rate: int
    """Hz."""
    magnitude: Array
    """(1 + N_FFT / 2, n_frames) float32, of the STFT with a Hann window."""

    @cached_property
    def power(self) -> Array:
        """(1 + N_FFT / 2, n_frames): the squared magnitude."""
        return self.magnitude**2

    @cached_property
    def mel(self) -> Array:
        """(128, n_frames): the mel spectrogram, dB, at most 80 below its peak."""
        found: Array = librosa.power_to_db(_mel_basis(self.sample_rate) @ self.power)
        return found

    @cached_property
    def mfcc(self) -> Array:
        """(20, n_frames): the DCT of `mel`."""
        found: Array = librosa.feature.mfcc(S=self.mel, n_mfcc=20)
        return found

    @cached_property
    def moments(self) -> Array:
        """(3, n_frames) float64: the sums of the magnitude times frequency (Hz) to the powers 0, 1, 2."""
        powers = np.vander(frequencies(self.sample_rate), 3, increasing=True).T
        found = _by_block(lambda magnitude: powers @ magnitude, self.magnitude)
        found[0, found[0] < np.finfo(np.float32).tiny] = 1.0  # as librosa: what is silent stays 0
        return found


def frames(y: Array, sample_rate: int) -> Frames:
    """Take the STFT: centred frames of `N_FFT` samples every `HOP`, zeros beyond the ends.

    Parameters
    ----------
    y : (n_samples,) float32, at least one sample
    sample_rate : int
        Hz.

    Returns
    -------
    Frames
        Of 1 + n_samples // HOP frames.
    """
    # Padded here and not by librosa, which warns of signals shorter than a frame.
    stft = librosa.stft(np.pad(y, N_FFT // 2), n_fft=N_FFT, hop_length=HOP, center=False)
    return Frames(y, sample_rate, np.abs(stft))


def frequencies(sample_rate: int) -> Array:
    """Return the frequency of each line of the STFT, (1 + N_FFT / 2,) Hz."""
    found: Array = librosa.fft_frequencies(sr=sample_rate, n_fft=N_FFT)
    return found


def mfcc(frames: Frames) -> Array:
    """Return 20 mel-frequency cepstral coefficients, (20, n_frames)."""
    return frames.mfcc


def mfcc_delta(frames: Frames) -> Array:
    """Return the first difference of the MFCCs from frame to frame, (20, n_frames − 1)."""
    return np.diff(frames.mfcc, axis=1)


def chroma(frames: Frames) -> Array:
    """Return the energy of the 12 pitch classes from C, (12, n_frames), each frame divided by its maximum.

    As ``librosa.feature.chroma_stft`` with its own estimate of the tuning.
    """
    energy = _chroma_basis(frames.sample_rate, tuning(frames)) @ frames.power
    found: Array = librosa.util.normalize(energy, norm=np.inf, axis=0)
    return found


def tuning(frames: Frames) -> float:
    """Return the deviation from A4 = 440 Hz in semitones, in [−0.5, 0.5).

    The value of ``librosa.estimate_tuning(S=frames.power)``. It looks for peaks from 150 to 4,000 Hz that are at least
    a tenth of their frame's maximum; the lines above are left out. Taking a power of two of them and scaling the rate
    alike keeps every bit, as librosa infers the size of the FFT from the number of lines.
    """
    n_fft = 2 ** math.ceil(math.log2(2 * 4000 * N_FFT / frames.sample_rate))

    def peaks(power: Array) -> Array:
        loud = 0.1 * power.max(axis=0, keepdims=True)
        rate = frames.sample_rate * n_fft / N_FFT
        pitch, height = librosa.piptrack(S=power[: n_fft // 2 + 1], sr=rate, n_fft=n_fft, ref=loud)
        return np.stack([pitch[pitch > 0], height[pitch > 0]])

    pitch, height = _by_block(peaks, frames.power)
    return float(librosa.pitch_tuning(pitch[height >= np.median(height)])) if len(pitch) else 0.0


def mel(frames: Frames) -> Array:
    """Return the mel spectrogram that the MFCCs use, (128, n_frames) dB, at most 80 below its peak."""
    return frames.mel


def spectral_contrast(frames: Frames) -> Array:
    """Return the difference of peaks and valleys in 7 bands, (7, n_frames) dB (Jiang et al. 2002)."""
    found: Array = librosa.feature.spectral_contrast(S=frames.magnitude, sr=frames.sample_rate)
    return found


def spectral_centroid(frames: Frames) -> Array:
    """Return the mean frequency of the magnitude, (1, n_frames) Hz."""
    return frames.moments[1:2] / frames.moments[:1]


def spectral_bandwidth(frames: Frames) -> Array:
    """Return the standard deviation of frequency around the centroid, (1, n_frames) Hz."""
    mean_square = frames.moments[2:] / frames.moments[:1]
    return np.sqrt(np.maximum(mean_square - spectral_centroid(frames) ** 2, 0.0))


def spectral_rolloff(frames: Frames) -> Array:
    """Return the frequency below which 85 % of the magnitude lies, (1, n_frames) Hz.

    Summed in float32 from the lowest line up, and held against a float32 threshold, as librosa does: equal at ties too.
    """
    frequency = frequencies(frames.sample_rate)

    def rolloff(magnitude: Array) -> Array:
        total = np.cumsum(magnitude, axis=0)
        found: Array = frequency[np.argmax(total >= 0.85 * total[-1:], axis=0, keepdims=True)]
        return found

    return _by_block(rolloff, frames.magnitude)


def spectral_flatness(frames: Frames) -> Array:
    """Return the ratio of geometric and arithmetic mean of the power, (1, n_frames) in [0, 1]."""
    return _by_block(lambda power: librosa.feature.spectral_flatness(S=power, power=1.0), frames.power)


def zcr(frames: Frames) -> Array:
    """Return the share of zero crossings among a frame's samples, (1, n_frames).

    The track is extended by its first and last sample, and what is within 1e-10 of zero counts as positive. Counted
    once for each hop, then summed over the hops of each frame.
    """
    half = N_FFT // 2
    negative = np.pad(frames.y < -1e-10, half, mode="edge")
    crossing = np.diff(negative, append=negative[-1:])  # [i]: between samples i and i + 1
    n_frames = 1 + len(frames.y) // HOP
    n_hops = n_frames - 1 + N_FFT // HOP
    hops = np.add.reduceat(crossing[: n_hops * HOP], np.arange(n_hops) * HOP, dtype=np.int64)
    counted = np.convolve(hops, np.ones(N_FFT // HOP, np.int64), mode="valid")
    beyond = crossing[N_FFT - 1 :: HOP][:n_frames]  # the crossing into the next frame
    return ((counted - beyond) / N_FFT)[np.newaxis]


def rms(frames: Frames) -> Array:
    """Return the root mean square of the samples under the window, (1, n_frames), from the STFT's magnitude."""
    power = frames.power
    both_sides = 2 * power.sum(axis=0, keepdims=True) - power[:1] - power[-1:]
    found: Array = np.sqrt(both_sides) / N_FFT
    return found


def fluctuation(frames: Frames) -> Array:
    """Return how strongly 16 mel bands fluctuate at 16 modulation frequencies, (256, n_windows), band-major.

    Every 8th of the 128 dB mel bands, in windows of `RHYTHM_FRAMES` frames: the magnitude spectrum of each band over
    time, without its mean, averaged in the bins between `RHYTHM_EDGES` and compressed by log(1 + x). No window: no
    column. After Pampalk, "Islands of Music" (2001), and Seyerlehner, Schedl, Pohle and Knees (2010).
    """
    bands = frames.mel[::8].astype(np.float64)
    if bands.shape[1] < RHYTHM_FRAMES:
        return np.empty((16 * 16, 0))
    windows = np.lib.stride_tricks.sliding_window_view(bands, RHYTHM_FRAMES, axis=1)[:, ::RHYTHM_HOP]
    lines = np.abs(scipy.fft.rfft(windows))[..., 1:]
    levels: Array = np.log1p(lines @ _rhythm_bins(frames.sample_rate))
    return levels.swapaxes(1, 2).reshape(16 * 16, -1)


class Descriptor(NamedTuple):
    """A line of the table."""

    function: Callable[[Frames], Array]
    """Frames → (n_rows, n_frames)."""
    statistics: tuple[str, ...] = SEVEN
    """What is kept of each row."""


DESCRIPTORS: dict[str, Descriptor] = {
    "mfcc": Descriptor(mfcc),
    "mfcc_delta": Descriptor(mfcc_delta, ("mean_abs", "std")),
    "chroma": Descriptor(chroma),
    "mel": Descriptor(mel, ("mean", "std")),
    "spectral_contrast": Descriptor(spectral_contrast),
    "spectral_centroid": Descriptor(spectral_centroid),
    "spectral_bandwidth": Descriptor(spectral_bandwidth),
    "spectral_rolloff": Descriptor(spectral_rolloff),
    "spectral_flatness": Descriptor(spectral_flatness),
    "zcr": Descriptor(zcr),
    "rms": Descriptor(rms),
    "fluctuation": Descriptor(fluctuation, ("median",)),
}


def _by_block(measure: Callable[[Array], Array], spectrogram: Array) -> Array:
    """Apply to `BLOCK` frames at a time what looks at each frame alone."""
    starts = range(0, spectrogram.shape[1], BLOCK)
    return np.concatenate([measure(spectrogram[:, start : start + BLOCK]) for start in starts], axis=1)


@lru_cache(maxsize=4)
def _mel_basis(sample_rate: int) -> Array:
    with warnings.catch_warnings():  # librosa's, that near 192 kHz some narrow bands hold no line
        warnings.simplefilter("ignore", UserWarning)
        found: Array = librosa.filters.mel(sr=sample_rate, n_fft=N_FFT)
    return found


@lru_cache(maxsize=128)
def _chroma_basis(sample_rate: int, tuning: float) -> Array:
    found: Array = librosa.filters.chroma(sr=sample_rate, n_fft=N_FFT, tuning=tuning)
    return found


@lru_cache(maxsize=4)
def _rhythm_bins(sample_rate: int) -> Array:
    """Return what averages lines into bins, (RHYTHM_FRAMES / 2, 16); an empty bin takes the line nearest its middle."""
    lines = np.arange(1, RHYTHM_FRAMES // 2 + 1) * sample_rate / HOP / RHYTHM_FRAMES
    low, high = RHYTHM_EDGES[:-1], RHYTHM_EDGES[1:]
    inside = (lines[:, np.newaxis] >= low) & (lines[:, np.newaxis] < high)
    nearest = np.abs(lines[:, np.newaxis] - np.sqrt(low * high)).argmin(axis=0)
    empty = ~inside.any(axis=0)
    inside[nearest[empty], empty] = True
    weights: Array = inside / inside.sum(axis=0)
    return weights
