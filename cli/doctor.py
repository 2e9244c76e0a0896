"""Whether all is there that the configuration asks for."""

from __future__ import annotations

import platform
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from core.bus import Bus
from core.config import Config, load_config
from core.errors import MurmurError
from core.names import sqlite_path
from core.store import Store


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was examined."""

    what: str
    ok: bool
    found: str


def examine(config_file: Path | None) -> list[Check]:
    """Examine Python, config, store, bus, Java and codecs; makes no file."""
    try:
        config = load_config(config_file)
    except MurmurError as error:
        return [Check("config", ok=False, found=str(error))]
    looks: dict[str, Callable[[Config], str]] = {
        "config": lambda _: (
            str(config_file or "config.yaml") if config_file or Path("config.yaml").exists() else "defaults"
        ),
        "Python": lambda _: platform.python_version(),
        "store": _store,
        "bus": _bus,
        f"engine {config.clustering.engine}": _engine,
        "codecs": _codecs,
    }
    return [_check(what, look, config) for what, look in looks.items()]


def _check(what: str, look: Callable[[Config], str], config: Config) -> Check:
    try:
        return Check(what, ok=True, found=look(config))
    except MurmurError as error:
        return Check(what, ok=False, found=str(error))


def _store(config: Config) -> str:
    from core import open_store

    return _reached(config.store.url, open_store)


def _bus(config: Config) -> str:
    from core import open_bus

    return _reached(config.bus.url, open_bus)


def _reached(url: str, connect: Callable[..., Store | Bus]) -> str:
    if url.startswith("sqlite:///") and not sqlite_path(url).exists():
        return f"{url} (made by the first run)"
    with closing(connect(url, create=False)) as found:
        return found.url


def _engine(config: Config) -> str:
    from core.spark import java_version

    if config.clustering.engine == "sklearn":
        import sklearn

        return f"scikit-learn {sklearn.__version__}"
    import pyspark

    return f"PySpark {pyspark.__version__} on Java {java_version()}"


def _codecs(_: Config) -> str:
    import av
    import soundfile

    return f"libsndfile {soundfile.__libsndfile_version__}, FFmpeg by PyAV {av.__version__}"
