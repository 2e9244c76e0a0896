"""Decoding: the samples of librosa.load, every usual format, and bad files as one clear error."""

from __future__ import annotations

import math
import os
import shutil
import struct
import warnings
from functools import cache
from pathlib import Path

import av
import librosa
import numpy as np
import pytest
import soundfile

from core.errors import AudioError
from features.audio import decode
from features.mono import RESERVED, mix

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
        stream.bit_rate = 128_000
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
    audio = decode(path, 22_050)
    assert np.array_equal(audio.samples, load(path))
    assert (audio.sample_rate, audio.channels, audio.codec) == (sr, channels, FORMATS[extension])
    assert not audio.damaged
    assert not audio.excerpt
    assert audio.decoder == f"libsndfile {soundfile.__libsndfile_version__}"


@pytest.mark.parametrize("sr", [8_000, 22_050, 48_000, 192_000])
@pytest.mark.parametrize("channels", [1, 2, 3, 8])
def test_the_samples_are_those_of_librosa_load_at_any_rate_and_channel_count(tmp_path, sr, channels):
    path = write(tmp_path / "a.wav", music(sr, channels), sr)
    assert np.array_equal(decode(path, 22_050).samples, load(path))


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"])
def test_every_sample_format_is_read_at_full_scale_1(tmp_path, subtype):
    y = music(44_100)
    soundfile.write(tmp_path / "a.wav", y, 44_100, subtype=subtype)
    audio = decode(tmp_path / "a.wav")
    assert audio.samples == pytest.approx(y.mean(axis=1), abs=0.02)
    assert audio.codec == subtype.lower()


@pytest.mark.parametrize("extension", ["ogg", "mp3", "flac"])
def test_a_file_of_many_blocks_has_the_samples_of_librosa_load(tmp_path, extension):
    path = write(tmp_path / f"a.{extension}", music(44_100, seconds=13), 44_100)
    audio = decode(path, 22_050)
    assert audio.duration == 13
    assert np.array_equal(audio.samples, load(path))
    assert np.array_equal(decode(path).samples, load(path, None))


def test_more_samples_than_there_is_room_for_at_first_are_all_there(tmp_path, monkeypatch):
    path = write(tmp_path / "a.wav", music(44_100, seconds=5), 44_100)
    monkeypatch.setattr("features.mono.RESERVED", 1000)
    assert RESERVED > 1000
    assert np.array_equal(decode(path, 22_050).samples, load(path))


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


@pytest.mark.parametrize("channels", range(1, 18))
def test_the_mean_of_the_channels_has_the_bits_of_librosa(channels):
    block = np.random.default_rng(0).standard_normal((9999, channels)).astype(np.float32)
    assert np.array_equal(mix(block), librosa.to_mono(block.T))


@pytest.mark.parametrize("n_samples", [1, 2, 7])
def test_a_few_samples_are_enough_to_resample(tmp_path, n_samples):
    path = write(tmp_path / "a.wav", music(192_000)[:n_samples], 192_000)
    assert np.array_equal(decode(path, 22_050).samples, load(path))
    assert len(load(path)) == math.ceil(n_samples * 22_050 / 192_000)


@pytest.mark.parametrize("raw", [b"caf\xe9: live.wav", b"caf\xe9.m4a", b"live: a.m4a", "Ünï 雨\n.wav".encode()])
def test_any_file_name_is_read(tmp_path, raw, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path(os.fsdecode(raw))
    if path.suffix == ".m4a":
        encode(tmp_path / "a.m4a", "aac", music(44_100), 44_100).rename(path)
    else:
        write(tmp_path / "a.wav", music(44_100), 44_100).rename(path)
    assert decode(path).sample_rate == 44_100


@pytest.mark.parametrize("extension", ["wav", "aiff", "flac", "ogg", "opus", "mp3"])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_truncated_file_gives_the_audio_that_is_left(tmp_path, extension, share):
    sr = 48_000 if extension == "opus" else 44_100
    path = write(tmp_path / f"a.{extension}", music(sr, seconds=4), sr)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    audio = decode(path)
    assert 0 < audio.duration <= share * 4 + 0.5
    assert audio.damaged


@pytest.mark.parametrize(("name", "codec"), [("a.aac", "aac"), ("a.wma", "wmav2"), ("a.mkv", "aac")])
def test_a_truncated_file_that_ffmpeg_reads_gives_the_audio_that_is_left(tmp_path, name, codec):
    path = encode(tmp_path / name, codec, music(44_100, seconds=4), 44_100)
    assert not decode(path).damaged
    path.write_bytes(path.read_bytes()[:20_000])
    audio = decode(path)
    assert 0 < audio.duration < 4
    assert audio.damaged


LONG = ["cbr.mp3", "vbr.mp3", "a.flac", "a.ogg", "a.wav", "alac.m4a"]


def write_long(path, y, sr=44_100):
    """Write as the name says, in small pieces: libsndfile's Vorbis encoder cannot take a long file at once."""
    if path.suffix == ".m4a":
        return encode(path, path.stem, y, sr)
    mode = {"cbr": "CONSTANT", "vbr": "VARIABLE"}.get(path.stem)
    settings = {"bitrate_mode": mode, "compression_level": 0.5} if mode else {}
    with soundfile.SoundFile(path, "w", sr, y.shape[1], format=path.suffix[1:], **settings) as file:
        for start in range(0, len(y), 1 << 14):
            file.write(y[start : start + (1 << 14)])
    return path


@pytest.fixture(scope="module")
def of_20_s(tmp_path_factory):
    """Return what gives a file of 20 s by its name, each written once."""
    folder, y = tmp_path_factory.mktemp("20 s"), music(44_100, seconds=20)
    return cache(lambda name: write_long(folder / name, y))


@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize("sample_rate", [None, 22_050])
def test_of_a_long_file_the_middle_is_decoded(of_20_s, name, sample_rate):
    path = of_20_s(name)
    audio = decode(path, sample_rate, max_duration=3)
    rate = sample_rate or 44_100
    assert (len(audio.samples), audio.duration) == (3 * rate, 20)
    assert (audio.excerpt, audio.damaged) == (True, False)
    middle = decode(path, sample_rate).samples[17 * rate // 2 : 23 * rate // 2]
    if sample_rate is None:
        assert np.array_equal(audio.samples, middle)
    else:  # around an excerpt the resampler hears silence
        assert audio.samples[1000:-1000] == pytest.approx(middle[1000:-1000], abs=1e-5)


@pytest.mark.parametrize(("name", "codec"), [("a.m4a", "aac"), ("a.aac", "aac"), ("a.wma", "wmav2"), ("a.ac3", "ac3")])
def test_of_a_long_file_that_ffmpeg_reads_the_middle_is_decoded(tmp_path, name, codec):
    y = music(44_100, seconds=20)
    y[: 44_100 * 8] = y[44_100 * 12 :] = 0  # silent but for the middle
    audio = decode(encode(tmp_path / name, codec, y, 44_100), max_duration=3)
    assert len(audio.samples) == 3 * 44_100
    assert audio.duration == pytest.approx(20, rel=0.05)  # of a stream without a header it is an estimate
    assert (audio.excerpt, audio.damaged) == (True, False)
    loud = [np.abs(part).max() > 0.1 for part in np.split(audio.samples, 30)]
    assert sum(loud) >= 26  # an AAC stream without an index is placed by its bit rate


@pytest.mark.parametrize("name", LONG)
def test_a_file_as_long_as_an_excerpt_is_none(tmp_path, name):
    path = write_long(tmp_path / name, music(44_100, seconds=3))
    audio = decode(path, max_duration=3)
    assert (audio.excerpt, audio.damaged, audio.duration) == (False, False, 3)
    assert np.array_equal(audio.samples, decode(path).samples)


def test_in_an_excerpt_of_a_low_bit_rate_the_first_samples_are_right_too(tmp_path):
    path = tmp_path / "a.mp3"
    y = music(44_100, 1, seconds=20)
    with soundfile.SoundFile(path, "w", 44_100, 1, bitrate_mode="CONSTANT", compression_level=0.99) as file:
        file.write(y)
    whole, excerpt = decode(path), decode(path, max_duration=3)
    start = round((excerpt.duration * 44_100 - len(excerpt.samples)) / 2)
    assert excerpt.samples == pytest.approx(whole.samples[start : start + 3 * 44_100], abs=1e-6)


def _claim(path, n_frames):
    """Let the first frame of an MP3 say that it holds so many; return the path."""
    data = bytearray(path.read_bytes())
    place = max(data.find(b"Xing"), data.find(b"Info")) + 8
    data[place : place + 4] = struct.pack(">I", n_frames)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["cbr.mp3", "vbr.mp3"])
@pytest.mark.parametrize("n_frames", [80, 1_000_000])
@pytest.mark.parametrize("max_duration", [math.inf, 1800, 8])
def test_an_mp3_that_lies_about_its_length_is_decoded_as_far_as_it_goes(
    tmp_path, of_20_s, name, n_frames, max_duration
):
    path = Path(shutil.copy(of_20_s(name), tmp_path))
    audio = decode(_claim(path, n_frames), 22_050, max_duration=max_duration)
    assert audio.damaged
    assert audio.excerpt == (max_duration == 8)
    assert audio.duration == pytest.approx(20, abs=0.1)
    assert len(audio.samples) == pytest.approx(22_050 * min(20, max_duration), abs=2205)


@pytest.mark.parametrize("max_duration", [math.inf, 8])
@pytest.mark.parametrize("quiet", [slice(0, 441_000), slice(441_000, None)])
def test_an_mp3_of_variable_bit_rate_that_does_not_say_its_length_is_not_damaged(tmp_path, max_duration, quiet):
    y = music(44_100, seconds=20)
    y[quiet] *= 1e-3
    path = write_long(tmp_path / "vbr.mp3", y)
    with av.open(str(path)) as container:
        first = next(container.demux(container.streams.audio[0])).pos
    path.write_bytes(path.read_bytes()[first:])
    assert abs(soundfile.info(path).duration - 20) > 5  # libsndfile's estimate, from the first frames
    audio = decode(path, max_duration=max_duration)
    assert (audio.damaged, audio.excerpt) == (False, max_duration == 8)
    assert audio.duration == pytest.approx(20, abs=0.1)


def test_large_tags_behind_the_audio_are_no_audio(tmp_path):
    path = write(tmp_path / "a.mp3", music(44_100, seconds=4), 44_100)
    path.write_bytes(path.read_bytes() + b"APETAGEX" + bytes(200_000))
    audio = decode(path)
    assert (audio.duration, audio.damaged, audio.decoder[:3]) == (4, False, "lib")


@pytest.mark.parametrize("name", ["a.flac", "a.wav", "cbr.mp3"])
def test_of_a_file_cut_before_its_middle_the_middle_of_what_is_left_is_decoded(tmp_path, of_20_s, name):
    path = Path(shutil.copy(of_20_s(name), tmp_path))
    os.truncate(path, path.stat().st_size // 3)
    audio = decode(path, max_duration=2)
    assert len(audio.samples) == 2 * 44_100
    assert audio.duration == pytest.approx(20 / 3, abs=0.5)
    assert (audio.damaged, audio.excerpt) == (True, True)


def _flac_of(path, n_samples):
    """Let the header of a FLAC say that it holds so many samples; return the path."""
    data = bytearray(path.read_bytes())
    data[21:26] = (data[21] >> 4 << 36 | n_samples).to_bytes(5, "big")
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("max_duration", [math.inf, 1800, 2])
def test_a_flac_that_does_not_say_its_length_is_decoded(tmp_path, max_duration):
    path = write(tmp_path / "a.flac", music(44_100, seconds=5), 44_100)
    audio = decode(_flac_of(path, 0), max_duration=max_duration)
    assert (audio.duration, len(audio.samples)) == (5, 44_100 * min(5, max_duration))
    assert (audio.damaged, audio.excerpt) == (False, max_duration == 2)


def test_a_header_that_announces_weeks_takes_no_memory(tmp_path):
    path = _flac_of(write(tmp_path / "a.flac", music(44_100, seconds=5), 44_100), 2**36 - 1)
    audio = decode(path, 22_050)
    assert (audio.duration, audio.damaged) == (5, True)
    base = audio.samples.base
    assert base is not None
    assert base.size <= RESERVED


def test_a_wav_whose_header_was_never_finished_is_decoded(tmp_path):
    path = write(tmp_path / "a.wav", music(44_100, seconds=5), 44_100)
    data = bytearray(path.read_bytes())
    place = data.find(b"data") + 4
    for length in (0, 2**32 - 1):
        data[place : place + 4] = struct.pack("<I", length)
        path.write_bytes(data)
        assert (decode(path).duration, decode(path).damaged) == (5, False)


def test_the_share_of_clipped_samples_is_that_before_resampling(tmp_path):
    y = np.zeros((44_100, 1), np.float32)
    y[:441] = 1
    y[441:882] = -1
    assert decode(write(tmp_path / "a.wav", y, 44_100), 22_050).clipped == pytest.approx(0.02)


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
