"""The clustering space: named columns, and a fit whose every step follows from its definition."""

from __future__ import annotations

from functools import partial

import clustering_library as library
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from clustering import space
from clustering.space import Declared, declare, fit_group, moments_by_block
from core.config import Groups
from core.errors import RecordError
from core.records import Group

PAIR = Declared("pair", ["mfcc.mean[0]", "mfcc.mean[1]"], weight=1.0)
NO_RHYTHM = ["no_rhythm"]


def fit(X: np.ndarray, declared: Declared = PAIR) -> Group:
    return fit_group(declared, partial(moments_by_block, X.astype(np.float32)))


def narrow(width: int, **changed: object) -> Declared:
    return Declared("narrow", [f"mfcc.mean[{i}]" for i in range(width)], weight=1.0)._replace(**changed)


def test_timbre_has_236_columns_and_rhythm_256() -> None:
    timbre, rhythm = (declared.columns for declared in library.GROUPS)
    assert (len(set(timbre)), len(set(rhythm))) == (236, 256)
    assert {"mfcc.kurtosis[0]", "mfcc.std[19]", "mfcc_delta.mean_abs[19]", "spectral_centroid.skew[0]"} < set(timbre)
    assert rhythm[255] == "fluctuation.median[255]"


def test_a_group_of_weight_0_is_left_out() -> None:
    found = declare(Groups.model_validate({"rhythm": {"weight": 0}}))
    assert [one.name for one in found] == ["timbre"]


def test_the_settings_of_a_group_are_those_of_its_fit() -> None:
    timbre = {"blocks": ["chroma_stft", "rms"], "clip": 1, "components": 3, "weight": 2}
    (declared, _) = declare(Groups.model_validate({"timbre": timbre}))
    assert declared.columns[:2] == ["chroma_stft.kurtosis[0]", "chroma_stft.kurtosis[1]"]
    assert len(declared.columns) == 7 * 13
    X = np.random.default_rng(0).normal(size=(1000, 91)).astype(np.float32)
    fitted = fit(X, declared)
    assert (fitted.columns, fitted.clip, len(fitted.components)) == (declared.columns, 1.0, 3)
    np.testing.assert_allclose(space.coordinates(fitted, X).var(axis=0).sum(), 4.0)
    far = np.sign(X)
    np.testing.assert_array_equal(space.coordinates(fitted, far * 10), space.coordinates(fitted, far * 20))


def test_a_vector_holds_the_values_that_its_columns_name() -> None:
    named = library.tracks(1)[0].features
    slots = space.layouts(library.GROUPS)["timbre"]
    row = space.vector({"track_id": "t", "features": named, "flags": []}, slots)
    for name, value in zip(library.GROUPS[0].columns, row, strict=True):
        block, _, rest = name.partition(".")
        statistic, _, i = rest.rstrip("]").partition("[")
        assert value == np.float32(named[block][statistic][int(i)])


def test_a_vector_that_lacks_values_names_the_track_and_the_statistic() -> None:
    named = library.tracks(1)[0].features
    named["mfcc"]["skew"] = [0.0] * 13
    with pytest.raises(RecordError, match=r"track t7: mfcc.skew has 13 values instead of 20"):
        space.vector({"track_id": "t7", "features": named, "flags": []}, space.layouts(library.GROUPS)["timbre"])


def test_a_track_without_rhythm_keeps_its_timbre() -> None:
    track = {"track_id": "t", "features": library.tracks(1)[0].features, "flags": NO_RHYTHM}
    timbre, rhythm = (space.vector(track, slots) for slots in space.layouts(library.GROUPS).values())
    assert np.isnan(rhythm).all()
    assert rhythm.shape == (256,)
    assert np.isfinite(timbre).all()


def test_one_direction_of_variance_gives_one_component_of_unit_variance() -> None:
    """Columns x and −10x: both standardise to the same ±z, so that the first axis is (1, −1)/√2."""
    x = np.array([-1.0, 0.0, 1.0])
    group = fit(np.column_stack([x, -10 * x]))
    assert group.mean == [0.0, 0.0]
    np.testing.assert_allclose(group.std, np.sqrt([2 / 3, 200 / 3]))
    np.testing.assert_allclose(group.components, [[np.sqrt(0.5), -np.sqrt(0.5)]])
    np.testing.assert_allclose(group.scale, np.sqrt(2))
    Z = space.coordinates(group, np.column_stack([x, -10 * x]).astype(np.float32))
    np.testing.assert_allclose(Z[:, 0], x * np.sqrt(1.5), atol=1e-12)


def test_values_are_clipped_at_two_standard_deviations() -> None:
    """Of n = 101 rows one is 1 and the others 0: the one is 10 standard deviations away, and counts as 2."""
    X = np.zeros((101, 1))
    X[0] = 1.0
    Z = space.coordinates(fit(X, narrow(1)), X.astype(np.float32))
    low = -np.sqrt(1 / 100)
    np.testing.assert_allclose((Z[0] - Z[1]) / Z.std(), (2 - low) / (np.array([2] + 100 * [low]).std()))


def test_the_largest_loading_of_each_component_is_positive() -> None:
    X = np.random.default_rng(0).normal(size=(50, 8))
    components = np.array(fit(X, narrow(8)).components)
    assert (components[np.arange(8), np.abs(components).argmax(axis=1)] > 0).all()


@pytest.mark.parametrize(("n", "width", "components"), [(50, 8, 8), (50, 40, 30), (5, 40, 4), (2, 3, 1)])
def test_the_components_are_at_most_30_the_columns_and_the_rows_less_one(n: int, width: int, components: int) -> None:
    group = fit(np.random.default_rng(0).normal(size=(n, width)), narrow(width))
    assert np.array(group.components).shape == (components, width)


def test_each_group_has_unit_total_variance_times_its_weight() -> None:
    vectors, _ = library.vectors(200)
    fitted = fit_all(vectors)
    timbre, rhythm = (space.coordinates(group, vectors[group.name]) for group in fitted)
    np.testing.assert_allclose([timbre.var(axis=0).sum(), rhythm.var(axis=0).sum()], [1.0, 0.25])
    np.testing.assert_allclose(space.transform(fitted, vectors), np.hstack([timbre, rhythm]))


def test_a_constant_column_is_0_for_every_track() -> None:
    X = np.random.default_rng(0).normal(size=(20, 2))
    X[:, 1] = 1e4
    group = fit(X)
    assert group.std[1] == 0.0
    shifted = np.add(X, [0.0, 5.0])
    np.testing.assert_array_equal(*(space.coordinates(group, rows.astype(np.float32)) for rows in (X, shifted)))


def test_noise_below_the_limit_is_a_constant_column() -> None:
    """1e4 ± 5e-5 has a std below 1e-8·|mean|; the same noise around 0 does not."""
    noise = np.where(np.arange(20) % 2, 5e-5, -5e-5)
    stds = [fit_group(narrow(1), lambda f, c=c: space.moments(f(noise[:, None] + c))).std[0] for c in (1e4, 0.0)]
    assert stds[0] == 0.0
    assert stds[1] == pytest.approx(5e-5)


@pytest.mark.parametrize("n", [1, 5])
def test_equal_tracks_leave_no_dimension(n: int) -> None:
    vectors = {name: np.repeat(rows, n, axis=0) for name, rows in library.vectors(1)[0].items()}
    assert space.transform(fit_all(vectors), vectors).shape == (n, 0)


def test_tracks_without_rhythm_stay_out_of_its_fit_and_are_0_there() -> None:
    vectors, _ = library.vectors(40)
    beating = fit_all({name: rows[10:] for name, rows in vectors.items()})[1]
    vectors["rhythm"][:10] = np.nan
    fitted = fit_all(vectors)
    assert_close(fitted[1], beating)
    X = space.transform(fitted, vectors)
    rhythm = X[:, len(fitted[0].components) :]
    np.testing.assert_array_equal(rhythm[:10], 0.0)
    assert np.abs(rhythm[10:]).min(axis=1).max() > 0
    assert np.isfinite(X).all()


def test_a_library_without_any_rhythm_is_its_timbre() -> None:
    vectors, _ = library.vectors(12)
    vectors["rhythm"][:] = np.nan
    fitted = fit_all(vectors)
    assert fitted[1].components == []
    assert space.transform(fitted, vectors).shape == (12, 11)
    assert np.isfinite(space.transform(fitted, library.vectors(12)[0])).all()


def test_moments_of_parts_merge_into_those_of_the_whole() -> None:
    X = 1e6 + np.random.default_rng(0).normal(size=(100, 3))
    whole = space.moments(X)
    parts = space.merged(space.moments(part) for part in (X[:0], X[:7], X[7:7], X[7:60], X[60:]))
    assert parts.n == whole.n == 100
    np.testing.assert_allclose(parts.mean, whole.mean, rtol=1e-15)
    np.testing.assert_allclose(parts.scatter, whole.scatter, rtol=1e-9, atol=1e-6)


def test_the_standard_deviation_survives_a_large_mean() -> None:
    X = np.array([[1e8], [1e8 + 8], [1e8 + 16]])
    np.testing.assert_allclose(fit(X, narrow(1)).std, [np.sqrt(128 / 3)], rtol=1e-12)


@settings(max_examples=50)
@given(arrays(np.float32, st.tuples(st.integers(1, 12), st.just(3)), elements=st.floats(-1e6, 1e6, width=32)))
def test_any_finite_rows_have_finite_coordinates_of_no_more_than_unit_variance(X: np.ndarray) -> None:
    Z = space.coordinates(fit(X, narrow(3)), X)
    assert np.isfinite(Z).all()
    assert Z.var(axis=0).sum() == pytest.approx(1.0 if Z.shape[1] else 0.0, rel=1e-6)


def test_a_space_is_the_same_after_json() -> None:
    vectors, _ = library.vectors(30)
    fitted = fit_all(vectors)
    again = [Group.from_json(group.to_json()) for group in fitted]
    np.testing.assert_array_equal(space.transform(again, vectors), space.transform(fitted, vectors))


def fit_all(vectors: space.Vectors) -> list[Group]:
    return [fit_group(declared, partial(moments_by_block, vectors[declared.name])) for declared in library.GROUPS]


def assert_close(one: Group, other: Group) -> None:
    for field in ("mean", "std", "pca_mean", "components", "scale"):
        np.testing.assert_allclose(getattr(one, field), getattr(other, field), rtol=1e-9, atol=1e-9)
