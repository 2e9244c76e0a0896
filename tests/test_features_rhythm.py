"""Fluctuation, onsets, tempo and beats: what follows from their definitions, and equality with librosa."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile

from features.audio import decode
from features.rhythm import RHYTHM_EDGES, beat_strength, fluctuation, onset_rate, onset_strength, tempo

SR = 22_050
HOP = 512


def tone(frequency, n_samples, sr=SR):
    return (0.5 * np.sin(2 * np.pi * frequency / sr * np.arange(n_samples))).astype(np.float32)


def clicks(rate, n_samples, sr=SR):
    """Return decaying clicks, `rate` a second."""
    y = np.zeros(n_samples, np.float32)
    y[(np.arange(0.1, n_samples / sr, 1 / rate) * sr).astype(int)] = 1.0
    return np.convolve(y, np.exp(-np.arange(sr // 50) / (sr / 200)))[:n_samples].astype(np.float32)


def mel(y, sr=SR):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # librosa's, of tracks shorter than a frame
        return librosa.power_to_db(librosa.feature.melspectrogram(y=y, sr=sr))


def plain_fluctuation(bands, sr):
    """Write the definition out."""
    bands = bands[::8].astype(float)
    n_windows = 1 + (bands.shape[1] - 256) // 128
    found = np.zeros((16, 16, n_windows))
    modulation = np.fft.rfftfreq(256, d=HOP / sr)
    edges = np.geomspace(0.3, 10, 17)
    for window in range(n_windows):
        for band in range(16):
            spectrum = np.abs(np.fft.rfft(bands[band, 128 * window : 128 * window + 256]))
            for i in range(16):
                lines = [k for k in range(1, 129) if edges[i] <= modulation[k] < edges[i + 1]]
                if not lines:
                    lines = [1 + int(np.argmin(np.abs(modulation[1:] - np.sqrt(edges[i] * edges[i + 1]))))]
                found[band, i, window] = np.log1p(np.mean(spectrum[lines]))
    return found.reshape(256, n_windows)


@pytest.mark.parametrize("sr", [16_000, 22_050, 192_000])
def test_fluctuation_is_what_its_definition_says(sr):
    noise = np.random.default_rng(0).standard_normal(700 * HOP).astype(np.float32)
    bands = mel(clicks(3.0, 700 * HOP, sr) + 0.01 * noise)
    assert fluctuation(bands, sr) == pytest.approx(plain_fluctuation(bands, sr), abs=1e-9)


@pytest.mark.parametrize("rate", [2.0, 3.0, 4.5])
def test_a_click_train_fluctuates_most_in_the_bin_that_holds_its_rate(rate):
    levels = np.median(fluctuation(mel(clicks(rate, 700 * HOP)), SR), axis=1).reshape(16, 16)
    loudest = int(levels.sum(axis=0).argmax())
    assert RHYTHM_EDGES[loudest] <= rate < RHYTHM_EDGES[loudest + 1]


def test_fluctuation_is_band_major():
    carrier = tone(float(librosa.mel_frequencies(130, fmin=0, fmax=SR / 2)[1 + 8 * 9]), 700 * HOP)
    pulsing = carrier * (1.01 + np.cos(2 * np.pi * 2.0 / SR * np.arange(len(carrier)))).astype(np.float32)
    levels = np.median(fluctuation(mel(pulsing), SR), axis=1)
    bin_of_2_hz = int(np.searchsorted(RHYTHM_EDGES, 2.0, side="right")) - 1
    assert levels.argmax() // 16 == 9
    assert levels[9 * 16 : 10 * 16].argmax() == bin_of_2_hz


def test_a_steady_level_does_not_fluctuate():
    assert fluctuation(np.full((128, 300), -20.0, np.float32), SR) == pytest.approx(0.0, abs=1e-9)


def test_a_track_shorter_than_one_window_has_no_fluctuation_windows():
    assert fluctuation(np.zeros((128, 255), np.float32), SR).shape == (256, 0)
    assert fluctuation(np.zeros((128, 256), np.float32), SR).shape == (256, 1)


def assert_equal_to_librosa(y, sr=SR):
    strength = onset_strength(mel(y, sr))
    bpm = tempo(strength, sr)
    assert np.array_equal(strength, librosa.onset.onset_strength(y=y, sr=sr))
    assert bpm == librosa.feature.tempo(y=y, sr=sr)
    seconds = len(strength) * HOP / sr
    assert onset_rate(strength, sr) * seconds == pytest.approx(len(librosa.onset.onset_detect(y=y, sr=sr)))
    _, beats = librosa.beat.beat_track(onset_envelope=strength, sr=sr)
    assert beat_strength(strength, sr, bpm) == pytest.approx(strength[beats].mean() / strength.mean())


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("sr", [8_000, 22_050, 44_100, 48_000])
def test_onsets_tempo_and_beats_of_a_file_equal_librosa(tmp_path, sr, channels):
    n_samples = 12 * sr
    noise = 0.1 * np.random.default_rng(1).standard_normal(n_samples)
    signals = {
        "tone": tone(440, n_samples, sr),
        "chirp": librosa.chirp(fmin=60, fmax=0.45 * sr, sr=sr, length=n_samples),
        "clicks": 0.3 * clicks(1.7, n_samples, sr) + 0.01 * noise,
        "noise": noise,
    }
    for name, y in signals.items():
        soundfile.write(tmp_path / f"{name}.wav", np.stack([y, 0.5 * y][:channels], axis=1), sr)
        assert_equal_to_librosa(decode(tmp_path / f"{name}.wav", SR).samples)


def test_onsets_tempo_and_beats_of_real_music_equal_librosa():
    folder = os.environ.get("MURMUR_TEST_AUDIO")
    if not folder:
        pytest.skip("MURMUR_TEST_AUDIO names no folder of real audio")
    paths = sorted(path for path in Path(folder).glob("*.ogg") if not path.stem.endswith(".hq"))
    assert paths, f"no .ogg in {folder}"
    for path in paths:
        assert_equal_to_librosa(decode(path, SR).samples[: 30 * SR])


@pytest.mark.parametrize("bpm", [60, 75, 90, 100, 120, 140, 160])
def test_a_click_track_has_its_tempo_within_one_frame_of_lag_and_its_onsets(bpm):
    strength = onset_strength(mel(clicks(bpm / 60, 30 * SR)))
    found = tempo(strength, SR)
    frames_a_minute = 60 * SR / HOP
    assert frames_a_minute / found == pytest.approx(frames_a_minute / bpm, abs=1)
    assert onset_rate(strength, SR) == pytest.approx(bpm / 60, rel=0.02)


def test_a_fast_click_track_may_have_half_its_tempo():
    found = tempo(onset_strength(mel(clicks(3.0, 30 * SR))), SR)
    assert found == pytest.approx(90, abs=2)


def test_a_beat_is_as_strong_as_frames_lie_between_beats_where_nothing_else_sets_in():
    strength = np.zeros(1000)
    strength[5::20] = 3.0
    bpm = tempo(strength, SR)
    assert bpm == pytest.approx(60 * SR / HOP / 20)
    assert beat_strength(strength, SR, bpm) == pytest.approx(20.0, rel=0.03)  # a beat at an end may miss
    assert beat_strength(7 * strength, SR, bpm) == pytest.approx(beat_strength(strength, SR, bpm))


def test_the_beats_of_noise_are_hardly_stronger_than_its_other_frames():
    noise = (0.1 * np.random.default_rng(0).standard_normal(20 * SR)).astype(np.float32)
    strength = onset_strength(mel(noise))
    assert 1 < beat_strength(strength, SR, tempo(strength, SR)) < 1.5


@pytest.mark.parametrize("y", [np.zeros(5 * SR, np.float32), np.ones(1, np.float32), np.ones(HOP, np.float32)])
def test_silence_and_a_track_of_a_frame_or_two_have_no_onsets_no_tempo_and_no_beats(y):
    strength = onset_strength(mel(y))
    assert strength.shape == (1 + len(y) // HOP,)
    assert onset_rate(strength, SR) == 0
    assert tempo(strength, SR) == 0
    assert beat_strength(strength, SR, tempo(strength, SR)) == 0


@pytest.mark.parametrize("n_samples", [3 * HOP, 4 * HOP, 5 * HOP, 9_000, SR])
def test_a_short_track_has_finite_values_of_one_row_and_column(n_samples):
    y = np.random.default_rng(0).standard_normal(n_samples).astype(np.float32)
    strength = onset_strength(mel(y))
    bpm = tempo(strength, SR)
    for value in (bpm, onset_rate(strength, SR), beat_strength(strength, SR, bpm)):
        assert value.shape == (1, 1)
        assert 0 < value < 320
