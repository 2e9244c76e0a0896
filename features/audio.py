"""From a file to mono samples at the analysis rate."""

from __future__ import annotations

import math
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import soundfile

from core.errors import AudioError
from features import ffmpeg, libsndfile
from features.ffmpeg import MisledError
from features.mono import Audio

_stderr_lock = threading.Lock()


def decode(path: Path, sample_rate: int | None = None, *, max_duration: float = math.inf) -> Audio:
    """Decode a file to mono, resampled to the same bits as ``librosa.load(path, sr=sample_rate)``.

    libsndfile decodes what it can, FFmpeg (by PyAV) the rest: AAC, ALAC, WMA, and files that libsndfile gives up on. A
    truncated or damaged file is taken as a player takes it: what can be decoded counts, damaged packets are left out,
    and only a file without any decodable audio fails. Of a long file only the middle is decoded; where the header is
    wrong about the length, the middle of what is there.

    Parameters
    ----------
    path : Path
        An audio file.
    sample_rate : int, optional
        Of the samples, Hz (soxr, high quality); default: native.
    max_duration : float
        Seconds that are decoded of a longer file.

    Raises
    ------
    AudioError
        Stage ``'read'`` if the file cannot be opened or is empty; ``'decode'`` if nothing in it can be decoded, or if
        what was decoded holds no samples, NaN, infinity, or samples above `LOUDEST`.
    """
    require_file(path)
    with silenced_stderr():
        try:
            return libsndfile.decode(path, sample_rate, max_duration)
        except soundfile.SoundFileError:
            with suppress(MisledError):
                return ffmpeg.decode(path, sample_rate, max_duration)
        except MisledError:
            pass
        except OSError as error:  # it has gone in the meantime
            raise unreadable(error) from error
        return ffmpeg.decode_from_the_beginning(path, sample_rate, max_duration)


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


@contextmanager
def silenced_stderr() -> Iterator[None]:
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
