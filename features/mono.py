"""Blocks of decoded audio → mono samples at the analysis rate: mixed, checked and resampled one after the other."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import soxr

from core.errors import AudioError

Samples = npt.NDArray[np.float32]

BLOCK = 1 << 17
"""Samples of all channels decoded at a time: they are mixed and resampled while they are in the cache."""
RESERVED = 1 << 26
"""Samples for which there is room from the start; more memory is taken as they come, because headers may be wrong."""
CLIPPED = 0.999
"""Absolute sample at and above which the signal counts as clipped; full scale is 1."""
LOUDEST = 1e12
"""The power of anything louder than this overflows float32."""


@dataclass(frozen=True, slots=True)
class Audio:
    """A decoded file."""

    samples: Samples
    """(n_samples,) the mean of the channels; full scale is 1."""
    duration: float
    """Of the whole file, s."""
    sample_rate: int
    """Native, Hz."""
    channels: int
    codec: str
    decoder: str
    """Decoding library and its version."""
    clipped: float
    """Share of the samples, before they were resampled, at and above `CLIPPED`."""
    damaged: bool
    """Whether there was less to decode than the file promises, or some of it could not be decoded."""
    excerpt: bool
    """Whether the samples are those of the middle of the file."""


def mix(block: Samples) -> Samples:
    """Return the mean of the channels, to the same bits as ``librosa.to_mono``.

    Parameters
    ----------
    block : (n_samples, n_channels) float32

    Returns
    -------
    (n_samples,) float32
    """
    n_channels = block.shape[1]
    if n_channels == 1:
        return block[:, 0]
    if n_channels >= 8:  # numpy adds them in pairs then
        mean: Samples = block.mean(axis=1)
        return mean
    mono = block[:, 0] + block[:, 1]  # many times faster than a mean over so short an axis
    for channel in range(2, n_channels):
        mono += block[:, channel]
    mono /= np.float32(n_channels)
    return mono


class Mono:
    """Mixes, checks and resamples block after block, and holds the result.

    Parameters
    ----------
    native : int
        Rate of the blocks, Hz.
    channels : int
    sample_rate : int, optional
        Of the result, Hz; default: native.
    skip : float
        Seconds to leave out at the start.
    most : float
        Seconds to take after that.
    """

    def __init__(self, native: int, channels: int, sample_rate: int | None, skip: float, most: float) -> None:
        self.native = native
        self.channels = channels
        self.n_taken = 0
        self._skip, self._most = round(skip * native), n_samples(most, native)
        self._ratio = sample_rate / native if sample_rate else 1.0
        self._resampler = None if self._ratio == 1 else soxr.ResampleStream(native, sample_rate, 1)
        self._samples = np.empty(min(RESERVED, math.ceil(self._most * self._ratio)), np.float32)
        self._n_samples = self._n_clipped = 0

    @property
    def seconds(self) -> float:
        """How much was taken."""
        return self.n_taken / self.native

    @property
    def full(self) -> bool:
        """Whether that is all that was asked for."""
        return self.n_taken >= self._most

    def take(self, block: Samples) -> None:
        """Add a block, (n_samples, n_channels) float32."""
        skipped = min(self._skip, len(block))
        self._skip -= skipped
        block = block[skipped : skipped + self._most - self.n_taken]
        if not len(block):
            return
        with np.errstate(over="ignore", invalid="ignore"):  # NaN and infinity are errors of ours
            mono = mix(block)
        if _peak(mono) >= CLIPPED:
            self._n_clipped += int(np.count_nonzero(np.abs(mono) >= CLIPPED))
        self.n_taken += len(mono)
        self._hold(self._resampler.resample_chunk(mono) if self._resampler else mono)

    def audio(self, codec: str, decoder: str, *, duration: float, damaged: bool, excerpt: bool) -> Audio:
        """Return what was taken; nothing can be added after that."""
        if not self.n_taken:
            raise AudioError("holds no samples", advice="copy or download it again")
        if self._resampler:
            self._hold(self._resampler.resample_chunk(np.empty(0, np.float32), last=True))
        n_samples = math.ceil(self.n_taken * self._ratio)
        self._hold(np.zeros(max(0, n_samples - self._n_samples), np.float32))
        return Audio(
            samples=self._samples[:n_samples],
            duration=duration,
            sample_rate=self.native,
            channels=self.channels,
            codec=codec,
            decoder=decoder,
            clipped=self._n_clipped / self.n_taken,
            damaged=damaged,
            excerpt=excerpt,
        )

    def _hold(self, samples: Samples) -> None:
        end = self._n_samples + len(samples)
        if end > len(self._samples):
            self._samples.resize(max(end, 2 * len(self._samples)), refcheck=False)
        self._samples[self._n_samples : end] = samples
        self._n_samples = end


def n_samples(seconds: float, sample_rate: int) -> int:
    """Return how many samples a time takes, at most 2⁶²."""
    return round(min(seconds * sample_rate, 2.0**62))


def _peak(mono: Samples) -> float:
    peak = float(max(mono.max(), -mono.min()))
    if not math.isfinite(peak):
        raise AudioError("holds samples that are NaN or infinite", advice="export it again from what made it")
    if peak > LOUDEST:
        raise AudioError(f"holds samples of up to {peak:.0e} where 1 is full scale", advice="normalise it")
    return peak
