"""What is found in a file without decoding it: which recording it is, and how long."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from core.errors import AudioError
from features import libsndfile
from features.audio import require_file, silenced_stderr, unreadable
from features.ffmpeg import demuxed, promised_duration

__all__ = ["Probe", "probe"]


@dataclass(frozen=True, slots=True)
class Probe:
    """What was found."""

    digest: str
    """Of the encoded audio packets, whatever the name and the tags: 128 bits, BLAKE2b, hexadecimal."""
    duration: float | None
    """Of the packets, s; None if they do not tell."""


def probe(path: Path) -> Probe:
    """Read a file's packets and headers.

    The packets of the first audio stream are demuxed by PyAV and not decoded: moving, renaming and re-tagging change
    nothing. Where that fails or finds none, the digest is that of the whole file, and libsndfile may know the duration.

    Raises
    ------
    AudioError
        With stage ``'read'`` if the file cannot be read.
    """
    require_file(path)
    found = None
    with suppress(AudioError):
        found = _of_packets(path)
    with silenced_stderr():
        return found or Probe(_of_file(path), libsndfile.duration(path))


def _of_packets(path: Path) -> Probe | None:
    digest = hashlib.blake2b(digest_size=16)
    n_bytes = n_ticks = 0
    with demuxed(path) as stream:
        for packet in stream.container.demux(stream):
            digest.update(packet)
            n_bytes += packet.size
            n_ticks += packet.duration or 0
        duration = float(n_ticks * stream.time_base) or promised_duration(stream)
    return Probe(digest.hexdigest(), duration) if n_bytes else None


def _of_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        raise unreadable(error) from error
