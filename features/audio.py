"""From a file to mono samples: decoding, mixing, resampling."""

from __future__ import annotations

import math
import os
import stat
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import librosa
import numpy as np
import numpy.typing as npt
import soundfile

from core.errors import AudioError

Samples = npt.NDArray[np.float32]
Blocks = list[Samples]

BLOCK = 1 << 18
"""Frames decoded at a time, so that a header that lies about its length allocates nothing."""
LOUDEST = 1e12
"""Full scale is 1; the power of anything louder than this overflows float32."""

_CONVERT = "play it to check; if it plays, convert it to WAV or FLAC"
_stderr_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Audio:
    """A decoded file."""

    samples: Samples
    """(n_samples,) the mean of the channels; full scale is 1."""
    sample_rate: int
    """Native, Hz."""
    channels: int
    codec: str
    decoder: str
    """Decoding library and its version."""
    damaged: bool
    """Whether there was less to decode than the file promises, or some of it could not be decoded."""

    @property
    def duration(self) -> float:
        """Seconds."""
        return len(self.samples) / self.sample_rate


def decode(path: Path) -> Audio:
    """Decode a file to mono at its own sample rate.

    libsndfile decodes what it can, FFmpeg (by PyAV) the rest: AAC, ALAC, WMA, and files that libsndfile gives up on. A
    truncated or damaged file is taken as a player takes it: what can be decoded counts, damaged packets are left out,
    and only a file without any decodable audio fails.

    Raises
    ------
    AudioError
        Stage ``'read'`` if the file cannot be opened or is empty; ``'decode'`` if nothing in it can be decoded, or if
        what was decoded holds no samples, NaN, infinity, or samples above `LOUDEST`.
    """
    require_file(path)
    with _silenced_stderr():
        try:
            audio = _decode_with_libsndfile(path)
        except soundfile.SoundFileError:
            audio = _decode_with_ffmpeg(path)
    _require_samples(audio.samples)
    return audio


def resample(audio: Audio, sample_rate: int) -> Samples:
    """Resample to the analysis rate (soxr, high quality), to the same bits as ``librosa.load(path, sr=sample_rate)``.

    Parameters
    ----------
    audio : Audio
        As `decode` returns it.
    sample_rate : int
        Hz.

    Returns
    -------
    (ceil(n_samples · sample_rate / audio.sample_rate),) float32
    """
    y: Samples = librosa.resample(audio.samples, orig_sr=audio.sample_rate, target_sr=sample_rate, res_type="soxr_hq")
    return y


def require_file(path: Path) -> None:
    """Check that a path is a regular file, readable and not empty.

    Raises
    ------
    AudioError
        With stage ``'read'``.
    """
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise AudioError("is not a regular file", stage="read", advice="leave it out of the audio folder")
        with path.open("rb"):
            pass
    except OSError as error:
        raise unreadable(error) from error
    if info.st_size == 0:
        raise AudioError("the file is empty", stage="read", advice="copy or download it again")


def unreadable(error: OSError) -> AudioError:
    """Say why the system did not let us read a file."""
    reason = error.strerror or type(error).__name__
    return AudioError(f"cannot be read: {reason}", stage="read", advice="check that the file is there and may be read")


def mix(samples: Samples) -> Samples:
    """Return the mean of the channels, to the same bits as ``librosa.to_mono``.

    Parameters
    ----------
    samples : (n_channels, n_samples) float32

    Returns
    -------
    (n_samples,) float32
    """
    with np.errstate(over="ignore", invalid="ignore"):  # NaN and infinity are reported by `decode`
        if len(samples) == 2:  # many times faster than a mean over an axis of two
            mono: Samples = (samples[0] + samples[1]) / np.float32(2)
        else:
            mono = samples.mean(axis=0)
    return mono


def _decode_with_libsndfile(path: Path) -> Audio:
    with soundfile.SoundFile(os.fsencode(path)) as file:
        blocks = []
        while len(block := file.read(BLOCK, dtype="float32", always_2d=True)):
            blocks.append(mix(block.T))
        damaged = sum(map(len, blocks)) < file.frames
        codec = file.format if file.format in ("FLAC", "MP3") else file.subtype
        decoder = f"libsndfile {soundfile.__libsndfile_version__}"
        return Audio(_joined(blocks), file.samplerate, file.channels, codec.lower(), decoder, damaged)


def _decode_with_ffmpeg(path: Path) -> Audio:
    tracks: dict[tuple[str, int, int], Blocks] = defaultdict(list)
    dropped: list[av.FFmpegError] = []
    try:
        # The prefix keeps FFmpeg from reading a protocol into a name with a colon.
        with av.open(f"file:{path}", metadata_errors="replace") as container:
            if not container.streams.audio:
                raise AudioError("holds no audio", advice="leave it out of the audio folder")
            stream = container.streams.audio[0]
            for sample_rate, samples in _converted(_frames(stream, dropped)):
                tracks[stream.codec_context.codec.canonical_name, sample_rate, len(samples)].append(mix(samples))
    except av.FFmpegError as error:
        raise AudioError(f"holds no audio that can be decoded: {error.strerror}", advice=_CONVERT) from error
    if not tracks:
        raise AudioError("holds no audio that can be decoded", advice=_CONVERT)
    # A damaged packet may pass for one in another sample rate: what most frames have counts.
    (codec, sample_rate, channels), blocks = max(tracks.items(), key=lambda track: sum(map(len, track[1])))
    decoder = f"FFmpeg {av.ffmpeg_version_info} by PyAV {av.__version__}"
    return Audio(_joined(blocks), sample_rate, channels, codec, decoder, damaged=bool(dropped))


def _frames(stream: Any, dropped: list[av.FFmpegError]) -> Iterator[Any]:
    """Yield what can be decoded; a damaged packet is left out, as FFmpeg's own tools do, and its error kept."""
    for packet in stream.container.demux(stream):
        try:
            yield from packet.decode()
        except av.FFmpegError as error:
            dropped.append(error)


def _converted(frames: Iterator[Any]) -> Iterator[tuple[int, Samples]]:
    """Yield the sample rate (Hz) and the samples, (n_channels, n_samples) float32 with full scale 1, of each frame.

    FFmpeg interleaves the channels first, because PyAV misreads the planes of eight and more.
    """
    converters: dict[tuple[int, str, str], Any] = defaultdict(lambda: av.AudioResampler(format="flt"))
    for frame in frames:
        converter = converters[frame.sample_rate, frame.layout.name, frame.format.name]
        for packed in converter.resample(frame):
            yield frame.sample_rate, packed.to_ndarray().reshape(-1, frame.layout.nb_channels).T


def _joined(blocks: Blocks) -> Samples:
    return np.concatenate(blocks) if blocks else np.empty(0, np.float32)


def _require_samples(samples: Samples) -> None:
    if not len(samples):
        raise AudioError("holds no samples", advice="copy or download it again")
    peak = float(max(samples.max(), -samples.min()))
    if not math.isfinite(peak):
        raise AudioError("holds samples that are NaN or infinite", advice="export it again from what made it")
    if peak > LOUDEST:
        raise AudioError(f"holds samples of up to {peak:.0e} where 1 is full scale", advice="normalise it")


@contextmanager
def _silenced_stderr() -> Iterator[None]:
    """Point file descriptor 2 at nothing: mpg123, inside libsndfile, reports each damaged frame there.

    The descriptor belongs to the process, so threads take turns.
    """
    with _stderr_lock, Path(os.devnull).open("wb") as nothing:
        kept = os.dup(2)
        os.dup2(nothing.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
