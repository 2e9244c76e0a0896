"""Decoding with libsndfile, by soundfile: WAV, AIFF, FLAC, Ogg, MP3."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from io import FileIO
from pathlib import Path

import numpy as np
import soundfile

from core.errors import AudioError
from features.ffmpeg import PADDING, SETTLE, TAGS, TOLERANCE, MisledError, declares_length, packets_duration
from features.mono import BLOCK, Audio, Mono, n_samples

_CUT_SHORT = re.compile(r"^ ?(data|SSND) : (?!4294967295).*should be|lacks an end-of-stream bit", re.MULTILINE)
"""What libsndfile's log says of a WAV, AIFF or Ogg that is cut short; a WAV of 2³² − 1 bytes was written to a pipe."""


class _SoundFile(soundfile.SoundFile):  # type: ignore[misc]  # soundfile is untyped
    """Reads on without the seek that follows each block otherwise: it takes time, and after it MP3 has other bits."""

    def seekable(self) -> bool:
        return False


def decode(path: Path, sample_rate: int | None, max_duration: float) -> Audio:
    """Decode a file, of a long one the middle; parameters and result as in `features.audio.decode`.

    Raises
    ------
    MisledError
        If the header is wrong about the length.
    soundfile.SoundFileError
        If libsndfile cannot read it.
    """
    with path.open("rb", buffering=0) as raw, _SoundFile(raw.fileno(), closefd=False) as file:
        wanted = min(file.frames, n_samples(max_duration, file.samplerate))
        start = (file.frames - wanted) // 2
        settle = min(start, int(SETTLE * file.samplerate))
        if start:
            file.seek(start - settle)
        mono = Mono(file.samplerate, file.channels, sample_rate, settle / file.samplerate, wanted / file.samplerate)
        buffer = np.empty((max(1, BLOCK // file.channels), file.channels), np.float32)
        while not mono.full and len(block := file.read(out=buffer)):
            mono.take(block)
        missing = wanted - mono.n_taken
        much = TOLERANCE * wanted
        if not mono.n_taken or (start and missing > much) or _goes_on(path, raw, file, start + mono.n_taken):
            raise MisledError
        if file.format == "MP3":
            missing = missing > much and declares_length(path)
        return mono.audio(
            codec=(file.format if file.format in ("FLAC", "MP3") else file.subtype).lower(),
            decoder=f"libsndfile {soundfile.__libsndfile_version__}",
            duration=file.frames / file.samplerate if start else mono.seconds,
            damaged=missing > 0 or _CUT_SHORT.search(file.extra_info) is not None,
            excerpt=start > 0,
        )


def duration(path: Path) -> float:
    """Return what the header says of the length, s; 0 where there is nothing that libsndfile can read."""
    with suppress(soundfile.SoundFileError):
        return float(soundfile.info(os.fsencode(path)).duration)
    return 0.0


def _goes_on(path: Path, raw: FileIO, file: soundfile.SoundFile, stop: int) -> bool:
    """Return whether there is more audio than the header says, where decoding stopped too early in the file."""
    size, share = os.fstat(raw.fileno()).st_size, stop / file.frames
    promised: float = file.frames / file.samplerate
    if share * size - raw.tell() <= (TAGS if share == 1 else share * size / 2):
        return False
    with suppress(AudioError):
        return packets_duration(path) > (1 + TOLERANCE) * promised + PADDING
    return False
