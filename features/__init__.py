"""Audio file → feature vector: pure functions on arrays, equal to librosa.

`compute` is the way in; `features.descriptors.DESCRIPTORS` is the table of what it computes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from os import PathLike

    import pandas as pd

    from core.config import Config
    from core.records import Track
    from features.extraction import Computed

__all__ = ["compute", "frame", "warm_up"]


def compute(path: str | PathLike[str], config: Config | None = None) -> Computed:
    """Compute the features of one file; see `features.extraction.compute`."""
    from features import extraction

    return extraction.compute(path, config)


def frame(tracks: Iterable[Track]) -> pd.DataFrame:
    """Gather the features of tracks in one matrix; see `features.matrix.frame`."""
    from features import matrix

    return matrix.frame(tracks)


def warm_up(config: Config | None = None) -> None:
    """Pay for imports, compilation and filterbanks once; see `features.extraction.warm_up`."""
    from features import extraction

    extraction.warm_up(config)
