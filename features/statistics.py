"""What is kept of a descriptor: statistics of each row over the frames, in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from core.blocks import SEVEN
from features.spectrum import IN_LANES

Row = npt.NDArray[np.float64]


def summarize(values: npt.NDArray[np.floating[Any]], statistics: Sequence[str] = SEVEN) -> dict[str, Row]:
    """Summarise each row.

    Parameters
    ----------
    values : (n_rows, n_frames)
    statistics : sequence of str
        Names from `core.blocks.SEVEN`, or ``mean_abs``, the mean of the absolute value.

    Returns
    -------
    dict of str to (n_rows,)
        `std` has ddof 0, `kurtosis` is Fisher's: 0 for a normal distribution. Skew and kurtosis are 0 where scipy gives
        NaN, in a row that is constant but for rounding. Without frames everything is 0.
    """
    x = np.ascontiguousarray(values, dtype=np.float64)
    if x.shape[1] == 0:
        return {name: np.zeros(len(x)) for name in statistics}
    mean, mean_abs, variance, third, fourth = _moments(x)
    constant = variance <= (np.finfo(np.float64).resolution * mean) ** 2  # scipy's criterion
    divisor = np.where(constant, 1.0, variance)
    known: dict[str, Callable[[], Row]] = {
        "kurtosis": lambda: np.where(constant, 0.0, fourth / divisor**2 - 3.0),
        "max": lambda: x.max(axis=1),
        "mean": lambda: mean,
        "mean_abs": lambda: mean_abs,
        "median": lambda: np.median(x, axis=1),
        "min": lambda: x.min(axis=1),
        "skew": lambda: np.where(constant, 0.0, third / divisor**1.5),
        "std": lambda: np.sqrt(variance),
    }
    return {name: known[name]() for name in statistics}


@njit(cache=True, error_model="numpy", fastmath=IN_LANES)
def _moments(x: Row) -> Row:
    """Return mean, mean of the absolute value, and the second to fourth central moments of each row, (5, n_rows)."""
    n_rows, n_frames = x.shape
    found = np.zeros((5, n_rows))
    for row in range(n_rows):
        total, magnitude = 0.0, 0.0
        for frame in range(n_frames):
            value = x[row, frame]
            total += value
            magnitude += abs(value)
        mean = total / n_frames
        second, third, fourth = 0.0, 0.0, 0.0
        for frame in range(n_frames):
            deviation = x[row, frame] - mean
            square = deviation * deviation
            second += square
            third += square * deviation
            fourth += square * square
        found[0, row], found[1, row] = mean, magnitude / n_frames
        found[2, row], found[3, row], found[4, row] = second / n_frames, third / n_frames, fourth / n_frames
    return found
