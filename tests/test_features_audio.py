"""Decoding: the samples of librosa.load, every usual format, and bad files as one clear error."""

from __future__ import annotations

import math
import os
import warnings
from pathlib import Path

import av
import librosa
import numpy as np
import pytest
import soundfile

from core.errors import AudioError
from features.audio import decode, mix, resample

FORMATS = {"wav": "pcm_16", "flac": "flac", "ogg": "vorbis", "mp3": "mp3", "aiff": "pcm_16", "opus": "opus"}


def music(sr, channels=2, seconds=1.5):
    """Write nothing: return a few detuned tones and some noise, (n, channels) float32."""
    t = np.arange(int(sr * seconds)) / sr
    noise = np.random.default_rng(2).standard_normal((len(t), channels))
    pitches = 330 * 1.5 ** np.arange(channels)
    return (0.3 * np.sin(2 * np.pi * pitches * t[:, np.newaxis]) + 0.02 * noise).astype(np.float32)


def write(path, y, sr):
    if path.suffix == ".opus":
        soundfile.write(path, y, sr, format="OGG", subtype="OPUS")
    else:
        soundfile.write(path, y, sr)
    return path


def encode(path, codec, y, sr, sample_format=None):
    """Encode with FFmpeg what libsndfile cannot write; y is (n, channels) float32."""
    layout = {1: "mono", 2: "stereo", 8: "7.1"}[y.shape[1]]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=sr, layout=layout)
        frame = av.AudioFrame.from_ndarray(y.reshape(1, -1), "flt", layout)
        frame.sample_rate = sr
        stream.format = sample_format or stream.codec_context.codec.audio_formats[0]
        converter = av.AudioResampler(format=stream.format)
        for part in [*converter.resample(frame), None]:
            container.mux(stream.encode(part))
    return path


def load(path, sr=22_050):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the modules that librosa's own reader imports
        return librosa.load(path, sr=sr)[0]


@pytest.mark.parametrize("extension", FORMATS)
@pytest.mark.parametrize("channels", [1, 2])
def test_the_samples_are_those_of_librosa_load(tmp_path, extension, channels):
    sr = 48_000 if extension == "opus" else 44_100
    path = write(tmp_path / f"a.{extension}", music(sr, channels), sr)
    audio = decode(path)
    assert np.array_equal(resample(audio, 22_050), load(path))
    assert (audio.sample_rate, audio.channels, audio.codec) == (sr, channels, FORMATS[extension])
    assert audio.decoder == f"libsndfile {soundfile.__libsndfile_version__}"


@pytest.mark.parametrize("sr", [8_000, 22_050, 48_000, 192_000])
@pytest.mark.parametrize("channels", [1, 2, 3, 8])
def test_the_samples_are_those_of_librosa_load_at_any_rate_and_channel_count(tmp_path, sr, channels):
    path = write(tmp_path / "a.wav", music(sr, channels), sr)
    assert np.array_equal(resample(decode(path), 22_050), load(path))


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"])
def test_every_sample_format_is_read_at_full_scale_1(tmp_path, subtype):
    y = music(44_100)
    soundfile.write(tmp_path / "a.wav", y, 44_100, subtype=subtype)
    audio = decode(tmp_path / "a.wav")
    assert audio.samples == pytest.approx(y.mean(axis=1), abs=0.02)
    assert audio.codec == subtype.lower()


def test_a_file_longer_than_a_block_is_read_whole(tmp_path):
    path = write(tmp_path / "a.ogg", music(44_100, seconds=13), 44_100)
    audio = decode(path)
    assert audio.duration == 13
    assert np.array_equal(resample(audio, 22_050), load(path))


@pytest.mark.parametrize(("name", "codec"), [("a.m4a", "aac"), ("a.aac", "aac"), ("b.m4a", "alac"), ("a.ac3", "ac3")])
def test_what_libsndfile_cannot_read_is_decoded_by_ffmpeg(tmp_path, name, codec):
    y = music(44_100)
    audio = decode(encode(tmp_path / name, codec, y, 44_100))
    assert (audio.sample_rate, audio.channels, audio.codec) == (44_100, 2, codec)
    assert audio.decoder.startswith("FFmpeg ")
    assert audio.duration == pytest.approx(1.5, abs=0.06)  # encoders pad to whole packets
    lines = np.abs(np.fft.rfft(audio.samples[8192 : 8192 + 44_100 // 2]))
    assert sorted(2 * np.argsort(lines)[-2:]) == pytest.approx([330, 495], abs=2)
    assert audio.samples.std() == pytest.approx(y.mean(axis=1).std(), rel=0.02)


@pytest.mark.parametrize("channels", [1, 2, 8])
def test_ffmpeg_and_libsndfile_decode_the_same_samples(tmp_path, channels):
    y = np.round(music(44_100, channels) * 2**15).astype(np.float32) / 2**15
    lossless, wavpack = write(tmp_path / "a.wav", y, 44_100), encode(tmp_path / "a.wv", "wavpack", y, 44_100, "s16p")
    assert decode(wavpack).decoder.startswith("FFmpeg ")
    assert decode(wavpack).channels == channels
    assert np.array_equal(decode(wavpack).samples, decode(lossless).samples)


def test_the_mean_of_two_channels_has_the_bits_of_librosa():
    y = np.random.default_rng(0).standard_normal((2, 9999)).astype(np.float32)
    assert np.array_equal(mix(y), librosa.to_mono(y))


@pytest.mark.parametrize("n_samples", [1, 2, 7])
def test_a_few_samples_are_enough_to_resample(tmp_path, n_samples):
    path = write(tmp_path / "a.wav", music(192_000)[:n_samples], 192_000)
    assert len(resample(decode(path), 22_050)) == math.ceil(n_samples * 22_050 / 192_000)


@pytest.mark.parametrize("raw", [b"caf\xe9: live.wav", b"caf\xe9.m4a", b"live: a.m4a", "Ünï 雨\n.wav".encode()])
def test_any_file_name_is_read(tmp_path, raw, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path(os.fsdecode(raw))
    if path.suffix == ".m4a":
        encode(tmp_path / "a.m4a", "aac", music(44_100), 44_100).rename(path)
    else:
        write(tmp_path / "a.wav", music(44_100), 44_100).rename(path)
    assert decode(path).sample_rate == 44_100


@pytest.mark.parametrize("extension", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_truncated_file_gives_the_audio_that_is_left(tmp_path, extension, share):
    path = write(tmp_path / f"a.{extension}", music(44_100, seconds=4), 44_100)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    audio = decode(path)
    assert 0 < audio.duration <= share * 4 + 0.5
    # the length of a WAV and an Ogg is what is there; MP3 and FLAC say what there should be
    assert audio.damaged == (extension in ("mp3", "flac"))


def test_a_truncated_aac_stream_gives_the_audio_that_is_left(tmp_path):
    path = encode(tmp_path / "a.aac", "aac", music(44_100, seconds=4), 44_100)
    path.write_bytes(path.read_bytes()[:20_000])
    assert 0 < decode(path).duration < 4


def _damage(path, n_bytes):
    damaged = bytearray(path.read_bytes())
    for place in np.random.default_rng(0).integers(3000, len(damaged), n_bytes):
        damaged[place] ^= 0xFF
    path.write_bytes(damaged)
    return path


def test_a_flac_with_damaged_frames_gives_the_others(tmp_path):
    audio = decode(_damage(write(tmp_path / "a.flac", music(44_100, seconds=9), 44_100), 20))
    assert audio.decoder.startswith("FFmpeg ")
    assert 5 < audio.duration < 9


def test_a_few_frames_in_another_sample_rate_are_left_out(tmp_path):
    path = encode(tmp_path / "a.aac", "aac", music(44_100, seconds=4), 44_100)
    other = encode(tmp_path / "b.aac", "aac", music(22_050, seconds=0.5), 22_050)
    path.write_bytes(other.read_bytes() + path.read_bytes())
    audio = decode(path)
    assert audio.sample_rate == 44_100
    assert audio.duration == pytest.approx(4, abs=0.1)


def test_a_damaged_mp3_prints_nothing_and_stderr_works_afterwards(tmp_path, capfd):
    assert decode(_damage(write(tmp_path / "a.mp3", music(44_100, seconds=4), 44_100), 200)).duration > 2
    os.write(2, b"after")
    assert capfd.readouterr() == ("", "after")


def test_an_mp3_that_fails_prints_nothing_and_stderr_works_afterwards(tmp_path, capfd):
    path = tmp_path / "a.mp3"
    path.write_bytes(write(path, music(44_100), 44_100).read_bytes()[:150])
    with pytest.raises(AudioError, match="holds no audio that can be decoded"):
        decode(path)
    os.write(2, b"after")
    assert capfd.readouterr() == ("", "after")


BAD = {
    "text.mp3": b"Dear diary,\nno music today.\n" * 100,
    "zeros.mp3": bytes(10_000),
    "random.flac": np.random.default_rng(1).bytes(5000),
    "header.m4a": b"\0\0\0\x20ftypM4A \0\0\0\0M4A mp42isom\0\0\0\0",
    "script.sh.ogg": b"#!/bin/sh\necho no\n",
}


@pytest.mark.parametrize("name", BAD)
def test_what_holds_no_audio_fails_with_one_line_and_advice(tmp_path, name):
    (tmp_path / name).write_bytes(BAD[name])
    with pytest.raises(AudioError) as caught:
        decode(tmp_path / name)
    assert caught.value.stage == "decode"
    assert "\n" not in str(caught.value)
    assert caught.value.advice


def test_a_codec_that_ffmpeg_does_not_know_fails(tmp_path):
    path = encode(tmp_path / "a.m4a", "alac", music(44_100), 44_100)
    path.write_bytes(path.read_bytes().replace(b"alac", b"????"))
    with pytest.raises(AudioError, match="holds no audio that can be decoded"):
        decode(path)


def test_tags_that_are_not_utf8_do_no_harm(tmp_path):
    path = encode(tmp_path / "a.m4a", "aac", music(44_100), 44_100)
    tagged = path.read_bytes().replace(b"Lavf", b"L\xe4vf")
    assert tagged != path.read_bytes()
    path.write_bytes(tagged)
    assert decode(path).codec == "aac"


def test_a_picture_holds_no_audio(tmp_path):
    with av.open(str(tmp_path / "cover.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width = stream.height = 16
        for frame in (av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), "rgb24"), None):
            container.mux(stream.encode(frame))
    with pytest.raises(AudioError, match="holds no audio"):
        decode(tmp_path / "cover.mp4")


def test_an_empty_file_a_folder_and_a_missing_file_cannot_be_read(tmp_path):
    (tmp_path / "empty.mp3").touch()
    for name, message in {"empty.mp3": "empty", ".": "not a regular file", "missing.mp3": "No such file"}.items():
        with pytest.raises(AudioError, match=message) as caught:
            decode(tmp_path / name)
        assert caught.value.stage == "read"


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp3")
    with pytest.raises(AudioError, match="not a regular file"):
        decode(tmp_path / "pipe.mp3")


def test_a_file_of_zero_samples_fails(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.empty((0, 2), np.float32), 44_100)
    with pytest.raises(AudioError, match="no samples"):
        decode(tmp_path / "a.wav")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("channels", [1, 2])
def test_nan_or_infinity_in_a_file_fails(tmp_path, bad, channels):
    y = music(44_100, channels)
    y[1000, -1] = bad
    soundfile.write(tmp_path / "a.wav", y, 44_100, subtype="FLOAT")
    with pytest.raises(AudioError, match="NaN or infinite"):
        decode(tmp_path / "a.wav")


def test_opposite_infinities_in_two_channels_fail(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.float32([[np.inf, -np.inf], [0, 0]]), 44_100, subtype="FLOAT")
    with pytest.raises(AudioError, match="NaN or infinite"):
        decode(tmp_path / "a.wav")


def test_samples_whose_power_would_overflow_fail(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.float32([0.0, 1e13, 0.0]), 44_100, subtype="FLOAT")
    with pytest.raises(AudioError, match="up to 1e\\+13"):
        decode(tmp_path / "a.wav")
