"""The constant-Q transform and what is taken of it: to the bit librosa's, in the manner of the FMA dataset."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile

from features.audio import decode
from features.cqt import chroma_cens, chroma_cqt, cqt, tonnetz

SR = 22_050
A4 = 45
"""Bin of A4 in a transform from C1."""


def sine(frequency, seconds=3.0, sr=SR):
    return (0.5 * np.sin(2 * np.pi * frequency / sr * np.arange(int(seconds * sr)))).astype(np.float32)


def noise(n_samples):
    return (0.1 * np.random.default_rng(5).standard_normal(n_samples)).astype(np.float32)


def plain(y, sr, tuning=None):
    """Return what FMA's script takes, by librosa's own calls."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # librosa's, of silence and of tracks shorter than a filter
        magnitude = np.abs(librosa.cqt(y, sr=sr, hop_length=512, n_bins=7 * 12, bins_per_octave=12, tuning=tuning))
    shape = {"n_chroma": 12, "n_octaves": 7, "bins_per_octave": 12}
    cens = librosa.feature.chroma_cens(C=magnitude, **shape)
    chroma = librosa.feature.chroma_cqt(C=magnitude, **shape)
    return {
        "cqt": magnitude,
        "chroma_cqt": chroma,
        "chroma_cens": cens,
        "tonnetz": librosa.feature.tonnetz(chroma=cens),
    }


def ours(y, sr, tuning=None):
    if tuning is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            tuning = librosa.estimate_tuning(y=y, sr=sr, bins_per_octave=12)
    magnitude = cqt(y, sr, tuning)
    cens = chroma_cens(magnitude)
    return {"cqt": magnitude, "chroma_cqt": chroma_cqt(magnitude), "chroma_cens": cens, "tonnetz": tonnetz(cens)}


def assert_equal(y, sr, tuning=None):
    expected, found = plain(y, sr, tuning), ours(y, sr, tuning)
    for name, values in expected.items():
        assert np.array_equal(found[name], values), f"{name}, {len(y)} samples at {sr} Hz, tuning {tuning}"


@pytest.mark.parametrize("sr", [16_000, 22_050, 32_000, 44_100, 48_000, 192_000])
def test_every_tuning_at_every_analysis_rate_gives_the_bits_of_librosa(sr):
    y = noise(sr // 2) + sine(447, 0.5, sr)
    for percent in range(-50, 50, 9):
        assert_equal(y, sr, percent / 100)


@pytest.mark.parametrize("n_samples", [2, 255, 511, 512, 513, 2047, 5000, 511 * 512, 512 * 512, 1024 * 512 + 7])
@pytest.mark.parametrize("sr", [22_050, 44_100])
def test_every_length_gives_the_bits_of_librosa(n_samples, sr):
    assert_equal(noise(n_samples), sr, 0.13)


def test_one_sample_gives_the_bits_of_librosa():
    assert_equal(np.full(1, 0.5, np.float32), SR, 0.13)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("sr", [8_000, 22_050, 44_100, 48_000])
def test_files_of_every_rate_give_the_bits_of_librosa(tmp_path, sr, channels):
    clicks = np.zeros(3 * sr, np.float32)
    clicks[:: sr // 3] = 0.9
    signals = {
        "tone": sine(445, sr=sr),
        "chirp": 0.5 * librosa.chirp(fmin=40, fmax=0.45 * sr, sr=sr, duration=3),
        "clicks": clicks,
        "noise": noise(3 * sr),
        "silence": np.zeros(3 * sr),
    }
    for name, y in signals.items():
        sides = np.stack([y, 0.5 * np.roll(y, 99)][:channels], axis=1)
        soundfile.write(tmp_path / f"{name}.wav", sides, sr)
        assert_equal(decode(tmp_path / f"{name}.wav", SR).samples, SR)


def test_real_music_gives_the_bits_of_librosa():
    folder = os.environ.get("MURMUR_TEST_AUDIO")
    if not folder:
        pytest.skip("MURMUR_TEST_AUDIO names no folder of real audio")
    paths = sorted(Path(folder).glob("*.ogg"))
    assert paths, f"no .ogg in {folder}"
    for path in paths:
        assert_equal(decode(path, SR).samples[: 20 * SR], SR)


@pytest.mark.parametrize(("n_samples", "sr"), [(1, 44_100), (3, 96_000), (7, 192_000)])
def test_what_is_too_short_for_librosa_is_one_frame(n_samples, sr):
    found = ours(np.full(n_samples, 0.5, np.float32), sr, 0.0)
    assert {name: values.shape for name, values in found.items()} == {
        "cqt": (84, 1),
        "chroma_cqt": (12, 1),
        "chroma_cens": (12, 1),
        "tonnetz": (6, 1),
    }
    assert all(np.isfinite(values).all() for values in found.values())


@pytest.mark.parametrize("octave", [-2, -1, 0, 1])
def test_a_tone_is_in_its_own_bin_half_in_the_next_ones_and_an_octave_is_twelve_bins(octave):
    found = cqt(sine(440 * 2.0**octave), SR, 0.0)[:, 30:-30]
    own = A4 + 12 * octave
    relative = found / found[own]
    assert relative[[own - 1, own + 1]] == pytest.approx(0.5, abs=0.02)  # a Hann window's main lobe
    assert np.delete(relative, range(own - 1, own + 2), axis=0).max() < 0.03


def test_a_detuned_tone_is_as_strong_at_its_own_tuning_as_a_tuned_one():
    tuned, detuned = (cqt(sine(440 * 2 ** (t / 12)), SR, t)[A4, 30:-30].mean() for t in (0.0, 0.31))
    assert detuned == pytest.approx(tuned, rel=0.01)
    assert cqt(sine(440 * 2 ** (0.31 / 12)), SR, 0.0)[A4, 30:-30].mean() < 0.95 * tuned


def test_twice_the_level_is_twice_the_magnitude_and_the_same_chroma():
    y = noise(SR) + sine(330, 1.0)
    quiet, loud = ours(y, SR, 0.0), ours(2 * y, SR, 0.0)
    assert np.array_equal(loud.pop("cqt"), 2 * quiet.pop("cqt"))
    for name, values in quiet.items():
        assert np.array_equal(loud[name], values), name


def test_silence_is_zero():
    for name, values in ours(np.zeros(SR, np.float32), SR, 0.0).items():
        assert not values.any(), name


@pytest.mark.parametrize(("frequency", "pitch_class"), [(220.0, 9), (261.63, 0), (1318.51, 4)])
def test_a_tone_fills_its_own_pitch_class(frequency, pitch_class):
    found = ours(sine(frequency), SR, 0.0)
    assert found["chroma_cqt"][pitch_class, 30:-30] == pytest.approx(1.0)
    assert (np.delete(found["chroma_cqt"], pitch_class, axis=0)[:, 30:-30] < 0.55).all()
    assert (found["chroma_cens"].argmax(axis=0) == pitch_class).all()
    assert np.linalg.norm(found["chroma_cens"], axis=0) == pytest.approx(1.0)


def test_cens_of_two_equal_pitch_classes_is_half_the_energy_of_each():
    magnitude = np.zeros((84, 80), np.float32)
    magnitude[[12, 55]] = 3.0  # C2 and G5
    found = chroma_cens(magnitude)
    assert found[[0, 7]] == pytest.approx(np.sqrt(0.5))
    assert not np.delete(found, [0, 7], axis=0).any()


def test_tonnetz_is_the_mean_place_of_a_triad_on_the_circles_of_fifths_and_thirds():
    chroma = np.zeros((12, 1))
    chroma[[0, 4, 7]] = 5.0  # C, E, G
    degrees = np.array([[0, 120, 30], [0, 0, 90], [0, 120, 120]])  # of the three on each circle, from C
    radius = np.array([[1.0], [1.0], [0.5]])
    places = radius * np.stack([np.sin(np.deg2rad(degrees)), np.cos(np.deg2rad(degrees))]).mean(axis=2).T.reshape(3, 2)
    assert tonnetz(chroma)[:, 0] == pytest.approx(places.ravel(), abs=1e-12)


def test_tonnetz_of_all_pitch_classes_alike_is_the_centre():
    assert tonnetz(np.full((12, 3), 0.2)) == pytest.approx(0.0, abs=1e-12)
