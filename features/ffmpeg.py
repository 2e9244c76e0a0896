"""Decoding and demuxing with FFmpeg, by PyAV: AAC, ALAC, WMA, and what libsndfile gives up on."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import av

from core.errors import PLAY_AND_CONVERT, AudioError
from features.mono import BLOCK, Audio, Mono, Samples

SETTLE = 0.2
"""Seconds decoded before an excerpt and left out: a decoder takes some frames until it is right."""
TOLERANCE = 0.01
"""Share by which a length may differ from the header's: encoders pad, and some headers hold an estimate."""
PADDING = 0.1
"""Seconds by which it may differ besides, in a short file."""
TAGS = 1 << 16
"""Bytes that may stand behind the last frame of a sound file."""
_ESTIMATED = ("aac", "ac3", "dts", "eac3", "mp3")
"""FFmpeg's formats that need not hold their length: it estimates it from the bit rate."""


class MisledError(Exception):
    """The header does not know the length, or is wrong about it."""


@contextmanager
def demuxed(path: Path) -> Iterator[Any]:
    """Open a file with FFmpeg and yield its first audio stream.

    Raises
    ------
    AudioError
        With stage ``'decode'`` if FFmpeg cannot open it, finds no audio, or gives up.
    """
    try:  # the prefix keeps FFmpeg from reading a protocol into a name with a colon
        with av.open(f"file:{path}", metadata_errors="replace") as container:
            if not container.streams.audio:
                raise AudioError("holds no audio", advice="leave it out of the audio folder")
            yield container.streams.audio[0]
    except av.FFmpegError as error:
        raise _undecodable(error) from error


def promised_duration(stream: Any) -> float | None:
    """Return what a header says of the length, s; for some formats FFmpeg's estimate; None if it says nothing."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return stream.container.duration / 1e6 if stream.container.duration else None


def decode(path: Path, sample_rate: int | None, max_duration: float) -> Audio:
    """Decode a file, of a long one the middle; parameters and result as in `features.audio.decode`.

    Raises
    ------
    MisledError
        If the header is wrong about the length, or does not know it.
    AudioError
        If nothing in it can be decoded.
    """
    dropped: list[av.FFmpegError] = []
    with demuxed(path) as stream:
        promised = promised_duration(stream)
        if promised is None and math.isfinite(max_duration):
            raise MisledError
        start = max(0.0, ((promised or 0.0) - max_duration) / 2)
        if start:
            skip, frames = _sought(stream, start, dropped)
            mono = _mixed(frames, dropped, sample_rate, skip, max_duration)
        else:
            mono = _mixed(_frames(stream, dropped), dropped, sample_rate, 0.0, (1 + TOLERANCE) * max_duration)
        if mono.seconds < (1 - TOLERANCE) * max_duration if start else mono.full:
            raise MisledError
        return _decoded_by_ffmpeg(
            mono,
            stream,
            duration=promised if start and promised else mono.seconds,
            damaged=bool(dropped) or (not start and _breaks_promise(path, stream, mono.seconds)),
            excerpt=start > 0,
        )


def decode_from_the_beginning(path: Path, sample_rate: int | None, max_duration: float) -> Audio:
    """Decode without a seek, the header being of no use: the middle of what is there; if that is nothing, its start."""
    dropped: list[av.FFmpegError] = []
    there = packets_duration(path)
    start = max(0.0, (there - max_duration) / 2)
    with demuxed(path) as stream:
        mono = _mixed(_frames(stream, dropped), dropped, sample_rate, start, max_duration)
        if start and not mono.n_taken:
            stream.container.seek(0)
            mono = _mixed(_frames(stream, dropped), dropped, sample_rate, 0.0, max_duration)
        return _decoded_by_ffmpeg(
            mono,
            stream,
            duration=there if start else mono.seconds,
            damaged=bool(dropped) or _breaks_promise(path, stream, there),
            excerpt=start > 0,
        )


def _decoded_by_ffmpeg(mono: Mono, stream: Any, *, duration: float, damaged: bool, excerpt: bool) -> Audio:
    codec = stream.codec_context.codec.canonical_name
    decoder = f"FFmpeg {av.ffmpeg_version_info} by PyAV {av.__version__}"
    return mono.audio(codec, decoder, duration=duration, damaged=damaged, excerpt=excerpt)


def _breaks_promise(path: Path, stream: Any, seconds: float) -> bool:
    """Return whether a header says another length than what was found, s."""
    promised = promised_duration(stream)
    form = stream.container.format.name
    if promised is None or (form in _ESTIMATED and not (form == "mp3" and declares_length(path))):
        return False
    return abs(promised - seconds) > TOLERANCE * promised + PADDING


def declares_length(path: Path) -> bool:
    """Return whether an MP3 says how long it is; of others the length is estimated from the first frame."""
    with path.open("rb") as file:
        head = file.read(10)
        if head.startswith(b"ID3"):
            file.seek(head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9], os.SEEK_CUR)
        return re.search(b"Xing|Info|VBRI", head + file.read(TAGS)) is not None


def packets_duration(path: Path) -> float:
    """Return how much audio is there, s, whatever the header says."""
    with demuxed(path) as stream:
        return float(sum(packet.duration or 0 for packet in _packets(stream, [])) * stream.time_base)


def _sought(stream: Any, start: float, dropped: list[av.FFmpegError]) -> tuple[float, Iterator[Any]]:
    """Seek to before `start`, s; return how many seconds of the frames that follow lie before it, and the frames."""
    origin = stream.start_time or 0
    try:
        stream.container.seek(origin + int((start - SETTLE) / stream.time_base), stream=stream)
    except av.FFmpegError as error:
        raise MisledError from error
    frames = _frames(stream, dropped)
    first = next(frames, None)
    if first is None:
        raise MisledError
    at = start if first.pts is None else float((first.pts - origin) * first.time_base)
    return max(0.0, start - at), chain([first], frames)


def _mixed(
    frames: Iterator[Any], dropped: list[av.FFmpegError], sample_rate: int | None, skip: float, most: float
) -> Mono:
    """Mix frames; where they differ in rate or channels, as a damaged packet may, what most of them have counts."""
    found: dict[tuple[int, int], Mono] = {}
    for native, block in _converted(frames):
        key = native, block.shape[1]
        if key not in found:
            found[key] = Mono(*key, sample_rate, skip, most)
        found[key].take(block)
        if found[key].full:
            break
    if not found and dropped:
        raise _undecodable(dropped[-1])
    return max(found.values(), key=lambda mono: mono.seconds, default=Mono(1, 1, None, 0.0, 0.0))


def _converted(frames: Iterator[Any]) -> Iterator[tuple[int, Samples]]:
    """Yield the sample rate (Hz) and the samples, (n_samples, n_channels) float32 with full scale 1, in larger blocks.

    FFmpeg interleaves the channels, because PyAV misreads the planes of eight and more.
    """
    converters: dict[tuple[int, int, str, str], Any] = {}
    for frame in frames:
        kind = frame.sample_rate, frame.layout.nb_channels, frame.layout.name, frame.format.name
        if kind not in converters:
            converters[kind] = av.AudioResampler(format="flt", frame_size=max(1, BLOCK // kind[1]))
        frame.pts = None  # a gap is no silence
        yield from _unpacked(kind, converters[kind].resample(frame))
    for kind, converter in converters.items():
        yield from _unpacked(kind, converter.resample(None))


def _unpacked(kind: tuple[int, int, str, str], blocks: list[Any]) -> Iterator[tuple[int, Samples]]:
    for packed in blocks:
        yield kind[0], packed.to_ndarray().reshape(-1, kind[1])


def _frames(stream: Any, dropped: list[av.FFmpegError]) -> Iterator[Any]:
    """Yield what can be decoded; a damaged packet is left out, as FFmpeg's own tools do, and its error kept."""
    for packet in _packets(stream, dropped):
        try:
            yield from packet.decode()
        except av.FFmpegError as error:
            dropped.append(error)


def _packets(stream: Any, dropped: list[av.FFmpegError]) -> Iterator[Any]:
    try:
        yield from stream.container.demux(stream)
    except av.FFmpegError as error:
        dropped.append(error)


def _undecodable(error: av.FFmpegError) -> AudioError:
    return AudioError(f"holds no audio that can be decoded: {error.strerror}", advice=PLAY_AND_CONVERT)
