"""A folder of audio as a careless owner leaves it: good files among strange and bad ones, all of them synthesised.

By hand: ``python tests/untidy_library.py FOLDER``.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import soundfile

Samples = npt.NDArray[np.float32]
Write = Callable[[Path], object]

SAMPLE_RATE = 22_050
SECONDS = 6.5
"""Enough for every descriptor."""
ENCODERS = {".m4a": "aac", ".aac": "aac", ".wma": "wmav2"}
"""What libsndfile cannot write."""


def sound(path: Path, seconds: float = SECONDS, sample_rate: int = SAMPLE_RATE, channels: int = 1) -> Samples:
    """Return tones in noise, (n_samples, channels), other ones for each name of a file."""
    rng = np.random.default_rng(list(os.fsencode(path.name)))
    time = np.arange(round(seconds * sample_rate))[:, np.newaxis] / sample_rate
    y = 0.3 * np.sin(2 * np.pi * rng.uniform(100, 2000, channels) * time)
    return (y + 0.03 * rng.standard_normal(y.shape)).astype(np.float32)


def write(path: Path, y: Samples | None = None, sample_rate: int = SAMPLE_RATE, **options: Any) -> None:
    """Write sound in the format that the name says, whatever the name is."""
    if path.suffix == ".opus":
        sample_rate, options = 48_000, {"format": "OGG", "subtype": "OPUS"}
    y = sound(path, sample_rate=sample_rate) if y is None else y
    new = path.with_name(f"new{path.suffix}")
    if codec := options.pop("codec", ENCODERS.get(path.suffix)):
        _encode(new, codec, y, sample_rate)
    else:
        soundfile.write(new, y, sample_rate, **options)
    new.rename(path)


def cut(path: Path, *, share: float = 0.0, n_bytes: int = 0) -> None:
    """Write sound of which only the first share of the bytes is there, or so many."""
    write(path)
    os.truncate(path, n_bytes or int(path.stat().st_size * share))


def spoilt(path: Path, *, value: float) -> None:
    """Write sound with one sample of this value."""
    y = sound(path)
    y[SAMPLE_RATE] = value
    write(path, y, subtype="FLOAT")


def constant(path: Path, *, value: float, seconds: float = SECONDS) -> None:
    """Write a constant, a minute at a time."""
    left = round(seconds * SAMPLE_RATE)
    with soundfile.SoundFile(path, "w", SAMPLE_RATE, 1) as file:
        while left:
            part = min(left, 60 * SAMPLE_RATE)
            file.write(np.full(part, value, np.float32))
            left -= part


def damaged(path: Path, *, every: int) -> None:
    """Write sound of which a byte in so many is wrong, but for the first 2,000."""
    write(path)
    data = np.fromfile(path, np.uint8)
    data[2000::every] ^= 0xFF
    data.tofile(path)


def misnamed(path: Path, *, extension: str) -> None:
    """Write sound in another format than the name says."""
    write(path.with_suffix(extension))
    path.with_suffix(extension).rename(path)


def with_wrong_length(path: Path, *, factor: float) -> None:
    """Write an MP3 of variable bit rate whose header counts `factor` times the frames there are."""
    write(path, sound(path, seconds=40), bitrate_mode="VARIABLE")
    data = bytearray(path.read_bytes())
    place = data.index(b"Xing") + 8
    (count,) = struct.unpack_from(">I", data, place)
    struct.pack_into(">I", data, place, int(count * factor))
    path.write_bytes(data)


def with_large_tag(path: Path) -> None:
    """Write an MP3 behind an ID3 tag of 10 MB: a title and a picture."""
    title = b"\0Large"
    picture = b"\0image/png\0\3\0" + bytes(10_000_000)
    frames = b"".join(
        name + struct.pack(">IH", len(body), 0) + body for name, body in ((b"TIT2", title), (b"APIC", picture))
    )
    size = bytes(len(frames) >> shift & 0x7F for shift in (21, 14, 7, 0))
    write(path)
    path.write_bytes(b"ID3\3\0\0" + size + frames + path.read_bytes())


def with_header_that_lies(path: Path) -> None:
    """Write a WAV whose header says that 4 GB follow."""
    write(path)
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, 4, 0xFFFFFFF0)
    struct.pack_into("<I", data, data.index(b"data") + 4, 0xFFFFFF00)
    path.write_bytes(data)


def closed(path: Path) -> None:
    """Write sound that nobody may read."""
    write(path)
    path.chmod(0)


def pcm(n_frames: int, sample_rate: int = SAMPLE_RATE, channels: int = 1) -> Write:
    """Return what writes a WAV with so many frames of sound."""

    def write_frames(path: Path) -> None:
        y = sound(path, seconds=n_frames / sample_rate, sample_rate=sample_rate, channels=channels)
        write(path, y, sample_rate)

    return write_frames


MISBEHAVIOUR = (
    "kills its reader", "never lets its reader go", "kills its decoder", "never lets its decoder go",
)  # fmt: skip
"""What `misbehaving` does to these files, and to the one that shrinks."""
GOOD = [f"good {n:02}.{('wav', 'flac', 'ogg', 'mp3', 'm4a')[n % 5]}" for n in range(20)]
STRANGE: dict[str, Write] = {
    "empty.mp3": Path.touch,
    **{f"cut to {tenth}0 %.mp3": partial(cut, share=tenth / 10) for tenth in range(1, 10)},
    **{f"cut to {tenth}0 %.flac": partial(cut, share=tenth / 10) for tenth in range(1, 10)},
    **{
        f"cut to 50 %.{extension}": partial(cut, share=0.5) for extension in ("wav", "ogg", "opus", "m4a", "aac", "wma")
    },
    "cut inside the header.wav": partial(cut, n_bytes=30),
    "damaged.flac": partial(damaged, every=50_000),
    "damaged.mp3": partial(damaged, every=500),
    "words.mp3": lambda path: path.write_text("These are words, no music.\n" * 99),
    "picture.flac": lambda path: path.write_bytes(PNG),
    "noise.ogg": lambda path: path.write_bytes(np.random.default_rng(0).bytes(9999)),
    "FLAC inside.mp3": partial(misnamed, extension=".flac"),
    "MP3 inside.wav": partial(misnamed, extension=".mp3"),
    "AAC inside.flac": partial(misnamed, extension=".m4a"),
    "header only.wav": pcm(0),
    "header only.flac": partial(cut, n_bytes=42),
    "header only.mp3": lambda path: path.write_bytes(b"ID3\3\0\0\0\0\0\0"),
    "header that lies.wav": with_header_that_lies,
    "1 sample.wav": pcm(1),
    "2,047 samples.wav": pcm(2047),
    "all zeros.wav": partial(constant, value=0),
    "direct current.wav": partial(constant, value=0.25),
    "full scale.wav": partial(constant, value=1.0),
    "NaN.wav": partial(spoilt, value=np.nan),
    "infinity.wav": partial(spoilt, value=-np.inf),
    "too loud.wav": partial(spoilt, value=1e30),
    "3 hours of silence.flac": partial(constant, value=0, seconds=3 * 3600),
    "8 channels.wav": pcm(round(SECONDS * 48_000), 48_000, 8),
    "1 Hz.wav": pcm(4000, 1),
    "8 kHz.wav": pcm(round(SECONDS * 8_000), 8_000),
    "192 kHz.wav": pcm(round(SECONDS * 192_000), 192_000, 2),
    "2 GHz.wav": pcm(50_000, 2_000_000_000),
    "24 bit.wav": partial(write, subtype="PCM_24"),
    "float64.wav": partial(write, subtype="DOUBLE"),
    "header of ten times the length.mp3": partial(with_wrong_length, factor=10),
    "header of a tenth of the length.mp3": partial(with_wrong_length, factor=0.1),
    "tag of 10 MB.mp3": with_large_tag,
    "AAC.m4a": write,
    "ALAC.m4a": partial(write, codec="alac"),
    "Opus.opus": write,
    "WMA.wma": write,
    "Ünïcödé 雨 🎵.wav": write,
    "two\nlines.wav": write,
    "two lines,\nno music.wav": lambda path: path.write_text("These are words, no music."),
    f"{'long ' * 49}!.wav": write,
    os.fsdecode(b"not UTF-8 \xe4\xff.wav"): write,
    "%E4 is no escape.wav": write,
    " -rf $(nothing) '\".wav": write,
    "no permission.wav": closed,
    "pipe.wav": os.mkfifo,
    "link to itself.wav": lambda path: path.symlink_to(path.name),
    "link to nowhere.wav": lambda path: path.symlink_to("nowhere.wav"),
    "link to its folder": lambda path: path.symlink_to("."),
    **{f"{what}.wav": write for what in MISBEHAVIOUR},
    "shrinks while it is read.flac": lambda path: write(path, sound(path, seconds=40)),
}
"""Name → what writes the file."""
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010800000000"
    "3a7e9b550000000a49444154789c63600000000200015e21bc330000000049454e44ae426082"
)
"""A grey pixel."""


def untidy(folder: Path) -> None:
    """Write all the files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in GOOD:
        write(folder / name)
    for name, write_file in STRANGE.items():
        write_file(folder / name)


def _encode(path: Path, codec: str, y: Samples, sample_rate: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=sample_rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(y.reshape(1, -1), "flt", "mono")
        frame.sample_rate = sample_rate
        stream.bit_rate = 64_000  # the WMA encoder refuses its own default
        stream.format = stream.codec_context.codec.audio_formats[0]
        for part in (*av.AudioResampler(format=stream.format).resample(frame), None):
            container.mux(stream.encode(part))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tests/untidy_library.py FOLDER")
    untidy(Path(sys.argv[1]))
