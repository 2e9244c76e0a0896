"""The configuration: one model per section of ``config.yaml``, every key optional."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from core.blocks import BLOCKS, Profile
from core.bus import DEAD_LETTER_DAYS, Topic
from core.errors import ConfigError
from core.names import Names, bare_url, digest

FEATURES_VERSION = 2
"""Raised when a number changes, so that vectors of two versions never meet in a matrix."""

Join = Literal["auto", "id", "filename", "stem", "path"]


class Section(BaseModel):
    """A part of the configuration; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Audio(Section):
    """What is read, and at which rate it is analysed."""

    sample_rate: Annotated[int, Field(ge=16_000, le=192_000)] = 22_050
    max_duration: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1800.0
    extensions: tuple[str, ...] = (
        ".aac", ".aif", ".aiff", ".flac", ".m4a", ".mp3", ".oga", ".ogg", ".opus", ".wav", ".wma",
    )  # fmt: skip

    @field_validator("extensions")
    @classmethod
    def _dotted(cls, extensions: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(f".{extension.lower().removeprefix('.')}" for extension in extensions)


class Catalogue(Section):
    """How a CSV row finds its file, and its columns their fields."""

    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_.-]+$")
    join: Join = "auto"
    key: str | None = None
    columns: dict[Literal["title", "artist", "album", "genre", "year"], str] = {}


class Features(Section):
    """What is computed of each track; a single profile may be given as its bare name."""

    profiles: tuple[Profile, ...] = ("default",)

    @field_validator("profiles", mode="before")
    @classmethod
    def _some(cls, profiles: Any) -> Any:
        if profiles in ([], ()):
            raise ValueError("write [default]")
        return (profiles,) if isinstance(profiles, str) else profiles


class Group(Section):
    """One group of blocks in the clustering space; a weight of 0 leaves it out."""

    blocks: tuple[str, ...]
    clip: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2.0
    components: Annotated[int, Field(ge=1, le=1000)] = 30
    weight: Annotated[float, Field(ge=0, le=1000)]

    @field_validator("blocks")
    @classmethod
    def _known(cls, blocks: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [block for block in blocks if block not in BLOCKS]:
            raise ValueError(f"{unknown[0]!r} is no block; known: {', '.join(BLOCKS)}")
        if len(set(blocks)) < len(blocks) or not blocks:
            raise ValueError("name at least one block, each once; `weight: 0` leaves a group out")
        return blocks


class Timbre(Group):
    """The group of how it sounds."""

    blocks: tuple[str, ...] = ("mfcc", "spectral_contrast", "spectral_centroid", "mfcc_delta")
    weight: Annotated[float, Field(ge=0, le=1000)] = 1.0


class Rhythm(Group):
    """The group of how it moves."""

    blocks: tuple[str, ...] = ("fluctuation",)
    weight: Annotated[float, Field(ge=0, le=1000)] = 0.5


class Groups(Section):
    """What spans the clustering space."""

    timbre: Timbre = Timbre()
    rhythm: Rhythm = Rhythm()

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not any(group.weight for _, group in self):
            raise ValueError("give one of the groups a weight above 0")
        return self


class Clustering(Section):
    """How tracks are grouped."""

    engine: Literal["spark", "sklearn"] = "spark"
    n_clusters: Annotated[int, Field(ge=1)] | Literal["auto"] | None = None
    random_state: Annotated[int, Field(ge=0, lt=2**31)] = 0
    n_init: Annotated[int, Field(ge=1, le=100)] = 10
    keep_runs: Annotated[int, Field(ge=1)] = 5
    groups: Groups = Groups()

    @field_validator("n_clusters", mode="wrap")
    @classmethod
    def _number_or_auto(cls, value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
        try:
            return validate(value)
        except ValidationError:  # one for each alternative
            raise ValueError("write a whole number from 1 on, auto or null") from None


class Topics(Section):
    """How topics are named and created."""

    prefix: str = Field(default="", pattern=r"^[A-Za-z0-9._-]*$", max_length=100)
    partitions: Annotated[int, Field(ge=1, le=1000)] = 1
    replication: Annotated[int, Field(ge=-1)] = -1

    def of_tracks(self) -> list[Topic]:
        """Return the topics between `extract` and `load`, as they are to be created."""
        names = Names(self.prefix)
        return [
            Topic(names.tracks, "compact", self.partitions, self.replication),
            Topic(names.failed, "compact", self.partitions, self.replication),
            Topic(names.dead_letters, "delete", self.partitions, self.replication),
        ]

    def of_clusters(self, cluster_ids: Iterable[str]) -> list[Topic]:
        """Return the topics of a publication, as they are to be created."""
        names = Names(self.prefix)
        members = [names.members, *map(names.cluster, cluster_ids)]
        return [
            *(Topic(name, "compact", self.partitions, self.replication) for name in members),
            Topic(names.runs, "compact", replication=self.replication),
            Topic(names.spaces, "compact", self.partitions, self.replication, is_wide=True),
        ]


class Location(Section):
    """Where a store or a bus is; may be given as the bare URL."""

    url: str = Field(default="sqlite:///murmur.db", repr=False)

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        return {"url": value} if isinstance(value, str) else value


class StoreLocation(Location):
    """Where the store is, and how long it remembers what was deleted."""

    deleted_retention: Annotated[int, Field(gt=DEAD_LETTER_DAYS)] = 30


class Load(Section):
    """How records are taken from the bus into the store."""

    batch: Annotated[int, Field(ge=1, le=10_000)] = 500
    max_bad_share: Annotated[float, Field(ge=0, le=1)] = 0.5


class Spark(Section):
    """How a Spark session is opened."""

    master: str = "local[*]"
    options: dict[str, str | int | float | bool] = {}


class Config(Section):
    """The whole configuration, as `load_config` returns it."""

    audio: Audio = Audio()
    catalogue: Catalogue = Catalogue()
    features: Features = Features()
    clustering: Clustering = Clustering()
    topics: Topics = Topics()
    store: StoreLocation = StoreLocation()
    bus: Location = Location()
    load: Load = Load()
    spark: Spark = Spark()
    metrics_port: Annotated[int, Field(ge=1, le=65_535)] | None = None
    metrics_address: str = "127.0.0.1"
    workers: Annotated[int, Field(ge=1)] | None = None
    memory: ByteSize | None = None
    max_failures: Annotated[float, Field(ge=0, le=1)] = 0.1

    @field_validator("memory")
    @classmethod
    def _enough(cls, memory: ByteSize | None) -> ByteSize | None:
        if memory is not None and memory < 2**29:
            raise ValueError("write 512MiB or more")
        return memory

    @property
    def feature_set(self) -> str:
        """Digest of all settings that change a feature, and of `FEATURES_VERSION`."""
        profiles = ",".join(sorted(set(self.features.profiles)))
        parts = (FEATURES_VERSION, self.audio.sample_rate, self.audio.max_duration, profiles)
        return digest(" ".join(map(str, parts)).encode())[:12]


def load_config(path: Path | None = None) -> Config:
    """Read a YAML file; ``$NAME`` is expanded from the environment.

    Parameters
    ----------
    path : Path, optional
        Default: ``config.yaml`` in the working directory, where there is one.

    Raises
    ------
    ConfigError
        With the dotted key, the value, and what would be right.
    """
    import yaml

    file = path or Path("config.yaml")
    if path is None and not file.exists():
        return Config()
    try:
        tree = yaml.safe_load(file.read_text("utf-8")) or {}
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}; name an existing file with --config") from error
    except yaml.MarkedYAMLError as error:  # without its text, which quotes the line: a password may stand there
        at = error.problem_mark
        place = f"{file}, line {at.line + 1}, column {at.column + 1}" if at else str(file)
        raise ConfigError(f"{place}: not YAML: {error.problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{file}: holds no keys; write lines such as `workers: 2`")
    # a section whose keys are all commented out
    return parse_config({key: value for key, value in tree.items() if value is not None}, where=str(file))


def parse_config(tree: dict[str, Any], where: str = "config") -> Config:
    """Validate a tree of settings; raises `ConfigError` as `load_config` does."""
    try:
        return Config.model_validate(_expand(tree, where))
    except ValidationError as error:
        raise ConfigError(f"{where}: {_explain(error)}") from error


def _expand(tree: Any, where: str) -> Any:
    if isinstance(tree, dict):
        return {key: _expand(value, where) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_expand(value, where) for value in tree]
    return (
        re.sub(r"\$(?:\{(\w+)\}|([A-Za-z_]\w*))", lambda name: _variable(name, where), tree)
        if isinstance(tree, str)
        else tree
    )


def _variable(name: re.Match[str], where: str) -> str:
    value = os.environ.get(variable := name[1] or name[2])
    if value is None:
        raise ConfigError(
            f"{where}: the environment has no variable {variable}; set it, or write its value (in a URL %24 is a $)"
        )
    return value


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{key}: unknown key; {_nearest(first['loc'])}"
    return f"{key}: {_shown(first['input'])} is not valid: {first['msg'].removeprefix('Value error, ')}"


def _shown(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return {dict: "a mapping", list: "a list" if value else "an empty list"}[type(value)]
    return repr(bare_url(value) if isinstance(value, str) and re.search("://|@", value) else value)


def _nearest(place: tuple[int | str, ...]) -> str:
    import difflib

    model: type[BaseModel] = Config
    for part in place[:-1]:
        model = model.model_fields[str(part)].annotation  # type: ignore[assignment]  # sections only
    close = difflib.get_close_matches(str(place[-1]), model.model_fields, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(model.model_fields)}"
