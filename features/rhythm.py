"""What moves from frame to frame: fluctuation of the mel bands, onsets, tempo and beats."""

from __future__ import annotations

from functools import lru_cache

import librosa
import numpy as np
import scipy.fft

from features.spectrum import HOP, Array

RHYTHM_FRAMES = 256
"""Frames in a window of `fluctuation`."""
RHYTHM_HOP = 128
"""Frames between the starts of two windows."""
RHYTHM_EDGES = np.geomspace(0.3, 10.0, 17)
"""Edges of the 16 modulation-frequency bins, Hz."""
TEMPO_SECONDS = 8.0
"""Length of the windows whose autocorrelation `tempo` takes, s: librosa's."""

_BLOCK = 100
"""Windows of `tempo` taken at a time: all of them would fill gigabytes, and powers of two collide in the cache."""


def fluctuation(mel: Array, sample_rate: int) -> Array:
    """Return how strongly 16 mel bands fluctuate at 16 modulation frequencies, (256, n_windows), band-major.

    Every 8th of the 128 dB mel bands, in windows of `RHYTHM_FRAMES` frames: the magnitude spectrum of each band over
    time, without its mean, averaged in the bins between `RHYTHM_EDGES` and compressed by log(1 + x). No window: no
    column. After Pampalk, "Islands of Music" (2001), and Seyerlehner, Schedl, Pohle and Knees (2010).

    Parameters
    ----------
    mel : (128, n_frames)
        dB.
    sample_rate : int
        Hz.
    """
    bands = mel[::8].astype(np.float64)
    if bands.shape[1] < RHYTHM_FRAMES:
        return np.empty((16 * 16, 0))
    windows = np.lib.stride_tricks.sliding_window_view(bands, RHYTHM_FRAMES, axis=1)[:, ::RHYTHM_HOP]
    lines = np.abs(scipy.fft.rfft(windows))[..., 1:]
    levels: Array = np.log1p(lines @ _rhythm_bins(sample_rate))
    return levels.swapaxes(1, 2).reshape(16 * 16, -1)


def onset_strength(mel: Array) -> Array:
    """Return the mean rise of the mel bands from frame to frame, (n_frames,) dB, at the frame where the sound sets in.

    ``librosa.onset.onset_strength``. The first three frames have none.

    Parameters
    ----------
    mel : (128, n_frames)
        dB.
    """
    if mel.shape[1] == 1:
        return np.zeros(1)
    found: Array = librosa.onset.onset_strength(S=mel, hop_length=HOP)
    return found


def tempo(strength: Array, sample_rate: int) -> Array:
    """Return the tempo, (1, 1) bpm; 0 where nothing sets in.

    ``librosa.feature.tempo``: the lag at which the onset strength resembles itself most in windows of `TEMPO_SECONDS`,
    averaged over the track and weighted by a log-normal prior around 120 bpm; lags are whole frames. After Ellis, "Beat
    tracking by dynamic programming" (2007).

    Parameters
    ----------
    strength : (n_frames,)
        As `onset_strength` returns it.
    sample_rate : int
        Hz.
    """
    if not strength.any():
        return np.zeros((1, 1))
    length = int(TEMPO_SECONDS * sample_rate / HOP)
    padded = np.pad(strength, length // 2, mode="linear_ramp")
    total = np.zeros((length, 1))
    for first in range(0, len(strength), _BLOCK):
        windows = padded[first : min(first + _BLOCK, len(strength)) + length - 1]
        gram = librosa.feature.tempogram(onset_envelope=windows, win_length=length, center=False)
        total += gram.sum(axis=1, keepdims=True)
    found: Array = librosa.feature.tempo(tg=total / len(strength), sr=sample_rate, hop_length=HOP)
    return found[np.newaxis]


def onset_rate(strength: Array, sample_rate: int) -> Array:
    """Return the number of onsets per second, (1, 1) Hz.

    Onsets as ``librosa.onset.onset_detect`` picks them from the onset strength, (n_frames,), over the duration of the
    frames.
    """
    onsets = librosa.onset.onset_detect(onset_envelope=strength, sr=sample_rate, hop_length=HOP)
    return np.full((1, 1), len(onsets) * sample_rate / HOP / len(strength))


def beat_strength(strength: Array, sample_rate: int, tempo: Array) -> Array:
    """Return the mean onset strength at the beats over that of all frames, (1, 1).

    Beats as ``librosa.beat.beat_track`` finds them at the given tempo. 1: no stronger than any frame; n: all that sets
    in sets in at the beats, which are n frames apart; 0: no beat.

    Parameters
    ----------
    strength : (n_frames,)
        As `onset_strength` returns it.
    sample_rate : int
        Hz.
    tempo : (1, 1)
        bpm, as `tempo` returns it.
    """
    if not tempo.any():
        return np.zeros((1, 1))
    _, beats = librosa.beat.beat_track(onset_envelope=strength, sr=sample_rate, hop_length=HOP, bpm=tempo.item())
    return np.full((1, 1), strength[beats].mean() / strength.mean() if len(beats) else 0.0)


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
