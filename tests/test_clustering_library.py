"""The tracks that are clustered, and what is known of them."""

from __future__ import annotations

import numpy as np

from clustering.library import count_distinct


def test_tracks_are_distinct_if_any_value_of_any_group_differs() -> None:
    nan = np.nan
    vectors = {"timbre": np.array([[1.0], [1], [1], [2]]), "rhythm": np.array([[1.0, 2], [1, 2], [nan, nan], [1, 2]])}
    assert count_distinct(vectors) == 3
