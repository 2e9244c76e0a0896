"""Names: topics, groups, headers, run ids, and paths and URLs as they may be stored or printed."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

CURRENT = "current"
"""The key of the runs topic that names the run in force."""
REQUESTED = "requested"
"""The key of the runs topic that names the run that the follower is to put in force."""
UNCLUSTERED = "unclustered"
"""Stands for a cluster id where a track is too far from every centre."""


@dataclass(frozen=True, slots=True)
class Names:
    """Every topic, consumer group and transactional id, after an optional prefix."""

    prefix: str = ""

    @property
    def tracks(self) -> str:
        """The latest `Track` of each `track_id`; compacted."""
        return f"{self.prefix}tracks.features.v1"

    @property
    def failed(self) -> str:
        """The latest `Failure` of each path digest; compacted."""
        return f"{self.prefix}tracks.failed.v1"

    @property
    def dead_letters(self) -> str:
        """Records that `load` could not take, bytes unchanged."""
        return f"{self.tracks}.dlq"

    @property
    def members(self) -> str:
        """The ledger: what was last sent of each track; compacted."""
        return f"{self.prefix}clusters.members.v1"

    @property
    def runs(self) -> str:
        """The published runs, and the keys `CURRENT` and `REQUESTED`; compacted."""
        return f"{self.prefix}clusters.runs.v1"

    @property
    def spaces(self) -> str:
        """The same runs in full, so that a store that lost them can take them back; compacted."""
        return f"{self.prefix}clusters.spaces.v1"

    @property
    def load_group(self) -> str:
        """The consumer group of `load`."""
        return f"{self.prefix}murmur.load"

    @property
    def dead_letter_group(self) -> str:
        """The consumer group that takes dead letters off their topic."""
        return f"{self.prefix}murmur.dlq"

    @property
    def follow_group(self) -> str:
        """The consumer group of the publisher that follows the tracks."""
        return f"{self.prefix}murmur.follow"

    @property
    def publisher(self) -> str:
        """The ``transactional.id`` of all writing to cluster topics."""
        return f"{self.prefix}murmur.publish"

    def cluster(self, cluster_id: str) -> str:
        """Return the topic of a cluster's members; compacted."""
        return f"{self.prefix}clusters.{cluster_id}.tracks.v1"

    def cluster_of(self, topic: str) -> str | None:
        """Return the cluster id of a cluster topic, None for any other topic."""
        found = re.fullmatch(re.escape(self.prefix) + r"clusters\.([a-z0-9]+)\.tracks\.v1", topic)
        return found[1] if found else None


def cloud_event(kind: str, key: str, rev: int, feature_set: str = "") -> tuple[tuple[str, bytes], ...]:
    """Return the headers of a message: CloudEvents' Kafka binding, `rev` and `feature_set`.

    Parameters
    ----------
    kind : str
        The type of the record, such as ``'Track'``.
    key : str
        The message's key.
    rev : int
        The record's revision.
    feature_set : str
        Left out where empty.
    """
    headers = (
        ("ce_specversion", b"1.0"),
        ("ce_id", f"{key}@{rev}".encode()),
        ("ce_type", f"murmuration.{kind}.v1".encode()),
        ("ce_source", b"murmuration"),
        ("ce_time", utc_now().encode()),
        ("content-type", b"application/json"),
        ("rev", str(rev).encode()),
    )
    return (*headers, ("feature_set", feature_set.encode())) if feature_set else headers


def utc_now() -> str:
    """Return the time in UTC, ISO 8601."""
    return utc(datetime.now(UTC))


def utc(moment: datetime) -> str:
    """Return a moment in UTC, ISO 8601."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def digest(data: bytes) -> str:
    """Return a digest of 128 bits in hexadecimal (BLAKE2b)."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def path_text(path: str | os.PathLike[str]) -> str:
    """Return a path as text that can be stored; bytes that are not UTF-8 become ``%XX``."""
    return re.sub("[\udc80-\udcff]", lambda byte: f"%{ord(byte[0]) - 0xDC00:02X}", os.fspath(path))


def may_be_escaped(text: str) -> bool:
    """Return whether a stored path may be one that `path_text` escaped; a file may also be named so."""
    raw = re.sub(rb"%([89A-F][0-9A-F])", lambda byte: bytes.fromhex(byte[1].decode()), text.encode())
    return raw != text.encode() and path_text(raw.decode(errors="surrogateescape")) == text


def path_digest(path: str | os.PathLike[str]) -> str:
    """Return the key of a path, absolute or stored text alike."""
    return digest(path_text(path).encode())


def bare_url(url: str) -> str:
    """Return a URL without user info and options: what may be printed.

    Where an ``@`` behind the first ``?`` leaves open whether a password goes on there, only the scheme is left.
    """
    scheme, rest = re.fullmatch(r"([\w+.-]+://|)(.*)", url, re.DOTALL).groups()  # type: ignore[union-attr]  # matches all
    place, _, options = rest.partition("?")
    if scheme == "sqlite://":
        return url
    return f"{scheme}…" if "@" in options else f"{scheme}{place.rpartition('@')[2]}"


def sqlite_path(url: str) -> Path:
    """Return the file of a ``sqlite:///relative.db`` or ``sqlite:////absolute.db`` URL."""
    return Path(url.removeprefix("sqlite:///") or "murmur.db")


def printable(text: str) -> str:
    """Return a text that may stand in a log and on a terminal: what would steer these is escaped."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
