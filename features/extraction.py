"""A file's features: decode, mix, resample, describe, summarise."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from core.config import Config
from core.records import Features
from features.audio import Audio, Samples, decode, resample
from features.descriptors import DESCRIPTORS, HOP, N_FFT, RHYTHM_FRAMES, frames
from features.statistics import Row, summarize

SILENT = 1e-4
"""Largest absolute sample of a silent track; full scale is 1."""
CLIPPED = 0.999
"""Absolute sample at and above which the signal counts as clipped."""
CLIPPED_SHARE = 0.001
"""Share of clipped samples above which a track is flagged."""


@dataclass(frozen=True, slots=True)
class Computed:
    """What was computed from one file."""

    features: Features
    flags: list[str]
    duration: float
    """Of the decoded audio, s."""
    codec: str
    sample_rate: int
    """Native, Hz."""
    channels: int
    decoder: str
    """Decoding library and its version."""
    librosa: str
    """Version of librosa."""


def compute(path: Path, config: Config | None = None) -> Computed:
    """Compute the features of one file.

    Parameters
    ----------
    path : Path
        An audio file.
    config : Config, optional
        Its ``audio.sample_rate`` (Hz) is the analysis rate; default 22,050.

    Raises
    ------
    AudioError
        If the file cannot be read or decoded, as `features.audio.decode` says.
    """
    sample_rate = (config or Config()).audio.sample_rate
    audio = decode(path)
    y = resample(audio, sample_rate)
    return Computed(
        features=describe(y, sample_rate),
        flags=flags(audio, y),
        duration=audio.duration,
        codec=audio.codec,
        sample_rate=audio.sample_rate,
        channels=audio.channels,
        decoder=audio.decoder,
        librosa=version("librosa"),
    )


def describe(y: Samples, sample_rate: int) -> Features:
    """Summarise every descriptor of the table.

    Parameters
    ----------
    y : (n_samples,) float32
        At least one sample; full scale is 1.
    sample_rate : int
        Hz, 16,000 or more.

    Returns
    -------
    dict of block → statistic → values
        float32 in shortest decimal form; silence, a constant and a single frame have values too, never NaN.
    """
    track = frames(y, sample_rate)
    return {
        block: {name: _shortest(row) for name, row in summarize(function(track), statistics).items()}
        for block, (function, statistics) in DESCRIPTORS.items()
    }


def flags(audio: Audio, y: Samples) -> list[str]:
    """Say what a reader of the features should know.

    Parameters
    ----------
    audio : Audio
        As decoded: resampling rings, and hides clipping.
    y : (n_samples,) float32
        At the analysis rate.

    Returns
    -------
    list of str
        ``silent``, ``too_short`` (for one frame), ``clipped``, ``no_rhythm`` (too short for `fluctuation`, which is 0),
        ``damaged`` (cut short, or in parts not decodable: the features are those of the rest).
    """
    found = {
        "silent": np.abs(y).max() < SILENT,
        "too_short": len(y) < N_FFT,
        "clipped": np.mean(np.abs(audio.samples) >= CLIPPED) > CLIPPED_SHARE,
        "no_rhythm": 1 + len(y) // HOP < RHYTHM_FRAMES,
        "damaged": audio.damaged,
    }
    return [flag for flag, holds in found.items() if holds]


def warm_up(config: Config | None = None) -> None:
    """Import, compile and cache what the first file would otherwise wait for; once in each worker."""
    sample_rate = (config or Config()).audio.sample_rate
    clicks = np.zeros(HOP * RHYTHM_FRAMES, np.float32)
    clicks[:: sample_rate // 440] = 0.5
    describe(clicks, sample_rate)


def _shortest(row: Row) -> list[float]:
    return [float(str(value)) for value in row.astype(np.float32)]
