"""The feature matrix: FMA's columns, a row for each track, one feature set at a time."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import soundfile
from clustering_library import track

import features
from core.config import Config
from core.errors import ConfigError
from features.matrix import columns, values

FMA = {
    "chroma_cens": 12,
    "chroma_cqt": 12,
    "chroma_stft": 12,
    "mfcc": 20,
    "rms": 1,
    "spectral_bandwidth": 1,
    "spectral_centroid": 1,
    "spectral_contrast": 7,
    "spectral_rolloff": 1,
    "tonnetz": 6,
    "zcr": 1,
}
"""Block → rows, in the order of FMA's columns."""
STATISTICS = ("kurtosis", "max", "mean", "median", "min", "skew", "std")


def fma_features(seed=0):
    """Return features of FMA's blocks, their keys in an order of no meaning."""
    rng = np.random.default_rng(seed)
    return {
        str(block): {str(name): rng.random(FMA[block], np.float32).tolist() for name in rng.permutation(STATISTICS)}
        for block in rng.permutation(list(FMA))
    }


def test_the_columns_of_the_fma_profile_are_the_518_of_fma_in_its_order():
    expected = [
        (block, statistic, f"{i + 1:02d}") for block, n in FMA.items() for statistic in STATISTICS for i in range(n)
    ]
    assert len(expected) == 518
    found = columns(fma_features())
    assert found.to_list() == expected
    assert found.names == ["feature", "statistics", "number"]


def test_the_fma_profile_has_these_columns_and_no_others(tmp_path):
    soundfile.write(tmp_path / "a.wav", 0.1 * np.random.default_rng(0).standard_normal(22_050), 22_050)
    computed = features.compute(tmp_path / "a.wav", Config(features={"profiles": ["fma"]}))
    assert columns(computed.features).equals(columns(fma_features()))


def test_a_track_is_a_row_of_float32_under_its_id():
    tracks = [track("fma:2", fma_features(1)), track("fma:10", fma_features(2))]
    found = features.frame(iter(tracks))
    assert found.index.to_list() == ["fma:2", "fma:10"]
    assert found.index.name == "track_id"
    assert (found.dtypes == np.float32).all()
    for one in tracks:
        for block, statistics in one.features.items():
            for statistic, expected in statistics.items():
                assert found.loc[one.track_id, (block, statistic)].to_list() == expected


def test_the_columns_can_be_sliced_by_block_and_statistic():
    found = features.frame([track("a", fma_features())])
    assert found["mfcc"].shape == (1, 140)
    assert found.loc[:, pd.IndexSlice["mfcc":"rms", "mean"]].shape == (1, 21)


def test_the_numbers_of_a_block_of_more_than_99_have_three_digits_so_that_they_ascend():
    found = columns({"mel": {"mean": [0.5] * 128}, "rms": {"mean": [0.5]}})
    assert found.get_level_values("number").to_list() == [*(f"{i:03d}" for i in range(1, 129)), "01"]
    assert found.is_monotonic_increasing


def test_the_values_are_in_the_order_of_the_columns():
    found = {"b": {"mean": [4.0], "max": [2.0, 3.0]}, "a": {"std": [1.0]}}
    assert columns(found).to_list() == [("a", "std", "01"), ("b", "max", "01"), ("b", "max", "02"), ("b", "mean", "01")]
    assert values(found).tolist() == [1.0, 2.0, 3.0, 4.0]


def test_no_tracks_are_an_empty_matrix_with_named_axes():
    found = features.frame([])
    assert found.shape == (0, 0)
    assert found.index.name == "track_id"
    assert found.columns.names == ["feature", "statistics", "number"]


def test_tracks_of_two_feature_sets_are_refused_by_name():
    tracks = [track(f"t{i}", fma_features(), feature_set=name) for i, name in enumerate(["one", "one", "other"])]
    with pytest.raises(ConfigError, match=r"t0 has features of the set one, t2 of other"):
        features.frame(tracks)
