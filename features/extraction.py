"""A file's features: decode, mix, resample, describe, summarise."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import orjson

from core.blocks import BLOCKS
from core.config import Config
from core.records import Features
from features.audio import decode
from features.descriptors import Descriptor, blocks, frames
from features.mono import Audio, Samples
from features.rhythm import RHYTHM_FRAMES
from features.spectrum import HOP, N_FFT, N_LINES
from features.statistics import Row, summarize

SILENT = 1e-4
"""Largest absolute sample of a silent track; full scale is 1."""
CLIPPED_SHARE = 0.001
"""Share of clipped samples above which a track is flagged."""

MOST_KEPT = 1 << 25
"""Values of the largest spectrogram whose memory is kept for the next track: 12 min at 22,050 Hz."""


@dataclass(frozen=True, slots=True)
class Computed:
    """What was computed from one file."""

    features: Features
    flags: list[str]
    duration: float
    """Of the whole file, s."""
    codec: str
    sample_rate: int
    """Native, Hz."""
    channels: int
    decoder: str
    """Decoding library and its version."""
    librosa: str
    """Version of librosa."""


def compute(path: str | os.PathLike[str], config: Config | None = None) -> Computed:
    """Compute the features of one file.

    Parameters
    ----------
    path : str or path-like
        An audio file.
    config : Config, optional
        Its ``audio.sample_rate`` (Hz) is the analysis rate, of a file longer than its ``audio.max_duration`` (s) the
        middle is analysed, its ``features.profiles`` say what is computed.

    Raises
    ------
    AudioError
        If the file cannot be read or decoded, as `features.audio.decode` says.
    """
    config = config or Config()
    audio = decode(Path(path), config.audio.sample_rate, max_duration=config.audio.max_duration)
    return Computed(
        features=describe(audio.samples, config.audio.sample_rate, blocks(config.features.profiles)),
        flags=flags(audio),
        duration=audio.duration,
        codec=audio.codec,
        sample_rate=audio.sample_rate,
        channels=audio.channels,
        decoder=audio.decoder,
        librosa=version("librosa"),
    )


def describe(y: Samples, sample_rate: int, table: Mapping[str, Descriptor]) -> Features:
    """Summarise the descriptors of a table.

    Parameters
    ----------
    y : (n_samples,) float32
        At the analysis rate; at least one sample; full scale is 1.
    sample_rate : int
        Hz, 16,000 or more.
    table : mapping of block → Descriptor
        `features.descriptors.blocks` has that of a profile.

    Returns
    -------
    dict of block → statistic → values
        float32 in shortest decimal form; silence, a constant and a single frame have values too, never NaN.
    """
    track = frames(y, sample_rate, _memory.spectrogram(1 + len(y) // HOP))
    return {
        block: {name: _shortest(row) for name, row in summarize(measure(track), BLOCKS[block].statistics).items()}
        for block, measure in table.items()
    }


def flags(audio: Audio) -> list[str]:
    """Say what a reader of the features should know.

    Parameters
    ----------
    audio : Audio
        With the samples at the analysis rate.

    Returns
    -------
    list of str
        ``silent``, ``too_short`` (for one frame), ``clipped``, ``no_rhythm`` (too short for `fluctuation`, which is 0),
        ``damaged`` (cut short, or in parts not decodable: the features are those of the rest), ``excerpt`` (too long:
        the features are those of the middle).
    """
    y = audio.samples
    found = {
        "silent": max(y.max(), -y.min()) < SILENT,
        "too_short": len(y) < N_FFT,
        "clipped": audio.clipped > CLIPPED_SHARE,
        "no_rhythm": 1 + len(y) // HOP < RHYTHM_FRAMES,
        "damaged": audio.damaged,
        "excerpt": audio.excerpt,
    }
    return [flag for flag, holds in found.items() if holds]


def warm_up(config: Config | None = None) -> None:
    """Import, compile and cache what the first file would otherwise wait for; once in each worker."""
    clicks = np.zeros(HOP * RHYTHM_FRAMES, np.float32)
    clicks[::50] = 0.5
    config = config or Config()
    describe(clicks, config.audio.sample_rate, blocks(config.features.profiles))


class _Memory(threading.local):
    """Serves one track of a thread after the other: to touch new memory may cost more than the FFT that fills it."""

    kept = np.empty(0, np.float32)

    def spectrogram(self, n_frames: int) -> Samples:
        """Return (n_frames, N_LINES) float32, gone with the next call; very long tracks get memory of their own."""
        size = n_frames * N_LINES
        if size > MOST_KEPT:
            return np.empty((n_frames, N_LINES), np.float32)
        if size > len(self.kept):
            self.kept = np.empty(size, np.float32)
        return self.kept[:size].reshape(n_frames, N_LINES)


_memory = _Memory()


def _shortest(row: Row) -> list[float]:
    """Return float32 in shortest decimal form."""
    found: list[float] = orjson.loads(orjson.dumps(row.astype(np.float32), option=orjson.OPT_SERIALIZE_NUMPY))
    return found
