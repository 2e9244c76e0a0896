from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from etl.metadata import Metadata, plain, read_tags, year


def test_gaps_are_filled_and_what_is_known_stays() -> None:
    known = Metadata(title="Row", extra={"mood": "calm"})
    assert known.fill_gaps(Metadata(title="Tag", artist="Tag", year=1999, extra={"x": "y"})) == Metadata(
        title="Row", artist="Tag", year=1999, extra={"mood": "calm"}
    )


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_tags_are_read_from_every_format(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    with soundfile.SoundFile(path, "w", 22_050, 1, format=suffix.upper()) as file:
        file.title, file.artist, file.album, file.genre, file.date = "Sky", "Ann", "Air", "Folk", "2008-11-26"
        file.write(np.zeros(22_050))
    assert read_tags(str(path)) == Metadata("Sky", "Ann", "Air", "Folk", 2008)


@pytest.mark.parametrize("content", [b"", b"just text", b"ID3\x04\x00\x00\xff\xff\xff\xff", b"OggS" + b"\xff" * 50])
@pytest.mark.parametrize("suffix", ["mp3", "ogg", "flac", "m4a", "aac"])
def test_a_file_without_readable_tags_has_none(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content)
    assert read_tags(str(path)) == Metadata()
    assert read_tags(str(tmp_path / "missing.mp3")) == Metadata()


@given(st.text(st.characters(exclude_categories=[])))
def test_plain_text_is_one_line_that_can_be_stored(text: str) -> None:
    line = plain(text)
    if line is not None:
        assert line == line.strip() != ""
        assert line.encode("utf-8").decode("utf-8").splitlines() == [line]
        assert plain(line) == line


@pytest.mark.parametrize("word", ["None", "NA", "nan", "null", "O'Brien", "Ænima", "01"])
def test_words_that_look_like_nothing_are_words(word: str) -> None:
    assert plain(f" {word}\n") == word


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2008-11-26 01:44:45", 2008),
        ("1998", 1998),
        ("1998.0", 1998),
        ("26/11/2008", 2008),
        ("Oct 1969", 1969),
        ("12345", None),
        ("0", None),
        ("", None),
        (None, None),
    ],
)
def test_a_year_is_found_in_a_date_of_any_precision(text: str | None, expected: int | None) -> None:
    assert year(text) == expected
