from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import config
from core.errors import ConfigError
from etl.catalogue import Catalogue, Matches, match, read_catalogue
from etl.folders import AudioFile
from etl.metadata import Metadata

ROOT = "/music"


def read(tmp_path: Path, text: str | bytes, name: str = "tracks.csv", **settings: object) -> Catalogue:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_catalogue(path, config.Catalogue.model_validate(settings))


def matched(catalogue: Catalogue, *paths: str) -> Matches:
    return match(catalogue, [AudioFile(f"{ROOT}/{path}", f"{ROOT}/{path}", 1, 1) for path in paths], ROOT)


def joined(catalogue: Catalogue, *paths: str) -> dict[str, str | None]:
    rows = matched(catalogue, *paths).rows
    return {path.removeprefix(f"{ROOT}/"): row.metadata.title for path, row in rows.items()}


def first(tmp_path: Path, text: str, **settings: object) -> Metadata:
    (row,) = matched(read(tmp_path, text, **settings), "a.mp3").rows.values()
    return row.metadata


@pytest.mark.parametrize(
    ("column", "cell", "path"),
    [
        ("path", "jazz/a.mp3", "jazz/a.mp3"),
        ("path", "./jazz//a.mp3", "jazz/a.mp3"),
        ("path", f"{ROOT}/jazz/a.mp3", "jazz/a.mp3"),
        ("filename", "a.mp3", "jazz/a.mp3"),
        ("filename", "elsewhere/a.mp3", "jazz/a.mp3"),
        ("File Name", "a.mp3", "jazz/a.mp3"),
        ("stem", "a.live", "jazz/a.live.mp3"),
        ("track_id", "2", "000/000002.mp3"),
        ("ID", "0002", "2.mp3"),
        ("id", "0", "0.mp3"),
        ("id", "x7", "x7.ogg"),
        ("filename", "cafe\u0301.mp3", "caf\u00e9.mp3"),
        ("filename", "caf\u00e9.mp3", "cafe\u0301.mp3"),
    ],
)
def test_auto_joins_by_a_well_known_column(tmp_path: Path, column: str, cell: str, path: str) -> None:
    assert joined(read(tmp_path, f"{column},title\n{cell},Blue\n"), path, "other.mp3") == {path: "Blue"}


def test_auto_takes_path_before_filename_before_stem_before_id(tmp_path: Path) -> None:
    cells = {"id": "4", "stem": "3", "filename": "2.mp3", "path": "1.mp3"}
    for expected in ("1.mp3", "2.mp3", "3.mp3", "4.mp3"):
        text = f"{','.join(cells)},title\n{','.join(cells.values())},Blue\n"
        assert list(joined(read(tmp_path, text), "1.mp3", "2.mp3", "3.mp3", "4.mp3")) == [expected]
        cells.popitem()


def test_the_configuration_names_the_join_and_its_column(tmp_path: Path) -> None:
    text = "filename,song_no,title\nb.mp3,7,Blue\n"
    assert joined(read(tmp_path, text, join="id", key="song_no"), "007.mp3", "b.mp3") == {"007.mp3": "Blue"}
    assert joined(read(tmp_path, text, key="FILENAME"), "b.mp3") == {"b.mp3": "Blue"}


def test_ids_are_named_after_the_csv_or_as_configured_and_none_where_there_is_none(tmp_path: Path) -> None:
    text = "filename,track_id,title\na.mp3,2,Blue\nb.mp3,,Green\n"
    rows = matched(read(tmp_path, text, name="my list.csv"), "a.mp3", "b.mp3").rows
    assert [row.track_id for row in rows.values()] == ["my list:2", None]
    rows = matched(read(tmp_path, text, name="fma"), "a.mp3").rows
    assert [row.track_id for row in rows.values()] == ["fma:2"]
    (row,) = matched(read(tmp_path, "filename,title\na.mp3,Blue\n"), "a.mp3").rows.values()
    assert row.track_id is None


def test_well_known_columns_become_fields_and_the_others_extra(tmp_path: Path) -> None:
    text = "filename,Title,ARTIST NAME,album,Genre,Release Date,mood,bpm,,empty\na.mp3,T,A,Al,G,1999-01,calm,90,7,\n"
    assert first(tmp_path, text) == Metadata("T", "A", "Al", "G", 1999, {"mood": "calm", "bpm": "90"})


def test_columns_are_mapped_by_the_configuration(tmp_path: Path) -> None:
    text = "filename,title,Song,style\na.mp3,wrong,right,Dub\n"
    metadata = first(tmp_path, text, columns={"title": "song", "genre": "style"})
    assert metadata == Metadata(title="right", genre="Dub", extra={"title": "wrong"})


@pytest.mark.parametrize("title", ["None", "NA", "nan", "NULL", "-", "007", "1.50", "True", "[untitled]"])
def test_titles_that_look_like_something_else_survive(tmp_path: Path, title: str) -> None:
    assert first(tmp_path, f"filename,title\na.mp3,{title}\n").title == title


def test_list_literals_become_readable(tmp_path: Path) -> None:
    text = """id,name,artists,tags,none\na,Blue,"['Uli', ""O'Hara""]","['x', 'y']",[]\n"""
    metadata = first(tmp_path, text)
    assert (metadata.title, metadata.artist, metadata.extra) == ("Blue", "Uli, O'Hara", {"tags": "x, y"})


def test_a_broken_list_or_a_backslash_in_one_stays_readable(tmp_path: Path) -> None:
    assert first(tmp_path, "filename,artist\na.mp3,['Uli]\n").artist == "['Uli]"
    assert first(tmp_path, "filename,artist\na.mp3,[{[1]: 2}]\n").artist == "[{[1]: 2}]"
    assert first(tmp_path, "filename,artist\na.mp3,['AC\\DC']\n").artist == "AC\\DC"


def test_markup_is_taken_off_and_prose_left_out_of_extra(tmp_path: Path) -> None:
    text = f'filename,note,bio,math\na.mp3,"<p class=""x"">Live\nin <b>Rome</b></p>",{"long " * 50},a < b > c\n'
    assert first(tmp_path, text).extra == {"note": "Live in Rome", "math": "a < b > c"}


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_separators_and_a_byte_order_mark_are_understood(tmp_path: Path, separator: str, mark: bytes) -> None:
    text = mark + "filename,title\na.mp3,Blæ\n".replace(",", separator).encode()
    assert joined(read(tmp_path, text), "a.mp3") == {"a.mp3": "Blæ"}


FMA = """\
,album,album,album,artist,set,track,track,track,track,track
,date_released,id,title,name,subset,genre_top,genres,information,listens,title
track_id,,,,,,,,,,
2,2009-01-05 00:00:00,1,AWOL,"AWOL
Inc",small,Hip-Hop,[21],"<p>long
text</p>",1293,Food
3,,1,AWOL,AWOL Inc,medium,,[21],,514,NA
"""


def test_fma_tracks_csv_is_understood_as_it_is(tmp_path: Path) -> None:
    found = matched(read(tmp_path, FMA, name="fma.csv"), "000/000002.mp3", "000/000003.mp3", "000/000005.mp3")
    assert [row.track_id for row in found.rows.values()] == ["fma:2", "fma:3"]
    assert [row.metadata for row in found.rows.values()] == [
        Metadata("Food", "AWOL Inc", "AWOL", "Hip-Hop", 2009, {"set/subset": "small", "track/listens": "1293"}),
        Metadata("NA", "AWOL Inc", "AWOL", None, None, {"set/subset": "medium", "track/listens": "514"}),
    ]
    assert found.files_without_row == [f"{ROOT}/000/000005.mp3"]


def test_fma_columns_can_be_mapped_too(tmp_path: Path) -> None:
    found = matched(read(tmp_path, FMA, columns={"genre": "track/genres"}), "000/000002.mp3")
    assert [row.metadata.genre for row in found.rows.values()] == ["21"]


def test_rows_without_file_files_without_row_and_repeated_keys_are_told(tmp_path: Path) -> None:
    text = "id,title\n1,One\n2,Two\n2,Two again\n4,Four\n,Nobody\n"
    found = matched(read(tmp_path, text), "1.mp3", "2.mp3", "3.mp3")
    assert [row.metadata.title for row in found.rows.values()] == ["One", "Two"]
    assert found.rows_without_file == ["(empty)", "4"]
    assert found.files_without_row == [f"{ROOT}/3.mp3"]
    assert found.repeated == ["2"]


def test_an_id_in_two_rows_is_told_and_so_is_a_row_with_two_files(tmp_path: Path) -> None:
    text = "filename,id,title\na.mp3,1,One\nb.mp3,1,Two\nc.mp3,,Three\nd.mp3,,Four\n"
    found = matched(read(tmp_path, text), "x/a.mp3", "y/a.mp3", "b.mp3")
    assert found.repeated == ["1"]
    assert found.shared == ["a.mp3"]
    assert [row.metadata.title for row in found.rows.values()] == ["One", "One", "Two"]


def test_a_catalogue_with_a_header_alone_has_no_rows(tmp_path: Path) -> None:
    assert matched(read(tmp_path, "id,title\n"), "1.mp3").files_without_row == [f"{ROOT}/1.mp3"]


def test_the_digest_of_a_row_changes_with_its_id_and_every_field(tmp_path: Path) -> None:
    row = {"filename": "a.mp3", "id": "1", "title": "T", "artist": "A", "album": "Al", "genre": "G", "year": "1999"}
    row["mood"] = "calm"
    digests = set()
    for column in row:
        changed = row | ({column: "2000"} if column != "filename" else {})
        text = f"{','.join(changed)}\n{','.join(changed.values())}\n"
        (found,) = matched(read(tmp_path, text), "a.mp3").rows.values()
        digests.add(found.digest)
    assert len(digests) == len(row)


@pytest.mark.parametrize(
    ("text", "settings", "says"),
    [
        ("title,artist\nBlue,Ann\n", {}, "no column names the files; it has title, artist; set catalogue.key"),
        ("title,artist\n", {"join": "id"}, "no column names the files; it has title, artist; set catalogue.key"),
        ("file,title\n", {"key": "song"}, "catalogue.key: .* has no column 'song'; it has file, title"),
        ("song,title\n", {"key": "song"}, "catalogue.join: auto does not know what column 'song' holds; set id"),
        ("id,title\n", {"columns": {"genre": "style"}}, "catalogue.columns.genre: .* no column 'style'; it has id"),
        ("", {}, "not a CSV: No columns to parse"),
        ("id,title\n1,Blue,too,much\n", {}, "not a CSV: .* line 2, saw 4"),
        ('id,title\n1,"Blue\n', {}, "not a CSV: .* EOF inside string"),
        (
            "id,title\n1,Blue\n2,Caf\u00e9\n".encode("latin-1"),
            {},
            r"line 3 is not UTF-8 \(byte 0xe9\); if it is Latin-1, convert it: iconv -f latin1 -t utf-8 \S+ > utf8.csv",
        ),
        ("id,title\n1,Blue\n".encode("utf-16"), {}, r"line 1 is not UTF-8 \(byte 0xff\)"),
    ],
)
def test_a_catalogue_that_cannot_serve_gets_one_line(
    tmp_path: Path, text: str | bytes, settings: dict[str, object], says: str
) -> None:
    with pytest.raises(ConfigError, match=says) as error:
        read(tmp_path, text, **settings)
    assert "tracks.csv" in str(error.value) or "catalogue.join" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_catalogue_or_a_folder_gets_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.csv", tmp_path):
        with pytest.raises(ConfigError, match=f"^{path}: .*; --metadata names a CSV"):
            read_catalogue(path, config.Catalogue())


@given(st.lists(st.sampled_from("abcdefgh"), max_size=8), st.sets(st.sampled_from("abcdefgh")))
def test_every_row_and_every_file_is_accounted_for(names: list[str], there: set[str]) -> None:
    catalogue = Catalogue("c", {"stem": names, "title": names}, "stem", "stem", None, {"title": "title"}, [])
    found = matched(catalogue, *(f"{name}.mp3" for name in sorted(there)))
    assert len(found.rows) + len(found.files_without_row) == len(there)
    assert len(found.rows) + len(found.rows_without_file) + len(found.repeated) == len(names)
    assert all(path == f"{ROOT}/{row.metadata.title}.mp3" for path, row in found.rows.items())
