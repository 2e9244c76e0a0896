"""What is kept of a descriptor: statistics of each row over the frames, in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

SEVEN = ("kurtosis", "max", "mean", "median", "min", "skew", "std")
"""What is kept of most descriptors."""

Row = npt.NDArray[np.float64]


def summarize(values: npt.NDArray[np.floating[Any]], statistics: Sequence[str] = SEVEN) -> dict[str, Row]:
    """Summarise each row.

    Parameters
    ----------
    values : (n_rows, n_frames)
    statistics : sequence of str
        Names from `SEVEN`, or ``mean_abs``, the mean of the absolute value.

    Returns
    -------
    dict of str to (n_rows,)
        `std` has ddof 0, `kurtosis` is Fisher's: 0 for a normal distribution. Skew and kurtosis are 0 where scipy gives
        NaN, in a row that is constant but for rounding. Without frames everything is 0.
    """
    x = np.ascontiguousarray(values, dtype=np.float64)
    if x.shape[1] == 0:
        return {name: np.zeros(len(x)) for name in statistics}
    mean = x.mean(axis=1)
    centred = x - mean[:, np.newaxis]
    square = centred**2
    variance = square.mean(axis=1)
    constant = variance <= (np.finfo(np.float64).resolution * mean) ** 2  # scipy's criterion
    divisor = np.where(constant, 1.0, variance)
    known: dict[str, Callable[[], Row]] = {
        "kurtosis": lambda: np.where(constant, 0.0, (square**2).mean(axis=1) / divisor**2 - 3.0),
        "max": lambda: x.max(axis=1),
        "mean": lambda: mean,
        "mean_abs": lambda: np.abs(x).mean(axis=1),
        "median": lambda: np.median(x, axis=1),
        "min": lambda: x.min(axis=1),
        "skew": lambda: np.where(constant, 0.0, (square * centred).mean(axis=1) / divisor**1.5),
        "std": lambda: np.sqrt(variance),
    }
    return {name: known[name]() for name in statistics}
