"""How long the features of a file take, against plain librosa: ``python benchmarks/extraction.py``.

Each row is one stereo MP3 on one thread: decode, mix, resample, describe, summarise. The times are medians of
interleaved runs, so that a busy machine slows all columns alike.

* ours: `features.compute`;
* plain: librosa called from ``y`` for every descriptor, as its documentation shows it, with numpy's and scipy's
  statistics; without `fluctuation`, which librosa does not have and `ours` includes;
* floor: decode, mix, resample and one STFT, nothing else.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import librosa
import numpy as np
import scipy.stats
import soundfile
from threadpoolctl import threadpool_limits

import features

SR = 22_050
TRACKS = {"30 s": (30, 9), "4 min": (240, 5)}
"""Name → seconds of audio, rounds."""


def main() -> None:
    """Measure and print."""
    warnings.simplefilter("ignore")  # what plain librosa imports is deprecated, and scipy doubts steady rows
    print(f"{'stereo MP3':>10}{'ours':>10}{'plain':>10}{'floor':>10}{'plain/ours':>12}{'ours/floor':>12}")
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(1):
        for name, (seconds, rounds) in TRACKS.items():
            path = synthesise(Path(folder) / f"{seconds}.mp3", seconds)
            ours, plain, floor = medians(path, rounds, features.compute, plain_librosa, decode_and_one_stft)
            times = "".join(f"{1000 * value:7.0f} ms" for value in (ours, plain, floor))
            print(f"{name:>10}{times}{plain / ours:10.2f} ×{ours / floor:10.2f} ×")


def synthesise(path: Path, seconds: int, sr: int = 44_100) -> Path:
    """Write a pulsing chord with noise."""
    t = np.arange(seconds * sr) / sr
    noise = np.random.default_rng(0).standard_normal((len(t), 2))
    chord = sum(np.sin(2 * np.pi * pitch * t) for pitch in (220.0, 277.2, 329.6, 440.0)) / 8
    soundfile.write(path, (chord * np.exp(-4 * np.mod(t, 0.5)))[:, np.newaxis] + 0.02 * noise, sr)
    return path


def medians(path: Path, rounds: int, *contestants: Callable[[Path], object]) -> list[float]:
    """Return the median seconds of each contestant, after one call of each that does not count."""
    times = [[clock(contestant, path) for contestant in contestants] for _ in range(rounds + 1)]
    return [statistics.median(column) for column in zip(*times[1:], strict=True)]


def clock(contestant: Callable[[Path], object], path: Path) -> float:
    """Return the seconds of one call."""
    start = time.perf_counter()
    contestant(path)
    return time.perf_counter() - start


def plain_librosa(path: Path) -> list[np.ndarray]:
    """Describe a file as librosa's documentation shows it."""
    y, sr = librosa.load(path, sr=SR)
    mfcc = librosa.feature.mfcc(y=y, sr=sr, n_mfcc=20)
    delta = np.diff(mfcc)
    mel = librosa.power_to_db(librosa.feature.melspectrogram(y=y, sr=sr))
    summarised = [np.abs(delta).mean(axis=1), delta.std(axis=1), mel.mean(axis=1), mel.std(axis=1)]
    for values in (
        mfcc,
        librosa.feature.chroma_stft(y=y, sr=sr),
        librosa.feature.spectral_contrast(y=y, sr=sr),
        librosa.feature.spectral_centroid(y=y, sr=sr),
        librosa.feature.spectral_bandwidth(y=y, sr=sr),
        librosa.feature.spectral_rolloff(y=y, sr=sr),
        librosa.feature.spectral_flatness(y=y),
        librosa.feature.zero_crossing_rate(y),
        librosa.feature.rms(y=y),
    ):
        summarised += [
            scipy.stats.kurtosis(values, axis=1),
            values.max(axis=1),
            values.mean(axis=1),
            np.median(values, axis=1),
            values.min(axis=1),
            scipy.stats.skew(values, axis=1),
            values.std(axis=1),
        ]
    return summarised


def decode_and_one_stft(path: Path) -> np.ndarray:
    """Do what nobody can do without."""
    samples, sr = soundfile.read(path, dtype="float32", always_2d=True)
    mono = (samples[:, 0] + samples[:, 1]) / 2
    return librosa.stft(librosa.resample(mono, orig_sr=sr, target_sr=SR))


if __name__ == "__main__":
    main()
