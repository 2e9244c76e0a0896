"""Writing files for others: whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.errors import ConfigError, MurmurError
from core.names import path_text

TABLES = (".parquet", ".csv")


def check_table(out: Path) -> str:
    """Return the suffix of a table to be written, in lower case.

    Raises
    ------
    ConfigError
        If it is neither ``.parquet`` nor ``.csv``, or there is no such folder.
    """
    if out.suffix.lower() not in TABLES:
        raise ConfigError(f"{path_text(out)}: not a kind of file that is written here; name it .parquet or .csv")
    if not out.parent.is_dir():
        raise ConfigError(f"{path_text(out)}: there is no folder {path_text(out.parent)}; make it first")
    return out.suffix.lower()


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """Give a file beside `out` to write, which takes its place at the end, and is removed after an error.

    Raises
    ------
    MurmurError
        If it cannot be written.
    """
    part = out.with_name(f"{out.name}.part")
    try:
        yield part
        part.replace(out)
    except OSError as error:
        raise MurmurError(f"{path_text(out)}: cannot be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
