"""The blocks of features: their rows and statistics, and the profiles made of them."""

from __future__ import annotations

from typing import Literal, NamedTuple

Profile = Literal["default", "fma", "tempo"]

SEVEN = ("kurtosis", "max", "mean", "median", "min", "skew", "std")
"""What is kept of most descriptors."""


class Block(NamedTuple):
    """What is kept of a descriptor."""

    rows: int
    statistics: tuple[str, ...] = SEVEN
    """Over the frames, of each row."""


BLOCKS = {
    "mfcc": Block(20),
    "mfcc_delta": Block(20, ("mean_abs", "std")),
    "chroma_stft": Block(12),
    "mel": Block(128, ("mean", "std")),
    "spectral_contrast": Block(7),
    "spectral_centroid": Block(1),
    "spectral_bandwidth": Block(1),
    "spectral_rolloff": Block(1),
    "spectral_flatness": Block(1),
    "zcr": Block(1),
    "rms": Block(1),
    "fluctuation": Block(256, ("median",)),
    "chroma_cqt": Block(12),
    "chroma_cens": Block(12),
    "tonnetz": Block(6),
    "tempo": Block(1, ("mean",)),
    "onset_rate": Block(1, ("mean",)),
    "beat_strength": Block(1, ("mean",)),
}
"""Every block that can be extracted; the name means the same number in every profile."""

PROFILES: dict[Profile, tuple[str, ...]] = {
    "default": (
        "mfcc", "mfcc_delta", "chroma_stft", "mel", "spectral_contrast", "spectral_centroid", "spectral_bandwidth",
        "spectral_rolloff", "spectral_flatness", "zcr", "rms", "fluctuation",
    ),
    "fma": (
        "chroma_cens", "chroma_cqt", "chroma_stft", "mfcc", "rms", "spectral_bandwidth", "spectral_centroid",
        "spectral_contrast", "spectral_rolloff", "tonnetz", "zcr",
    ),
    "tempo": ("tempo", "onset_rate", "beat_strength"),
}  # fmt: skip
"""The blocks of each profile; those of `fma`, with seven statistics each, are the 518 values of the FMA dataset."""
