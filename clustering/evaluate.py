"""The command `evaluate`: how well a space and its clusters agree with a column of the catalogue."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from clustering.assign import Labels, assign
from clustering.cluster import check, fit
from clustering.library import LoadedLibrary, read_library
from clustering.measures import MIN_CLASS, Accuracy, Classes, Codes, agreement, classes, encode, hubs, knn_accuracy
from clustering.ranking import points, recommend
from clustering.recordings import one_name
from clustering.runs import latest_run, run_in_force
from clustering.sklearn_engine import SklearnEngine
from clustering.space import Declared, Matrix, declare, layouts, transform
from core.config import Config, parse_config
from core.errors import ConfigError
from core.jobs import Progress, Watch, ignore
from core.records import Group, Track
from core.store import Document, Store

COLUMNS = ("genre", "artist", "album", "year")
IRRELEVANT = frozenset({"clustering.engine", "clustering.keep_runs"})
"""Keys that change no result."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """One space and its clusters against the column."""

    setting: str
    """The run, or the settings that were tried."""
    n_clusters: int
    neighbours: Accuracy
    apart: Accuracy | None
    """The same without neighbours of the same artist or album; None where that leaves none to be found."""
    purity: float
    purity_chance: float
    """What clusters of the same sizes would have that know nothing of the column."""
    nmi: float
    nmi_chance: float
    ari: float
    most_lists: int
    """In how many lists of 10 neighbours the most frequent track is."""
    never_listed: float
    """Share of the tracks that are in none."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What `evaluate` found."""

    label: str
    tracks: int
    """In a class of 5 tracks or more."""
    classes: int
    small_classes: int
    """Left out: of fewer than 5 tracks."""
    small_tracks: int
    unlabelled: int
    """Left out: tracks without a value."""
    apart: tuple[str, ...]
    """The columns whose equals are no neighbours in `Evaluated.apart`."""
    settings: list[Evaluated]


class Labelled(NamedTuple):
    """A library and what the catalogue says of it."""

    library: LoadedLibrary
    classes: Classes
    apart: list[Codes]
    """Of the artist and of the album, as far as they are no neighbours of their own."""


def evaluate(
    config: Config, label: str, tried: Sequence[str] = (), *, store: Store, progress: Watch = ignore
) -> Evaluation:
    """Compare spaces and their clusters with a column of the catalogue; reads the store, writes nothing.

    Parameters
    ----------
    label : str
        genre, artist, album, year, or a further column of the catalogue.
    tried : sequence of str
        ``KEY=VALUE``, keys of the configuration below ``clustering``. Each combination is fitted anew, by scikit-learn,
        since both engines give the same. Without any, the run in force is looked at as it is, or the latest where none
        is published.

    Raises
    ------
    ConfigError
        If there is no such column, key or value, no two classes of 5 tracks, or no run.
    """
    spaces = _tried(config, label, tried, store, progress) if tried else _current(config, label, store, progress)
    found = []
    for known, evaluated in spaces:  # noqa: B007  # the same of each space
        found.append(evaluated)
    return Evaluation(
        label=label,
        tracks=int((known.codes >= 0).sum()),
        classes=known.n_classes,
        small_classes=known.small_classes,
        small_tracks=known.small_tracks,
        unlabelled=known.unlabelled,
        apart=_apart(label),
        settings=found,
    )


def grid(config: Config, tried: Sequence[str]) -> Iterator[tuple[str, Config]]:
    """Yield a name and the configuration of each combination of ``KEY=VALUE``; a key may have several values."""
    values: dict[str, list[str]] = {}
    for pair in tried:
        key, equals, value = pair.partition("=")
        if key in IRRELEVANT:
            raise ConfigError(f"--try {pair}: {key} changes nothing here")
        if not (equals and key.startswith("clustering.")):
            raise ConfigError(f"--try {pair}: write KEY=VALUE, such as clustering.groups.rhythm.weight=0.25")
        values.setdefault(key, []).append(value)
    for chosen in product(*values.values()):
        tree: dict[str, Any] = {"clustering": config.clustering.model_dump()}
        for key, value in zip(values, chosen, strict=True):
            _put(tree, key.split("."), value)
        clustering = parse_config(tree, where="--try").clustering.model_copy(update={"engine": "sklearn"})
        setting = config.model_copy(update={"clustering": clustering})
        check(setting)
        yield " ".join(f"{key}={value}" for key, value in zip(values, chosen, strict=True)), setting


def labels_of(tracks: Sequence[Document], label: str) -> list[object]:
    """Return the value of a column for each track; raises `ConfigError` if none has one."""
    values = [track.get(label) if label in COLUMNS else track["extra"].get(label) for track in tracks]
    if not any(values):
        known = [column for column in COLUMNS if any(track[column] for track in tracks)]
        known += sorted({column for track in tracks for column in track["extra"]})
        raise ConfigError(f"--label {label}: no track has it; the catalogue has {', '.join(known) or 'no columns'}")
    return values


def _put(tree: dict[str, Any], keys: Sequence[str], text: str) -> None:
    import yaml

    *sections, last = keys
    for section in sections:
        inner = tree.get(section)
        tree[section] = tree = inner if isinstance(inner, dict) else {}
    try:
        tree[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--try {'.'.join(keys)}={text}: the value is not YAML") from error


def _current(config: Config, label: str, store: Store, progress: Watch) -> Iterator[tuple[Classes, Evaluated]]:
    current = run_in_force(store) or latest_run(store)
    if current is None:
        raise ConfigError(f"{store.url}: no clusters yet; run `murmur cluster` first, or say what to --try")
    found = _read(store, current.feature_set, current.space, label, progress)
    X = transform(current.space, found.library.vectors)
    labels = assign(current.clusters, X).labels
    yield found.classes, _evaluate(current.run_id, found, X, labels, config.clustering.random_state)


def _tried(
    config: Config, label: str, tried: Sequence[str], store: Store, progress: Watch
) -> Iterator[tuple[Classes, Evaluated]]:
    settings = list(grid(config, tried))
    layout, found = None, None
    for done, (name, setting) in enumerate(settings):
        groups = declare(setting.clustering.groups)
        if found is None or layout != layouts(groups):
            layout, found = layouts(groups), _read(store, config.feature_set, groups, label, progress)
        fitted = fit(setting, found.library, SklearnEngine(found.library.vectors, groups))
        yield found.classes, _evaluate(name, found, fitted.X, fitted.labels, setting.clustering.random_state)
        progress(Progress("evaluate", done + 1, len(settings)))


def _read(store: Store, feature_set: str, groups: Sequence[Declared | Group], label: str, progress: Watch) -> Labelled:
    total = store.count(Track, {"feature_set": feature_set})
    library = read_library(store, feature_set, groups, total, progress, fields=(*COLUMNS, "extra"))
    known = classes(labels_of(library.metadata, label))
    if known.n_classes < 2:
        raise ConfigError(f"--label {label}: needs two classes of {MIN_CLASS} tracks or more, found {known.n_classes}")
    apart = [encode([one_name(track[column]) for track in library.metadata]) for column in _apart(label)]
    return Labelled(library, known, apart)


def _apart(label: str) -> tuple[str, ...]:
    """Return whose equals are no neighbours; of an album nothing would be left without its own."""
    return {"artist": ("album",), "album": ()}.get(label, ("artist", "album"))


def _evaluate(name: str, found: Labelled, X: Matrix, labels: Labels, random_state: int) -> Evaluated:
    codes = found.classes.codes
    unfiltered = knn_accuracy(X, codes, random_state=random_state)
    assert unfiltered is not None  # each class has five tracks
    lists = recommend(points(X, found.library.recordings), np.arange(len(X))[:, None])
    most, never = hubs(lists.indices)
    return Evaluated(
        setting=name,
        n_clusters=len(np.unique(labels)),
        neighbours=unfiltered,
        apart=knn_accuracy(X, codes, apart=found.apart, random_state=random_state) if found.apart else None,
        **agreement(labels, codes, random_state),
        most_lists=most,
        never_listed=never,
    )
