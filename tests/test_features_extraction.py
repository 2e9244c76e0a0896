"""From a file to features: whole, defined for odd input, flagged, and the same numbers as before.

``python tests/test_features_extraction.py`` writes the golden values anew; raise `FEATURES_VERSION` when they change.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import hypothesis
import librosa
import numpy as np
import pytest
import soundfile
from hypothesis import strategies as st

import features
from core.blocks import BLOCKS, PROFILES
from core.config import FEATURES_VERSION, Config, parse_config
from core.errors import AudioError
from features.audio import decode
from features.descriptors import blocks
from features.extraction import describe, flags
from features.mono import Audio

SR = 22_050
EVERYTHING = parse_config({"features": {"profiles": list(PROFILES)}})
GOLDEN = Path(__file__).with_name("golden_features.json")


def music(seconds=8.0, sr=44_100):
    """Return the same bits everywhere: vibrato, a pulse at 2 Hz and noise, (n, 2) int16."""
    n = np.arange(int(seconds * sr), dtype=np.int64)
    t = n / sr
    noise = (n * n * 7919 + n * 104_729) % 65_521 / 32_760.5 - 1
    left = 0.3 * np.sin(2 * np.pi * 220 * t + 8 * np.sin(2 * np.pi * 0.7 * t)) + 0.05 * noise
    right = 0.4 * np.exp(-12 * np.mod(t, 0.5)) * np.sin(2 * np.pi * 1500 * t * (1 + t / 20))
    return np.round(2**15 * np.column_stack([left, right])).astype(np.int16)


def write(path, y, sr=44_100, **options):
    soundfile.write(path, y, sr, **options)
    return path


def described(y, sample_rate=SR, profiles=("default",)):
    return describe(y, sample_rate, blocks(profiles))


def assert_complete(found, profiles=("default",)):
    """Every block, statistic and row is there, finite, and a float32 in shortest decimal form."""
    assert list(found) == list(blocks(profiles))
    for block, statistics in found.items():
        assert tuple(statistics) == BLOCKS[block].statistics
        for values in statistics.values():
            assert len(values) == BLOCKS[block].rows
            assert all(type(value) is float and math.isfinite(value) for value in values)
            assert all(repr(value) == repr(float(str(np.float32(value)))) for value in values)


def test_a_file_becomes_named_statistics_of_every_block(tmp_path):
    found = features.compute(write(tmp_path / "a.flac", music()))
    assert_complete(found.features)
    assert found.flags == []
    assert (found.duration, found.sample_rate, found.channels, found.codec) == (8.0, 44_100, 2, "flac")
    assert found.decoder == f"libsndfile {soundfile.__libsndfile_version__}"
    assert found.librosa == librosa.__version__


def test_the_statistics_are_those_of_the_descriptors_of_the_resampled_file(tmp_path):
    path = write(tmp_path / "a.wav", music())
    y = decode(path, SR).samples
    found = features.compute(path).features
    mfcc = librosa.feature.mfcc(y=y, sr=SR, n_mfcc=20)
    assert found["mfcc"]["mean"] == pytest.approx(mfcc.mean(axis=1), abs=1e-3)
    assert found["mfcc_delta"]["mean_abs"] == pytest.approx(np.abs(np.diff(mfcc)).mean(axis=1), abs=1e-3)
    assert found["zcr"]["max"] == pytest.approx([librosa.feature.zero_crossing_rate(y).max()])
    assert found["spectral_rolloff"]["median"] == pytest.approx([np.median(librosa.feature.spectral_rolloff(y=y))])


def test_the_same_file_gives_the_same_features_twice(tmp_path):
    path = write(tmp_path / "a.ogg", music(3))
    assert features.compute(path) == features.compute(path)


def test_the_profiles_of_the_config_say_which_blocks_are_computed(tmp_path):
    path = write(tmp_path / "a.wav", music())
    default = features.compute(path).features
    for profiles in (["fma"], ["tempo"], ["default", "fma"], ["tempo", "fma", "default"]):
        found = features.compute(path, parse_config({"features": {"profiles": profiles}})).features
        assert_complete(found, profiles)
        assert {block: default[block] for block in found.keys() & default.keys()} == {
            block: found[block] for block in found.keys() & default.keys()
        }


def test_the_fma_profile_has_the_518_values(tmp_path):
    config = parse_config({"features": {"profiles": ["fma"]}})
    found = features.compute(write(tmp_path / "a.wav", music()), config).features
    assert sum(len(values) for statistics in found.values() for values in statistics.values()) == 518


@pytest.mark.parametrize("rate", [16_000, 44_100, 192_000])
def test_the_config_sets_the_analysis_rate(tmp_path, rate):
    path = write(tmp_path / "a.wav", music(3))
    config = parse_config({"audio": {"sample_rate": rate}})
    found = features.compute(path, config)
    assert_complete(found.features)
    assert found.features == described(decode(path, rate).samples, rate)


def test_golden_values_change_only_with_the_features_version(tmp_path):
    golden = json.loads(GOLDEN.read_text())
    assert golden["features_version"] == FEATURES_VERSION, f"write the golden values of the new version: {__doc__}"
    found = features.compute(write(tmp_path / "a.wav", music()), EVERYTHING).features
    assert list(found) == list(golden["features"])
    for block, statistics in golden["features"].items():
        for statistic, values in statistics.items():
            expected = np.array(values)
            error = np.abs(np.array(found[block][statistic]) - expected) / np.maximum(np.abs(expected), 1e-2)
            # The valleys of the highest contrast band, above the resampler's cutoff, are rounding noise.
            tolerance = 1e-2 if block == "spectral_contrast" else 1e-3
            assert error.max() < tolerance, f"{block}.{statistic} changed: raise FEATURES_VERSION; then {__doc__}"


ODD = {
    "silence": np.zeros(8 * SR),
    "constant": np.full(8 * SR, 0.5),
    "tiny constant": np.full(8 * SR, 1e-30),
    "one sample": np.ones(1),
    "two samples": np.array([0.5, -0.5]),
    "one frame": 0.1 * np.sin(np.arange(511)),
    "2,047 samples": 0.1 * np.sin(np.arange(2047)),
    "an impulse": np.eye(1, 8 * SR, 1000)[0],
    "alternating": np.resize([0.5, -0.5], 8 * SR),
    "loudest that is taken": 1e11 * np.sin(np.arange(8 * SR)),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("rate", [16_000, 22_050, 192_000])
def test_odd_input_has_defined_values(name, rate):
    assert_complete(described(ODD[name].astype(np.float32), rate, PROFILES), PROFILES)


@hypothesis.given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=3000))
@hypothesis.settings(max_examples=40, deadline=None)
def test_any_samples_have_defined_values(samples):
    assert_complete(described(np.array(samples, np.float32), SR, PROFILES), PROFILES)


def test_silence_is_all_zero_but_for_its_level():
    found = described(np.zeros(8 * SR, np.float32))
    level = {"mfcc", "mel", "spectral_flatness"}
    assert not {v for block in found.keys() - level for row in found[block].values() for v in row if v}
    assert found["mel"]["mean"] == pytest.approx([-100.0] * 128)


@pytest.mark.parametrize(
    ("y", "expected"),
    [
        (np.full(8 * SR, 0.9e-4), ["silent"]),
        (np.full(8 * SR, 1.1e-4), []),
        (np.full(2047, 0.1), ["too_short", "no_rhythm"]),
        (np.full(2048, 0.1), ["no_rhythm"]),
        (np.full(255 * 512 - 1, 0.1), ["no_rhythm"]),
        (np.full(255 * 512, 0.1), []),
        (np.where(np.arange(8 * SR) % 1100 == 0, -1.0, 0.5), []),
        (np.where(np.arange(8 * SR) % 900 == 0, -0.9991, 0.5), ["clipped"]),
        (np.where(np.arange(8 * SR) % 900 == 0, -0.9989, 0.5), []),
        (np.zeros(1), ["silent", "too_short", "no_rhythm"]),
    ],
)
def test_flags_say_what_to_know_about_a_track(y, expected):
    y = y.astype(np.float32)
    clipped = float(np.mean(np.abs(y) >= 0.999))
    audio = Audio(y, len(y) / SR, SR, 1, "pcm_16", "", clipped, damaged=False, excerpt=False)
    assert flags(audio) == expected
    assert flags(replace(audio, damaged=True, excerpt=True)) == [*expected, "damaged", "excerpt"]


def test_clipping_is_seen_before_resampling_hides_it(tmp_path):
    noise = np.clip(0.35 * np.random.default_rng(0).standard_normal(7 * 44_100), -1, 1)
    path = write(tmp_path / "a.wav", noise)
    assert np.mean(np.abs(decode(path, SR).samples) >= 0.999) < 0.001
    assert features.compute(path).flags == ["clipped"]


def test_a_single_sample_is_described_and_flagged(tmp_path):
    found = features.compute(write(tmp_path / "a.wav", np.array([0.5])))
    assert_complete(found.features)
    assert found.flags == ["too_short", "no_rhythm"]


def test_a_bad_file_is_an_audio_error(tmp_path):
    (tmp_path / "a.mp3").write_text("not audio")
    with pytest.raises(AudioError):
        features.compute(tmp_path / "a.mp3")


def test_a_path_may_be_text(tmp_path):
    path = write(tmp_path / "a.wav", music(1))
    assert features.compute(str(path)) == features.compute(path)


def test_the_default_config_is_used_without_one(tmp_path):
    path = write(tmp_path / "a.wav", music(1))
    assert features.compute(path) == features.compute(path, Config())


def test_importing_the_package_imports_no_heavy_library():
    code = "import sys, features; print(sorted({'librosa', 'av', 'soundfile', 'scipy', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_warming_up_needs_no_file():
    features.warm_up()
    features.warm_up(EVERYTHING)


def test_two_encodings_of_real_music_agree_in_duration_and_cepstrum():
    folder = os.environ.get("MURMUR_TEST_AUDIO")
    if not folder:
        pytest.skip("MURMUR_TEST_AUDIO names no folder of real audio")
    pairs = [(path, path.with_suffix(".hq.ogg")) for path in sorted(Path(folder).glob("*.ogg"))]
    pairs = [pair for pair in pairs if pair[1].exists()]
    assert pairs, f"no NAME.ogg with a NAME.hq.ogg in {folder}"
    for pair in pairs:
        one, other = (features.compute(path) for path in pair)
        assert_complete(one.features)
        assert abs(one.duration - other.duration) <= 1.0, pair[0].name
        difference = np.subtract(one.features["mfcc"]["mean"], other.features["mfcc"]["mean"])
        assert np.sqrt(np.mean(difference**2)) <= 5.0, pair[0].name


def _write_golden():
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        found = features.compute(write(Path(folder) / "a.wav", music()), EVERYTHING).features
    golden = ",\n".join(
        f' "{block}": {{\n'
        + ",\n".join(f'  "{name}": {json.dumps([float(f"{v:.6g}") for v in row])}' for name, row in statistics.items())
        + "\n }"
        for block, statistics in found.items()
    )
    GOLDEN.write_text(f'{{"features_version": {FEATURES_VERSION}, "features": {{\n{golden}\n}}}}\n')


if __name__ == "__main__":
    _write_golden()
