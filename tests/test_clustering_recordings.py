"""What a list may hold: no other encoding of what is there already, and of an artist no more than is asked for."""

from __future__ import annotations

from typing import Any

import clustering_library as library
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustering.recordings import RECORDING, choose, one_name, recording, same_recording
from core.records import Track


def described(*tracks: Track) -> np.ndarray:
    return np.array([recording(one.model_dump()) for one in tracks], dtype=RECORDING)


def track(duration: float, timbre: float, **changed: Any) -> Track:
    return library.track("t", {"mfcc": {"mean": [timbre] * 20}}, duration=duration, **changed)


@pytest.mark.parametrize(("seconds", "shift", "same"), [(1.0, 5.0, True), (1.01, 0.0, False), (0.0, 5.01, False)])
def test_encodings_of_a_recording_differ_by_a_second_and_an_rms_of_5_at_most(
    seconds: float, shift: float, same: bool
) -> None:
    """All 20 means moved by x have an rms difference of x."""
    both = described(track(100.0, 3.0), track(100.0 + seconds, 3.0 + shift))
    assert same_recording(both, np.array([0, 1, 0]), np.array([1, 0, 0])).tolist() == [same, same, True]


def test_what_has_no_timbre_is_no_copy_of_anything() -> None:
    nothing = library.track("t", {}, duration=9.0)
    assert not same_recording(described(nothing, nothing), np.array([0]), np.array([1])).any()


def test_a_name_that_stands_for_no_artist_or_for_many_is_none() -> None:
    names = ["The Band", " the  band", "Various", "", None, "Various Artists", "VA", "Unknown"]
    found = described(*(track(9.0, 0.0, artist=name) for name in names))["artist"]
    assert found[0] == found[1] != 0
    assert not found[2:].any()
    assert one_name(" The  BAND") == "the band"


def slowly(rows: np.ndarray, ranked: list[int], liked: list[int], n: int, copies: bool, per_artist: int) -> list[int]:
    """Return the places that are chosen of one list, one after the other."""
    chosen: list[int] = []
    for place, row in enumerate(ranked):
        there = [ranked[one] for one in chosen]
        twins = [one for one in (*liked, *there) if same_recording(rows, np.array([one]), np.array([row]))[0]]
        artist = rows["artist"][row]
        full = per_artist and artist and sum(rows["artist"][one] == artist for one in there) >= per_artist
        if row >= 0 and len(chosen) < n and not full and (copies or not twins):
            chosen.append(place)
    return chosen + [-1] * (n - len(chosen))


@given(st.data(), st.integers(1, 4), st.booleans(), st.integers(0, 2))
def test_what_is_chosen_is_what_one_would_choose_one_by_one(
    data: st.DataObject, n: int, copies: bool, per_artist: int
) -> None:
    size = data.draw(st.integers(3, 8))
    rows = np.zeros(size, dtype=RECORDING)
    rows["duration"] = data.draw(st.lists(st.sampled_from([0, 10, 20]), min_size=size, max_size=size))
    rows["timbre"] = np.array(data.draw(st.lists(st.sampled_from([0, 9]), min_size=size, max_size=size)))[:, None]
    rows["artist"] = data.draw(st.lists(st.integers(0, 2), min_size=size, max_size=size))
    orders = [data.draw(st.permutations(range(size))) for _ in range(3)]
    liked = np.array([order[:2] for order in orders])
    lists = np.array([[-1, *order[2:]] for order in orders])
    chosen = choose(rows, lists, liked, n, copies=copies, per_artist=per_artist)
    assert chosen.tolist() == [
        slowly(rows, lists[i].tolist(), liked[i].tolist(), n, copies, per_artist) for i in range(3)
    ]
