"""The records that travel: one frozen model each, one JSON form for Kafka, MongoDB and SQLite."""

from __future__ import annotations

import time
from typing import Annotated, Any, ClassVar, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from core.errors import RecordError

Finite = Annotated[float, Field(allow_inf_nan=False)]
Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]
"""What every store can hold."""
Features = dict[str, dict[str, list[Finite]]]
"""Block → statistic → values, so that a number is named wherever it travels."""


def next_rev(last: int = 0) -> int:
    """Return a revision later than `last`: max(UTC time in µs, last + 1)."""
    return max(time.time_ns() // 1000, last + 1)


def to_json(value: object) -> bytes:
    """Return the JSON form of a record, or of some fields of one: what `pydantic` writes, in half the time.

    Raises
    ------
    orjson.JSONEncodeError
        If it holds what JSON in UTF-8 has not, such as an integer of more than 64 bits.
    """
    return orjson.dumps(value, default=vars, option=orjson.OPT_SERIALIZE_NUMPY)


class Value(BaseModel):
    """A part of a record. Unknown fields are ignored, so that a later version stays readable."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Read the JSON form.

        Raises
        ------
        RecordError
            If `data` is not JSON or does not fit the schema; the text names the first field.
        """
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            raise RecordError(f"not a {cls.__name__}: {_first_problem(error)}") from error

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Self:
        """Read a stored document; raises `RecordError` as `from_json` does."""
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise RecordError(f"not a {cls.__name__}: {_first_problem(error)}") from error

    def to_json(self) -> bytes:
        """Return the JSON form, UTF-8."""
        return to_json(self)


class Record(Value):
    """A value with a key and a revision, stored in a collection of its own."""

    collection: ClassVar[str]
    bulky: ClassVar[frozenset[str]] = frozenset()
    """Fields that a store keeps apart, so that a `scan` without them never reads them."""

    rev: int = Field(ge=0, lt=2**63)

    @property
    def key(self) -> str:
        """The Kafka key and the ``_id`` in the store."""
        raise AttributeError


class File(Value):
    """A file as the file system shows it."""

    path: str
    """Absolute; bytes that are not UTF-8 are percent-escaped."""
    size: Int64
    """Bytes."""
    mtime_ns: Int64
    """Modification time, ns since the epoch."""


class Source(File):
    """The file that a track was read from, and what read it."""

    digest: str
    """Digest of the encoded audio packets: what stays when a file is moved or re-tagged."""
    row_digest: str | None = None
    """Digest of the catalogue row that was merged in; None without a row."""
    codec: str
    sample_rate: Int64
    """Native, Hz."""
    channels: Int64
    decoder: str
    """Decoding library and its version."""
    librosa: str
    """Version of librosa."""


class Track(Record):
    """One recording: metadata, features and where they came from."""

    collection: ClassVar[str] = "tracks"
    bulky: ClassVar[frozenset[str]] = frozenset({"features"})

    track_id: str = Field(min_length=1)
    title: str | None = None
    artist: str | None = None
    album: str | None = None
    genre: str | None = None
    year: Int64 | None = None
    duration: Finite
    """Seconds."""
    extra: dict[str, str] = {}
    """Further columns of the catalogue."""
    source: Source
    copies: list[File] = []
    """Further files with the same `track_id`."""
    feature_set: str
    features: Features
    flags: list[str] = []

    @property
    def key(self) -> str:
        """The `track_id`."""
        return self.track_id


class Failure(Record):
    """A file that could not be read, and what to do about it."""

    collection: ClassVar[str] = "failures"

    path_digest: str
    path: str
    stage: str
    error: str
    """Class of the error."""
    message: str
    advice: str
    attempts: Int64 = 1
    failed_at: str
    """UTC, ISO 8601."""
    size: Int64 | None = None
    """Of the file when it failed, bytes."""
    mtime_ns: Int64 | None = None
    """Of the file when it failed, ns since the epoch."""
    feature_set: str | None = None
    """The features that were wanted."""
    retry: bool = False
    """Whether the next extraction tries again although nothing has changed."""

    @property
    def key(self) -> str:
        """The digest of the path."""
        return self.path_digest


class Group(Value):
    """One fitted group of the clustering space; every array has one entry per column or component."""

    name: str
    weight: Finite
    clip: Finite
    columns: list[str]
    """``block.statistic[i]``."""
    mean: list[Finite]
    std: list[Finite]
    """ddof 0; 0 marks a constant column."""
    pca_mean: list[Finite]
    """Mean of the clipped columns."""
    components: list[list[Finite]]
    """(n_components, n_columns), the largest loading of each positive."""
    scale: Finite
    """Divisor that gives the group unit total variance."""


class Typical(Value):
    """A track near the centre of a cluster."""

    track_id: str
    title: str | None = None
    artist: str | None = None


class OverRepresented(Value):
    """A genre that a cluster has more of than chance allows; tracks without a genre do not count."""

    genre: str
    tracks: int
    share: Finite
    """Of the cluster."""
    lift: Finite
    """`share` over the genre's share of the library."""
    p: Finite
    """Probability that a draw of the cluster's size has so many of them (hypergeometric)."""


class Sound(Value):
    """Where a cluster is on a scale that listeners have words for."""

    scale: str
    """The descriptor."""
    mean: Finite
    """Of the members."""
    library_mean: Finite
    deviation: Finite
    """Of the two means, in standard deviations of the library."""
    word: str | None = None
    """Of at most three scales that deviate by half a standard deviation or more."""


class Description(Value):
    """What a cluster is, made from data."""

    text: str
    """The words, or ``close to the average``; then the genres."""
    typical: list[Typical]
    """The nearest to the centre first."""
    genres: list[OverRepresented]
    """The highest lift first."""
    sounds: list[Sound]
    """The farthest from the library first."""


class Cluster(Value):
    """One cluster of a run."""

    cluster_id: str
    size: Int64
    radius: Finite
    """Median distance of the members to the centre."""
    p99: Finite | None = None
    """99th percentile of that distance; None in runs that did not measure it."""
    centre: list[Finite]
    """(n_dimensions,) in the fitted space."""
    description: Description | None = None
    """None in runs of earlier versions."""


class Trial(Value):
    """A number of clusters that was tried, judged on a seeded sample; measures are to four places."""

    n_clusters: Int64
    silhouette: Finite
    """Mean over the sample: how much nearer the own cluster is than the next (Rousseeuw 1987)."""
    stability: Finite
    """Adjusted Rand index between the partitions by fits on two halves of the sample."""
    chosen: bool = False


class Lineage(Value):
    """What became of the clusters of the run before, by the tracks that are in both."""

    former: str | None = None
    """The run before: the one that was in force, else the latest; None for the first."""
    births: list[str] = []
    """Clusters that it had not."""
    deaths: list[str] = []
    """Its clusters that are no more."""
    successors: dict[str, dict[str, int]] = {}
    """Dead cluster → where its members are now → how many, the most first."""
    splits: dict[str, dict[str, int]] = {}
    """Former cluster → the clusters that each took a good part of its members → how many."""
    merges: dict[str, dict[str, int]] = {}
    """Cluster → the former clusters of which it took at least half → how many members of each."""
    stayed: int = 0
    """Tracks whose cluster has the same id as before."""
    moved: int = 0
    """Tracks whose cluster has another id."""
    joined: int = 0
    """Tracks that the run before had not."""
    left: int = 0
    """Tracks of the run before that are gone."""


class Run(Record):
    """One clustering. It alone, without Spark, assigns a new track."""

    collection: ClassVar[str] = "runs"
    bulky: ClassVar[frozenset[str]] = frozenset({"space"})

    run_id: str
    created_at: str
    """UTC, ISO 8601."""
    engine: str
    feature_set: str
    random_state: Int64
    n_init: Int64
    n_clusters: Int64
    n_tracks: Int64
    input_digest: str
    """Digest of the sorted (track_id, rev) of the tracks that were clustered."""
    settings_digest: str
    """Digest of everything else that decides the result."""
    space: list[Group]
    space_digest: str = ""
    """Digest of what decided the space, but for the tracks."""
    space_tracks: int = 0
    """How many tracks there were when the space was fitted: a run may go on in that of an earlier one."""
    start: list[list[Finite]] = []
    """(k, n_dimensions): the centres from which the engine started."""
    clusters: list[Cluster]
    lineage: Lineage = Lineage()
    trials: list[Trial] = []
    """Where the number of clusters was chosen: those that were tried, the smallest first."""
    metrics: dict[str, Finite]
    complete: bool = False
    """True once its assignments are written."""

    @property
    def key(self) -> str:
        """The `run_id`."""
        return self.run_id


class RunInForce(Record):
    """The store's mirror of the key ``current`` of the runs topic."""

    collection: ClassVar[str] = "in_force"
    current: ClassVar[str] = "current"

    run_id: str
    answered: Int64 = 0
    """The `rev` of the last request that was answered: by this, or by a refusal."""
    refused: str = ""
    """Why that request could not be done."""

    @property
    def key(self) -> str:
        """Always ``current``."""
        return self.current


class RunRequest(Value):
    """The value under the key ``requested`` of the runs topic: what the follower is asked for."""

    run_id: str
    rev: Int64
    """As in the header."""


class Neighbour(Value):
    """A near track and its score in (0, 1]: 1/2 is as far as the 10 nearest of both are on average."""

    track_id: str
    score: Finite


class Assignment(Record):
    """Where one run put one track."""

    collection: ClassVar[str] = "assignments"

    run_id: str
    track_id: str
    track_rev: Int64
    cluster_id: str
    distance: Finite
    """Euclidean, to the cluster's centre."""
    score: Finite
    """1 / (1 + distance / radius of the cluster)."""
    neighbours: list[Neighbour]
    neighbourhood: Finite | None = None
    """Mean distance to the 10 nearest other tracks; None in assignments of earlier versions."""

    @property
    def key(self) -> str:
        """``<run_id>/<track_id>``: the assignments of a run lie together."""
        return f"{self.run_id}/{self.track_id}"


class NamedNeighbour(Value):
    """A near track as a subscriber sees it."""

    track_id: str
    title: str | None = None
    artist: str | None = None
    score: Finite


class Member(Value):
    """The value on a cluster topic: what a subscriber can use without our database."""

    track_id: str
    title: str | None = None
    artist: str | None = None
    album: str | None = None
    genre: str | None = None
    year: Int64 | None = None
    duration: Finite
    extra: dict[str, str] = {}
    cluster_id: str
    score: Finite
    neighbours: list[NamedNeighbour]
    since_run: str
    """The run in which the track joined the cluster."""


class LedgerEntry(Value):
    """What was last sent of one track: the value on the ledger topic."""

    track_id: str
    cluster_id: str
    since_run: str
    score: Finite
    digest: str
    """Digest of the track's metadata."""
    track_rev: Int64
    neighbours: list[Int64] = []
    """CRC-32 of the id, title and artist of each."""


class PublishedRun(Value):
    """The value on the runs topic: a `Run` without arrays, paths or settings of servers."""

    run_id: str
    created_at: str
    engine: str
    feature_set: str
    n_clusters: Int64
    n_tracks: Int64
    sizes: dict[str, Int64]
    """Cluster id → number of members."""
    former: str | None = None
    """The run to which births, deaths and successors refer."""
    births: list[str] = []
    """Clusters that the former run had not."""
    deaths: list[str] = []
    """Clusters of the former run that are no more."""
    successors: dict[str, dict[str, int]] = {}
    """Dead cluster → where its members are now → how many, the most first."""
    metrics: dict[str, Finite]
    descriptions: dict[str, Description] = {}
    """Cluster id → what the cluster is."""
    published: bool = False
    offsets: dict[str, dict[str, Int64]] = {}
    """Topic → partition → offset up to which it must be read for a consistent view."""
    changes: dict[str, Int64] = {}
    """How many tracks joined, moved, changed and left with the publication."""
    input_digest: str = ""
    """Digest of the (track_id, rev) of the assignments and the tracks that were published."""


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else first["msg"]
