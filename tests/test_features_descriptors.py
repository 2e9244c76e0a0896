"""Descriptors: what follows from their definitions, and equality with librosa."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import hypothesis
import librosa
import numpy as np
import pytest
import soundfile
from hypothesis import strategies as st

from core.blocks import BLOCKS
from features.audio import decode
from features.descriptors import (
    DESCRIPTORS,
    Frames,
    chroma_stft,
    frames,
    mel,
    mfcc,
    mfcc_delta,
    rms,
    spectral_bandwidth,
    spectral_centroid,
    spectral_contrast,
    spectral_flatness,
    spectral_rolloff,
    zcr,
)
from features.spectrum import HOP, N_FFT, N_LINES, frequencies, measure

SR = 22_050
RATES = (16_000, 22_050, 44_100, 192_000)
HERTZ = ("spectral_centroid", "spectral_bandwidth", "spectral_rolloff")
DECIBEL = ("mfcc", "mfcc_delta", "mel", "spectral_contrast")
EXACT = ("spectral_rolloff", "zcr", "chroma_cqt", "chroma_cens", "tonnetz")
NOT_OF_LIBROSA = {"fluctuation", "tempo", "onset_rate", "beat_strength"}  # these have tests of their own


def tone(frequency, n_samples=300 * HOP, sr=SR):
    return (0.5 * np.sin(2 * np.pi * frequency / sr * np.arange(n_samples))).astype(np.float32)


def clicks(rate, n_samples=300 * HOP, sr=SR):
    y = np.zeros(n_samples, np.float32)
    y[(np.arange(0, n_samples / sr, 1 / rate) * sr).astype(int)] = 1.0
    return np.convolve(y, np.exp(-np.arange(sr // 50) / (sr / 200)))[:n_samples].astype(np.float32)


def signals(sr):
    """Signals that differ in everything a descriptor looks at."""
    n_samples = 400 * HOP + 123
    noise = np.random.default_rng(7).standard_normal(n_samples).astype(np.float32)
    chirp = librosa.chirp(fmin=60, fmax=0.45 * sr, sr=sr, length=n_samples).astype(np.float32)
    mixture = 0.3 * tone(452, n_samples, sr) + clicks(3, n_samples, sr) + 0.01 * noise
    return {
        "tone": tone(440, n_samples, sr),
        "quiet tone": 1e-3 * tone(1234.5, n_samples, sr),
        "chirp": chirp,
        "clicks": clicks(2, n_samples, sr),
        "noise": 0.1 * noise,
        "mixture": mixture,
        "sound, then silence": np.where(np.arange(n_samples) < n_samples // 2, mixture, np.float32(0)),
        "constant": np.full(n_samples, 0.25, np.float32),
        "silence": np.zeros(n_samples, np.float32),
    }


def plain_cqt(y, sr):
    return np.abs(librosa.cqt(y, sr=sr, n_bins=84, bins_per_octave=12, tuning=None))


PLAIN = {
    "mfcc": lambda y, sr: librosa.feature.mfcc(y=y, sr=sr, n_mfcc=20),
    "mfcc_delta": lambda y, sr: np.diff(librosa.feature.mfcc(y=y, sr=sr, n_mfcc=20)),
    "chroma_stft": lambda y, sr: librosa.feature.chroma_stft(y=y, sr=sr),
    "mel": lambda y, sr: librosa.power_to_db(librosa.feature.melspectrogram(y=y, sr=sr)),
    "spectral_contrast": lambda y, sr: librosa.feature.spectral_contrast(y=y, sr=sr),
    "spectral_centroid": lambda y, sr: librosa.feature.spectral_centroid(y=y, sr=sr),
    "spectral_bandwidth": lambda y, sr: librosa.feature.spectral_bandwidth(y=y, sr=sr),
    "spectral_rolloff": lambda y, sr: librosa.feature.spectral_rolloff(y=y, sr=sr),
    "spectral_flatness": lambda y, _: librosa.feature.spectral_flatness(y=y),
    "zcr": lambda y, _: librosa.feature.zero_crossing_rate(y),
    "rms": lambda y, _: librosa.feature.rms(S=np.abs(librosa.stft(y))),
    "chroma_cqt": lambda y, sr: librosa.feature.chroma_cqt(C=plain_cqt(y, sr), bins_per_octave=12),
    "chroma_cens": lambda y, sr: librosa.feature.chroma_cens(C=plain_cqt(y, sr), bins_per_octave=12),
    "tonnetz": lambda y, sr: librosa.feature.tonnetz(chroma=PLAIN["chroma_cens"](y, sr)),
}


def assert_equal_to_librosa(name, tracks, sr):
    """Hold a descriptor against plain librosa on every track, within 1e-5 of its range over all of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # librosa's, of silence and of tracks shorter than a frame
        plain = {track: PLAIN[name](y, sr) for track, y in tracks.items()}
    unit = sr / 2 if name in HERTZ else 80.0 if name in DECIBEL else 1.0
    values = np.concatenate([value.ravel() for value in plain.values()])
    tolerance = 0.0 if name in EXACT else 1e-5 * max(np.ptp(values), unit)
    for track, y in tracks.items():
        np.testing.assert_allclose(
            DESCRIPTORS[name](frames(y, sr)), plain[track], rtol=0, atol=tolerance, err_msg=track
        )


def test_every_descriptor_is_held_against_something():
    assert PLAIN.keys() | NOT_OF_LIBROSA == DESCRIPTORS.keys() == BLOCKS.keys()


@pytest.mark.parametrize("sr", RATES)
@pytest.mark.parametrize("name", PLAIN)
def test_a_descriptor_equals_librosa(name, sr):
    assert_equal_to_librosa(name, signals(sr), sr)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("sr", [8_000, 22_050, 44_100, 48_000])
def test_every_descriptor_of_a_file_equals_librosa(tmp_path, sr, channels):
    tracks = {}
    for name, y in signals(sr).items():
        path = tmp_path / f"{name}.wav"
        soundfile.write(path, np.stack([y, 0.5 * np.roll(y, 99)][:channels], axis=1), sr, subtype="FLOAT")
        tracks[name] = decode(path, SR).samples
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of the modules that librosa's own reader imports
            assert np.array_equal(tracks[name], librosa.load(path, sr=SR)[0])
    for name in PLAIN:
        assert_equal_to_librosa(name, tracks, SR)


@pytest.mark.parametrize("name", [name for name in PLAIN if name not in ("chroma_cqt", "chroma_cens", "tonnetz")])
def test_a_descriptor_of_a_very_short_track_equals_librosa(name):
    noise = np.random.default_rng(3).standard_normal(2048).astype(np.float32)
    assert_equal_to_librosa(name, {f"{n} samples": noise[:n] for n in (1, 2, 511, 512, 1024, 2047, 2048)}, SR)


@pytest.fixture(scope="module")
def clips():
    folder = os.environ.get("MURMUR_TEST_AUDIO")
    if not folder:
        pytest.skip("MURMUR_TEST_AUDIO names no folder of real audio")
    paths = sorted(Path(folder).glob("*.ogg"))
    assert paths, f"no .ogg in {folder}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the modules that librosa's own reader imports
        return {path.name: librosa.load(path, sr=SR, duration=20)[0] for path in paths}


@pytest.mark.parametrize("name", PLAIN)
def test_a_descriptor_equals_librosa_on_real_music(name, clips):
    assert_equal_to_librosa(name, clips, SR)


@pytest.mark.parametrize("sr", RATES)
def test_the_tuning_is_the_very_value_that_librosa_estimates(sr):
    for name, y in signals(sr).items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # librosa's, of silence
            expected = librosa.estimate_tuning(S=np.abs(librosa.stft(y)) ** 2, sr=sr)
        assert frames(y, sr).tuning == expected, name


def spectrum(magnitude, sr=SR):
    """Frames whose magnitude is the same in each of 4 frames."""
    magnitude = np.asarray(magnitude, np.float32)
    return Frames(
        np.zeros(3 * HOP, np.float32), measure([np.tile(magnitude, (4, 1))], sr, np.empty((4, N_LINES), np.float32))
    )


@pytest.mark.parametrize("line", [1, 100, 511, 1023])
def test_one_spectral_line_is_the_centroid_and_the_rolloff_and_has_no_bandwidth(line):
    one = spectrum(np.arange(1 + N_FFT // 2) == line)
    frequency = line * SR / N_FFT
    assert spectral_centroid(one) == pytest.approx(frequency)
    assert spectral_rolloff(one) == pytest.approx(frequency)
    assert spectral_bandwidth(one) == pytest.approx(0.0, abs=1e-2)
    assert spectral_flatness(one).max() < 1e-6


def test_two_equal_lines_have_half_their_distance_as_bandwidth():
    two = spectrum(np.isin(np.arange(1 + N_FFT // 2), [100, 300]))
    assert spectral_centroid(two) == pytest.approx(200 * SR / N_FFT)
    assert spectral_bandwidth(two) == pytest.approx(100 * SR / N_FFT)


def test_a_flat_spectrum_is_flat_and_without_contrast_and_centred_on_a_quarter_of_the_rate():
    flat = spectrum(np.full(1 + N_FFT // 2, 0.5))
    assert spectral_flatness(flat) == pytest.approx(1.0, abs=1e-5)
    assert spectral_contrast(flat) == pytest.approx(0.0, abs=1e-5)
    assert spectral_centroid(flat) == pytest.approx(SR / 4)
    assert spectral_rolloff(flat) == pytest.approx(0.85 * SR / 2, abs=SR / N_FFT)


def test_contrast_is_the_ratio_of_peaks_to_valleys_in_decibel():
    comb = np.where(np.arange(1 + N_FFT // 2) % 4 == 0, 1.0, 0.01)
    assert spectral_contrast(spectrum(comb)) == pytest.approx(20.0, abs=1e-4)


@pytest.mark.parametrize(("frequency", "pitch_class"), [(440.0, 9), (261.63, 0), (1318.51, 4)])
def test_a_tone_fills_its_own_pitch_class(frequency, pitch_class):
    found = chroma_stft(frames(tone(frequency), SR))[:, 4:-4]
    assert (found.argmax(axis=0) == pitch_class).all()
    assert found[pitch_class] == pytest.approx(1.0)


@pytest.mark.parametrize("cents", [-40, -15, 0, 20, 45])
def test_the_tuning_of_a_detuned_tone_is_its_detuning(cents):
    chord = sum(tone(frequency * 2 ** (cents / 1200)) for frequency in (440.0, 880.0, 1760.0))
    assert frames(chord, SR).tuning == pytest.approx(cents / 100, abs=0.03)


def test_the_mel_spectrogram_of_a_tone_peaks_in_the_band_around_it():
    centres = librosa.mel_frequencies(130, fmin=0, fmax=SR / 2)[1:-1]
    found = mel(frames(tone(float(centres[60])), SR))[:, 4:-4]
    assert (found.argmax(axis=0) == 60).all()
    assert np.ptp(found) <= 80.0 + 1e-4


def test_the_cepstrum_of_silence_is_its_level_alone_and_does_not_move():
    silence = frames(np.zeros(10 * HOP, np.float32), SR)
    assert mfcc(silence)[0] == pytest.approx(-100 * np.sqrt(128), rel=1e-6)
    assert mfcc(silence)[1:] == pytest.approx(0.0, abs=1e-3)
    assert not mfcc_delta(silence).any()


def test_a_constant_has_the_rms_of_its_window():
    found = rms(frames(np.full(20 * HOP, 0.5, np.float32), SR))[:, 4:-4]
    assert found == pytest.approx(0.5 * np.sqrt(3 / 8), rel=1e-5)  # mean square of a Hann window: 3/8


def test_a_signal_that_changes_sign_at_each_sample_crosses_zero_everywhere():
    found = zcr(frames(np.resize(np.float32([1, -1]), 20 * HOP), SR))[:, 4:-4]
    assert (found == (N_FFT - 1) / N_FFT).all()


def test_the_zero_crossing_rate_of_a_tone_is_twice_its_frequency_per_sample():
    found = zcr(frames(tone(1000.0), SR))[:, 4:-4]
    assert found == pytest.approx(2 * 1000 / SR, abs=2 / N_FFT)


@hypothesis.given(gain=st.floats(1e-2, 1e2))
@hypothesis.settings(max_examples=25, deadline=None)
def test_gain_leaves_centroid_and_chroma_alone(gain):
    y = tone(447.0, 40 * HOP) + 0.3 * tone(670.0, 40 * HOP) + 0.05 * clicks(3, 40 * HOP)
    before, after = frames(y, SR), frames((gain * y).astype(np.float32), SR)
    assert np.abs(spectral_centroid(after) - spectral_centroid(before)).max() <= 1e-5 * SR / 2
    assert np.abs(chroma_stft(after) - chroma_stft(before)).max() <= 1e-4


def test_the_lines_of_the_spectrum_run_from_zero_to_half_the_rate():
    assert frequencies(SR)[[0, -1]] == pytest.approx([0, SR / 2])
