"""How much of a file is analysed, and how much memory that takes."""

from __future__ import annotations

from core.config import Config

BYTES_PER_SAMPLE = 28
"""At the peak, of any profile: 4 for the sample itself, 8 for the spectrogram, the rest for descriptors and statistics.

Measured on 20 min at 22,050 Hz: 23 for `default`, 27 for `fma`, 28 for all profiles together; on 20 min at 44,100 Hz 20
for `default`. What a worker keeps for the next file is not in it.
"""


def analysed_seconds(duration: float | None, config: Config) -> float:
    """Return how much of a file is analysed, s; parameters as in `memory_needed`."""
    longest = config.audio.max_duration
    return longest if duration is None else min(duration, longest)


def memory_needed(duration: float | None, config: Config) -> int:
    """Return how many bytes the analysis of a file takes at most, beside what a process of ours always takes.

    It depends on the analysed part alone: a file is decoded, mixed and resampled in small blocks, whatever its own rate
    and channels.

    Parameters
    ----------
    duration : float, optional
        Of the file, s; None if it is not known.
    config : Config
        Its ``audio.sample_rate`` (Hz) and ``audio.max_duration`` (s).
    """
    return int(BYTES_PER_SAMPLE * config.audio.sample_rate * analysed_seconds(duration, config))
