"""Identity: the encoded audio alone makes a recording."""

from __future__ import annotations

import os
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from core.errors import AudioError
from features.identity import probe


def digest(path):
    return probe(path).digest


def write(path, pitch=440.0, sr=44_100, seconds=1):
    y = 0.3 * np.sin(2 * np.pi * pitch / sr * np.arange(seconds * sr))
    if path.suffix != ".m4a":
        soundfile.write(path, y, sr)
        return path
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=sr, layout="mono")
        frame = av.AudioFrame.from_ndarray(y.astype(np.float32)[np.newaxis], "fltp", "mono")
        frame.sample_rate = sr
        for part in (frame, None):
            container.mux(stream.encode(part))
    return path


def retag(path, **tags):
    """Copy a file's packets into a new file with other tags."""
    copy = path.with_stem("retagged")
    with av.open(str(path)) as old, av.open(str(copy), "w") as new:
        new.metadata.update(tags)
        stream = new.add_stream_from_template(old.streams.audio[0])
        for packet in old.demux(old.streams.audio[0]):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    return copy


@pytest.mark.parametrize("extension", ["mp3", "flac", "ogg", "m4a", "wav"])
def test_new_tags_keep_the_digest(tmp_path, extension):
    path = write(tmp_path / f"a.{extension}")
    copy = retag(path, title="Another name", comment="x" * 5000)
    assert copy.read_bytes() != path.read_bytes()
    assert digest(copy) == digest(path)


def test_id3_tags_before_and_behind_an_mp3_keep_the_digest(tmp_path):
    path = write(tmp_path / "a.mp3")
    before = digest(path)
    title = b"TIT2\x00\x00\x00\x06\x00\x00\x00Title"
    path.write_bytes(
        b"ID3\x03\x00\x00\x00\x00\x02\x00" + title.ljust(256, b"\0") + path.read_bytes() + b"TAG".ljust(128, b"\0")
    )
    assert digest(path) == before


def test_tags_that_are_not_utf8_keep_the_digest(tmp_path):
    path = write(tmp_path / "a.m4a")
    before = digest(path)
    tagged = path.read_bytes().replace(b"Lavf", b"L\xe4vf")
    assert tagged != path.read_bytes()
    path.write_bytes(tagged)
    assert digest(path) == before


def test_a_new_name_keeps_the_digest(tmp_path):
    path = write(tmp_path / "a.ogg")
    before = digest(path)
    moved = path.rename(tmp_path / os.fsdecode(b"\xe9: b.ogg"))
    assert digest(moved) == before


@pytest.mark.parametrize("extension", ["mp3", "flac", "ogg", "m4a", "wav"])
def test_another_recording_has_another_digest(tmp_path, extension):
    digests = {digest(write(tmp_path / f"{pitch}.{extension}", pitch)) for pitch in (440.0, 441.0)}
    assert len(digests) == 2


def test_a_file_that_cannot_be_demuxed_has_the_digest_of_its_bytes(tmp_path):
    digests = []
    for text in ("no music", "no music", "no music either"):
        (tmp_path / "a.mp3").write_text(text * 50)
        digests.append(digest(tmp_path / "a.mp3"))
    assert digests[0] == digests[1] != digests[2]


def test_files_without_any_audio_packet_are_not_copies_of_each_other(tmp_path):
    for channels in (1, 2):
        soundfile.write(tmp_path / f"{channels}.wav", np.empty((0, channels)), 44_100)
    assert digest(tmp_path / "1.wav") != digest(tmp_path / "2.wav")


def test_the_digest_is_128_bits_in_hexadecimal(tmp_path):
    assert len(bytes.fromhex(digest(write(tmp_path / "a.wav")))) == 16


@pytest.mark.parametrize("extension", ["mp3", "flac", "ogg", "m4a", "wav"])
def test_the_duration_is_found_without_decoding(tmp_path, extension):
    path = write(tmp_path / f"a.{extension}", seconds=5)
    assert probe(path).duration == pytest.approx(5, abs=0.2)


def test_the_duration_is_that_of_the_packets_whatever_the_header_says(tmp_path):
    path = write(tmp_path / "a.mp3", seconds=5)
    data = bytearray(path.read_bytes())
    place = data.find(b"Xing") + 8
    assert place > 8
    data[place : place + 4] = (10**6).to_bytes(4, "big")
    path.write_bytes(data)
    assert probe(path).duration == pytest.approx(5, abs=0.2)


def test_what_is_no_audio_has_no_duration(tmp_path):
    (tmp_path / "a.mp3").write_text("no music")
    assert probe(tmp_path / "a.mp3").duration == 0


def test_a_missing_file_cannot_be_read(tmp_path):
    with pytest.raises(AudioError, match="No such file") as caught:
        digest(Path(tmp_path / "missing.mp3"))
    assert caught.value.stage == "read"


def test_an_empty_file_and_a_pipe_are_refused_and_not_waited_for(tmp_path):
    (tmp_path / "empty.mp3").touch()
    os.mkfifo(tmp_path / "pipe.mp3")
    for name, message in {"empty.mp3": "empty", "pipe.mp3": "not a regular file"}.items():
        with pytest.raises(AudioError, match=message):
            digest(tmp_path / name)
