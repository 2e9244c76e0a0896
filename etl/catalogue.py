"""The catalogue: a CSV with a row per recording, and which row belongs to which file.

FMA's ``tracks.csv`` is understood as it is: two header rows and a row with the index's name give
columns such as ``track/title``, and its audio lies at ``000/000002.mp3`` for id 2.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import orjson

from core import config
from core.errors import ConfigError
from core.names import digest, path_text
from etl.folders import AudioFile
from etl.metadata import Metadata, plain, year

if TYPE_CHECKING:
    import pandas as pd

Columns = dict[str, list[str]]
"""Column → its cells, in order of the rows."""

KEYS: Mapping[str, tuple[str, ...]] = {
    "path": ("path", "filepath", "file_path", "relative_path"),
    "filename": ("filename", "file_name", "file"),
    "stem": ("stem", "basename"),
    "id": ("track_id", "trackid", "id"),
}
"""How a row may name its file → the columns taken for it; ``join: auto`` takes the first there is."""

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "title": ("title", "track_title", "track_name", "name", "song", "track/title"),
    "artist": ("artist", "artist_name", "artists", "track_artist", "artist/name"),
    "album": ("album", "album_title", "album_name", "release", "album/title"),
    "genre": ("genre", "genre_top", "track_genre", "playlist_genre", "genres", "track/genre_top"),
    "year": ("year", "release_year", "release_date", "date", "album/date_released"),
}
"""Field → the columns taken for it, the first there is, unless the configuration names one."""

FMA_EXTRA = (
    "album/type", "artist/location", "set/split", "set/subset", "track/composer",
    "track/language_code", "track/license", "track/listens", "track/tags",
)  # fmt: skip
"""What goes to `extra` of FMA's 52 columns; the others are counters, prose, or said elsewhere."""

LONGEST_EXTRA = 200
"""Characters; what is longer is prose and left out."""


@dataclass(frozen=True, slots=True)
class Row:
    """What the catalogue says of one recording."""

    track_id: str | None
    """None where the catalogue gives no id."""
    metadata: Metadata
    known_digest: str | None = None
    """Of a row that was merged into a track earlier, whose catalogue is not at hand."""

    @property
    def digest(self) -> str:
        """Digest of all that the row adds to a track."""
        return self.known_digest or digest(orjson.dumps([self.track_id, self.metadata], option=orjson.OPT_SORT_KEYS))


@dataclass(frozen=True, slots=True)
class Catalogue:
    """A CSV as it was read; every cell is text."""

    name: str
    """Stands before the ids."""
    columns: Columns
    join: str
    """How a row names its file: a key of `KEYS`."""
    key: str
    """The column in which it does."""
    id: str | None
    """The column of the ids."""
    fields: dict[str, str]
    """Field → column."""
    extra: list[str]
    """The other columns."""


@dataclass(frozen=True, slots=True)
class Matches:
    """Which row belongs to which file."""

    rows: dict[str, Row] = field(default_factory=dict)
    """By the file's path."""
    rows_without_file: list[str] = field(default_factory=list)
    """What the rows name."""
    files_without_row: list[str] = field(default_factory=list)
    """Paths."""
    repeated: list[str] = field(default_factory=list)
    """What more than one row names, and ids of more than one row; the first of them counts."""
    shared: list[str] = field(default_factory=list)
    """What belongs to more than one file by its row."""


def read_catalogue(path: Path, settings: config.Catalogue) -> Catalogue:
    """Read a CSV with a header: UTF-8, separated by commas, semicolons or tabs.

    Parameters
    ----------
    path : Path
        The CSV.
    settings : core.config.Catalogue
        How rows name their files, and which columns the fields are taken from.

    Raises
    ------
    ConfigError
        If the file cannot be read, or lacks a column that is needed.
    """
    columns = _read_columns(path, settings)
    join, key = _key_column(path, columns, settings)
    ids = key if join == "id" else _find(columns, KEYS["id"])
    fields = {name: column for name in COLUMNS if (column := _field_column(path, columns, name, settings))}
    taken = {key, *fields.values(), *(_find(columns, [name]) for names in KEYS.values() for name in names)}
    return Catalogue(
        name=settings.name or path_text(path.stem),
        columns=columns,
        join=join,
        key=key,
        id=ids,
        fields=fields,
        extra=[name for name in columns if name not in taken],
    )


def match(catalogue: Catalogue, files: Sequence[AudioFile], root: str) -> Matches:
    """Find the row of each file; one row may belong to several files.

    Parameters
    ----------
    catalogue : Catalogue
        As `read_catalogue` returns it.
    files : sequence of AudioFile
        The files below `root`.
    root : str
        Absolute path of the folder, as it is stored; relative paths start from it.
    """
    matches = Matches()
    cells = catalogue.columns[catalogue.key]
    index: dict[str, int] = {}
    for number, cell in enumerate(cells):
        if not cell.strip():
            matches.rows_without_file.append("(empty)")
        elif index.setdefault(_cell_key(catalogue.join, cell, root), number) != number:
            matches.repeated.append(cell)
    if catalogue.id and catalogue.id != catalogue.key:
        ids = Counter(catalogue.columns[catalogue.id][number] for number in index.values())
        matches.repeated.extend(track_id for track_id, times in ids.items() if track_id.strip() and times > 1)
    used: Counter[str] = Counter()
    for file in files:
        key = _file_key(catalogue.join, file.path)
        if key in index:
            matches.rows[file.path] = _row(catalogue, index[key])
            used[key] += 1
        else:
            matches.files_without_row.append(file.path)
    matches.rows_without_file.extend(cells[number] for key, number in index.items() if not used[key])
    matches.shared.extend(cells[index[key]] for key, times in used.items() if times > 1)
    return matches


def _cell_key(join: str, cell: str, root: str) -> str:
    """Return what a cell must have in common with the `_file_key` of its file."""
    cell = unicodedata.normalize("NFC", cell.strip())
    if join == "path":
        return os.path.normpath(PurePath(root, cell))
    if join == "filename":
        return PurePath(cell).name
    return _unpadded(cell) if join == "id" else cell


def _file_key(join: str, path: str) -> str:
    file = PurePath(unicodedata.normalize("NFC", path))
    if join == "path":
        return str(file)
    if join == "filename":
        return file.name
    return _unpadded(file.stem) if join == "id" else file.stem


def _unpadded(number: str) -> str:
    """Return a number without leading zeros, any other text as it is: id 2 is ``000/000002.mp3``."""
    return number.lstrip("0") or "0" if number.isdecimal() else number


def _row(catalogue: Catalogue, number: int) -> Row:
    cells = {name: catalogue.columns[column][number] for name, column in catalogue.fields.items()}
    track_id = plain(catalogue.columns[catalogue.id][number]) if catalogue.id else None
    extra = {name: _short(catalogue.columns[name][number]) for name in catalogue.extra}
    return Row(
        track_id=f"{catalogue.name}:{track_id}" if track_id else None,
        metadata=Metadata(
            title=plain(cells.get("title")),
            artist=plain(_unlisted(cells.get("artist", ""))),
            album=plain(cells.get("album")),
            genre=plain(_unlisted(cells.get("genre", ""))),
            year=year(cells.get("year")),
            extra={name: text for name, text in extra.items() if text},
        ),
    )


def _short(cell: str) -> str | None:
    """Return a cell as one line without markup, None if it is empty or prose."""
    text = plain(re.sub(r"</?[A-Za-z][^<>]*>", " ", _unlisted(cell)))
    return text if text and len(text) <= LONGEST_EXTRA else None


def _unlisted(cell: str) -> str:
    """Return a Python list literal, as pandas writes lists, as its items; any other text as it is."""
    if not (cell.startswith("[") and cell.endswith("]")):
        return cell
    try:
        with warnings.catch_warnings(action="ignore"):  # of backslashes in names
            items = ast.literal_eval(cell)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return cell
    return ", ".join(str(item) for item in items)


def _read_columns(path: Path, settings: config.Catalogue) -> Columns:
    import pandas as pd

    try:
        with path.open("rb") as file:
            separator = max(",;\t", key=file.readline().decode("utf-8", "replace").count)
        head = _read_table(path, separator, n_rows=3)
        names, n_header_rows = _header(head)
        kept = _kept(names, settings) if n_header_rows > 1 else range(len(names))
        table = _read_table(path, separator, columns=kept)
    except OSError as error:
        raise ConfigError(f"{path_text(path)}: {error.strerror}; --metadata names a CSV") from error
    except UnicodeDecodeError as error:
        raise ConfigError(_not_utf8(path)) from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ConfigError(
            f"{path_text(path)}: not a CSV: {plain(str(error))}; mend it and run the same command again"
        ) from error
    columns: Columns = {}
    for number in kept:
        if names[number]:
            columns.setdefault(names[number], table[number].tolist()[n_header_rows:])
    return columns


def _read_table(
    path: Path, separator: str, *, n_rows: int | None = None, columns: Iterable[int] | None = None
) -> pd.DataFrame:
    """Read all cells as text: a title may be ``None`` or ``NA``."""
    import pandas as pd

    return pd.read_csv(
        path,
        sep=separator,
        header=None,
        dtype=str,
        keep_default_na=False,
        encoding="utf-8-sig",
        nrows=n_rows,
        usecols=None if columns is None else list(columns),
    )


def _header(head: pd.DataFrame) -> tuple[list[str], int]:
    """Return the names of the columns, and how many rows they take."""
    rows = [[cell.strip() for cell in row] for row in head.to_numpy().tolist()]
    if len(rows) == 3 and rows[2][0] and not any([rows[0][0], rows[1][0], *rows[2][1:]]):
        groups = [f"{group}/{name}" for group, name in zip(rows[0][1:], rows[1][1:], strict=True)]
        return [rows[2][0], *groups], 3
    return rows[0], 1


def _kept(names: Sequence[str], settings: config.Catalogue) -> list[int]:
    """Return the numbers of those of FMA's columns that are read."""
    known = {names[0], settings.key, *FMA_EXTRA, *settings.columns.values()}.union(*COLUMNS.values())
    return [number for number, name in enumerate(names) if name in known]


def _not_utf8(path: Path) -> str:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                byte, convert = line[error.start], shlex.quote(str(path))
                return (
                    f"{path_text(path)}: line {number} is not UTF-8 (byte 0x{byte:02x}); if it is Latin-1, convert it: "
                    f"iconv -f latin1 -t utf-8 {convert} > utf8.csv"
                )
    return f"{path_text(path)}: not UTF-8; save it as UTF-8"


def _key_column(path: Path, columns: Columns, settings: config.Catalogue) -> tuple[str, str]:
    """Return how the rows name their files, and in which column."""
    kinds = list(KEYS) if settings.join == "auto" else [settings.join]
    if settings.key:
        key = _named(path, columns, settings.key, "catalogue.key")
        fitting = [kind for kind in kinds if settings.join == kind or _find([key], KEYS[kind])]
        if not fitting:
            raise ConfigError(
                f"catalogue.join: auto does not know what column {key!r} holds; set id, filename, stem or path"
            )
        return fitting[0], key
    for kind in kinds:
        if column := _find(columns, KEYS[kind]):
            return kind, column
    raise ConfigError(
        f"{path_text(path)}: no column names the files; it has {_listed(columns)}; set catalogue.key to one of them, "
        "and catalogue.join to id, filename, stem or path"
    )


def _field_column(path: Path, columns: Columns, name: str, settings: config.Catalogue) -> str | None:
    if name in settings.columns:
        return _named(path, columns, settings.columns[name], f"catalogue.columns.{name}")
    return _find(columns, COLUMNS[name])


def _named(path: Path, columns: Columns, name: str, setting: str) -> str:
    if column := _find(columns, [name]):
        return column
    raise ConfigError(f"{setting}: {path_text(path)} has no column {name!r}; it has {_listed(columns)}")


def _find(columns: Iterable[str], names: Iterable[str]) -> str | None:
    """Return the first of `names` among the columns, whatever its case, with blanks or underscores."""
    spelt = {_folded(column): column for column in columns}
    return next((spelt[name] for name in map(_folded, names) if name in spelt), None)


def _folded(name: str) -> str:
    return name.strip().casefold().replace(" ", "_")


def _listed(columns: Columns) -> str:
    names = list(columns)
    return ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
