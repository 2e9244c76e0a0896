"""Statistics: equality with scipy, and defined values where scipy has none."""

from __future__ import annotations

import hypothesis
import numpy as np
import pytest
import scipy.stats
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from core.blocks import SEVEN
from features.statistics import summarize

PLAIN = {
    "kurtosis": lambda x: scipy.stats.kurtosis(x, axis=1),
    "max": lambda x: x.max(axis=1),
    "mean": lambda x: x.mean(axis=1),
    "mean_abs": lambda x: np.mean(np.abs(x), axis=1),
    "median": lambda x: np.median(x, axis=1),
    "min": lambda x: x.min(axis=1),
    "skew": lambda x: scipy.stats.skew(x, axis=1),
    "std": lambda x: x.std(axis=1),
}


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("n_frames", [2, 3, 100, 1001])
def test_a_statistic_equals_scipy_and_numpy_in_float64(name, n_frames):
    x = np.random.default_rng(5).gamma(2.0, size=(6, n_frames)).astype(np.float32) - 1
    assert summarize(x, (name,))[name] == pytest.approx(PLAIN[name](x.astype(np.float64)), rel=1e-9, abs=1e-12)


def test_float32_values_far_from_zero_lose_nothing():
    x = (1e4 + np.random.default_rng(5).standard_normal((1, 5000))).astype(np.float32)
    found = summarize(x)
    assert found["std"] == pytest.approx(x.astype(np.float64).std(axis=1), rel=1e-12)
    assert found["kurtosis"] == pytest.approx(scipy.stats.kurtosis(x.astype(np.float64), axis=1), rel=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, -100.0, 1e12])
def test_skew_and_kurtosis_of_a_constant_row_are_0(value):
    found = summarize(np.full((1, 333), value))
    assert {name: found[name].item() for name in ("skew", "kurtosis")} == {"skew": 0.0, "kurtosis": 0.0}
    assert [found[name].item() for name in ("mean", "median", "max", "min")] == pytest.approx([value] * 4)
    assert found["std"] == pytest.approx(0.0, abs=1e-12 * abs(value))


def test_a_constant_row_beside_others_changes_only_its_own_values():
    x = np.vstack([np.full(50, 3.0), np.arange(50.0)])
    assert summarize(x)["kurtosis"] == pytest.approx([0.0, scipy.stats.kurtosis(np.arange(50.0))])


def test_a_single_frame_is_its_own_mean_and_does_not_vary():
    found = summarize(np.array([[2.5], [-1.0]]))
    assert [found[name].tolist() for name in ("mean", "median", "max", "min")] == [[2.5, -1.0]] * 4
    assert [found[name].tolist() for name in ("std", "skew", "kurtosis")] == [[0.0, 0.0]] * 3


def test_every_statistic_of_no_frames_is_0():
    assert {name: row.tolist() for name, row in summarize(np.empty((2, 0))).items()} == {
        name: [0.0, 0.0] for name in SEVEN
    }


def test_the_statistics_come_in_the_order_asked_for():
    assert tuple(summarize(np.ones((1, 3)), ("std", "mean"))) == ("std", "mean")


@hypothesis.given(arrays.arrays(np.float32, (2, 9), elements=st.floats(-(2.0**40), 2.0**40, width=32)))
@hypothesis.settings(deadline=None)
def test_statistics_of_finite_values_are_finite_and_in_order(x):
    found = summarize(x)
    assert all(np.isfinite(row).all() for row in found.values())
    assert (found["min"] <= found["median"]).all()
    assert (found["median"] <= found["max"]).all()
