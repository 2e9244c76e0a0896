"""What is known of a recording beside its sound: from a catalogue's row, from a file's tags."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

FIELDS = ("title", "artist", "album", "genre")


@dataclass(frozen=True, slots=True)
class Metadata:
    """The fields of a `Track` that do not come from its sound."""

    title: str | None = None
    artist: str | None = None
    album: str | None = None
    genre: str | None = None
    year: int | None = None
    extra: dict[str, str] = field(default_factory=dict)

    def fill_gaps(self, other: Metadata) -> Metadata:
        """Take from `other` what is missing here, but for `extra`."""
        gaps = {name: getattr(other, name) for name in (*FIELDS, "year") if getattr(self, name) is None}
        return replace(self, **gaps)


def read_tags(path: str) -> Metadata:
    """Return what a file's tags say; nothing where they cannot be read."""
    from tinytag import TinyTag, TinyTagException

    try:
        tags = TinyTag.get(path, duration=False)
    except (TinyTagException, OSError):
        return Metadata()
    return Metadata(
        title=plain(tags.title),
        artist=plain(tags.artist),
        album=plain(tags.album),
        genre=plain(tags.genre),
        year=year(tags.year),
    )


def plain(text: str | None) -> str | None:
    """Return a text on one line, without control characters and lone surrogates; None if it is empty."""
    return " ".join(re.sub("[\0-\x1f\x7f\ud800-\udfff]+", " ", text or "").split()) or None


def year(text: str | None) -> int | None:
    """Return the year of a date however it is written, None if there is none from 1000 to 2099."""
    found = re.search(r"(?<!\d)(1\d{3}|20\d{2})(?!\d)", text or "")
    return int(found[1]) if found else None
