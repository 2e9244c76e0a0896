"""What makes two files the same recording: the encoded audio, whatever the name and the tags."""

from __future__ import annotations

import hashlib
from pathlib import Path

import av

from features.audio import require_file, unreadable

__all__ = ["packets_digest"]


def packets_digest(path: Path) -> str:
    """Return a digest of the encoded audio packets (128 bits, BLAKE2b, hexadecimal).

    The packets of the first audio stream are demuxed by PyAV and not decoded, so that moving, renaming and re-tagging
    change nothing. Where that fails or finds none, it is the digest of the whole file.

    Raises
    ------
    AudioError
        With stage ``'read'`` if the file cannot be read.
    """
    require_file(path)
    try:
        return _of_packets(path) or _of_file(path)
    except av.FFmpegError:
        return _of_file(path)


def _of_packets(path: Path) -> str | None:
    packets = hashlib.blake2b(digest_size=16)
    n_bytes = 0
    with av.open(f"file:{path}", metadata_errors="replace") as container:
        for packet in container.demux(container.streams.audio[0]) if container.streams.audio else ():
            packets.update(packet)
            n_bytes += packet.size
    return packets.hexdigest() if n_bytes else None


def _of_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        raise unreadable(error) from error
