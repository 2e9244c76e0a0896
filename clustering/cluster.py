"""The job `cluster`: tracks of the store → a run and its assignments."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

import numpy as np

from clustering import choice
from clustering.assign import Labels, distances_within, nearest
from clustering.centres import (
    SAMPLE_ROWS,
    choose_n_clusters,
    continued_centres,
    means,
    start_centres,
)
from clustering.describe import describe
from clustering.engine import Engine, open_engine
from clustering.identity import identify, trace
from clustering.library import Library, current_revs, digest_of
from clustering.measures import agreement, classes, shape
from clustering.members import Former, members, number, recall
from clustering.place import store_all
from clustering.runs import (
    cluster_ids_on,
    latest_run,
    next_run_id,
    purge_runs,
    require_published_runs,
    require_run,
    run_in_force,
)
from clustering.space import Matrix
from core.blocks import PROFILES
from core.bus import Bus
from core.config import Config
from core.errors import ConfigError, MurmurError
from core.jobs import Progress, Report, Watch, ignore
from core.names import Names, digest
from core.records import Cluster, Failure, Group, Lineage, Run, Track, Trial, next_rev
from core.store import Confirm, Store

log = logging.getLogger(__name__)

GROWTH = 1.5
"""A space is kept until there are this many times the tracks that there were when it was fitted."""
METADATA = ("track_id", "title", "artist", "genre")
"""What the descriptions need of a track."""


@dataclass(frozen=True, slots=True)
class ClusterReport(Report):
    """What `run` did; `read` counts the clusterable tracks, `written` the assignments."""

    run_id: str = ""
    """The new run, or the unchanged one."""
    clusters: int = 0
    other_feature_sets: int = 0
    """Tracks left out because their features were computed with other settings."""
    unclusterable: int = 0
    """Tracks left out because they are silent or too short."""
    joined: int = 0
    """Tracks that the former run had not."""
    moved: int = 0
    """Tracks that are in a cluster of another id now."""
    left: int = 0
    """Tracks of the former run that are gone."""
    trials: list[dict[str, Any]] = field(default_factory=list)
    """The numbers of clusters that were tried, as in the run, where one was to be chosen."""


@dataclass(frozen=True, slots=True)
class Start:
    """What a fit begins with: as it is by default, with nothing."""

    kept: Run | None = None
    """The run in whose space the fit goes on."""
    former: Labels | None = None
    """(n,) former cluster of each row, −1 for none: where they are given, the fit goes on from them."""
    n_clusters: int | None = None
    """How many clusters there were: where the number is chosen, it stays unless another is clearly better."""
    centres: Matrix | None = None
    """The centres to start from, where they are known."""


COLD = Start()


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted library."""

    kept: Run | None
    """The run whose space it is; None if it was fitted here."""
    space: list[Group]
    X: Matrix
    trials: list[Trial]
    """Of the choice of the number of clusters; empty where that was given."""
    start: Matrix
    """The centres from which the engine started."""
    labels: Labels
    centres: Matrix
    """None without members."""


def run(
    config: Config, *, store: Store, bus: Bus, fresh: bool = False, like: str | None = None, progress: Watch = ignore
) -> ClusterReport:
    """Cluster the tracks of the configured feature set.

    Reads `Track`, former `Run`s and their `Assignment`s, and from the bus which cluster ids were ever used; writes
    a `Run`, its `Assignment`s, then the `Run` again as complete, and removes the assignments of runs older than
    ``clustering.keep_runs``. It goes on from the run in force, else from the latest complete one: from its clusters,
    and in its space until that has grown old. With the same tracks, settings and seed as the latest complete run it
    writes nothing, unless it is asked to be `fresh` or `like` another. A run that was interrupted is ignored, and
    removed later. It holds a lease meanwhile: another one that is started stops at once.

    Parameters
    ----------
    config : Config
    store : Store
    bus : Bus
    fresh : bool
        Whether to start cold, in a space of its own; the clusters found keep their ids all the same. It is also what
        goes on without runs that the bus knows and the store has lost.
    like : str, optional
        The id of a run whose space, start centres and seed are taken: on the same tracks its assignment comes
        out again, ids included; on others it is a new fit.
    progress : callable

    Raises
    ------
    MurmurError
        If there is nothing to cluster, or the bus knows a later run than the store.
    ConfigError
        If more clusters are asked for than there are distinct tracks, blocks that are needed are not extracted, or
        the run to be like is unknown or of another feature set.
    BackendError
        If the store, the bus or Spark fails, there is no Java for Spark, or another `cluster` works on this store.
    """
    with store.lease("cluster") as confirm:
        return _run(config, confirm, store=store, bus=bus, fresh=fresh, like=like, progress=progress)


def _run(
    config: Config, confirm: Confirm, *, store: Store, bus: Bus, fresh: bool, like: str | None, progress: Watch
) -> ClusterReport:
    began = time.monotonic()
    check(config)
    if not fresh:
        require_published_runs(store, bus, Names(config.topics.prefix))
    model = _model(config, store, like) if like else None
    if model:
        config = _seeded_as(config, model)
    revs = current_revs(store, config.feature_set)
    in_set, everywhere = store.count(Track, {"feature_set": config.feature_set}), store.count(Track)
    others, unclusterable = everywhere - in_set, in_set - len(revs)
    if not revs:
        raise MurmurError(_nothing(config, store, others, unclusterable))
    latest, settings = latest_run(store), settings_digest(config)
    if latest and not (fresh or model) and (latest.input_digest, latest.settings_digest) == (digest_of(revs), settings):
        log.info("%s is up to date: same tracks, settings and seed", latest.run_id)
        new, written, unreadable, lineage = latest, 0, len(revs) - latest.n_tracks, Lineage()
    else:
        before = run_in_force(store) or latest
        space = model.space if model else None
        with open_engine(config, store, len(revs), METADATA, space=space, progress=progress) as (library, engine):
            _warn(config, library, before, model, others)
            new, fitted = make(
                config, store, bus, library, engine, before=before, model=model, fresh=fresh, progress=progress
            )
            assign = partial(engine.assign, store, new, library, fitted.X, progress)
            written = write(store, new, assign, confirm)
        unreadable, lineage = library.unreadable, new.lineage
        purge_runs(store, config.clustering.keep_runs)
        log.info("%s: %d tracks in %d clusters", new.run_id, new.n_tracks, len(new.clusters))
    return ClusterReport(
        read=len(revs),
        written=written,
        unchanged=new.n_tracks - written,
        failed=unreadable,
        seconds=time.monotonic() - began,
        run_id=new.run_id,
        clusters=len(new.clusters),
        other_feature_sets=others,
        unclusterable=unclusterable,
        joined=lineage.joined,
        moved=lineage.moved,
        left=lineage.left,
        trials=[trial.model_dump() for trial in new.trials],
    )


def make(
    config: Config,
    store: Store,
    bus: Bus,
    library: Library,
    engine: Engine,
    *,
    before: Run | None = None,
    model: Run | None = None,
    fresh: bool = False,
    progress: Watch = ignore,
) -> tuple[Run, Fit]:
    """Fit a library, name the clusters, and trace what became of those `before`; `model` is the run to be like."""
    former = _recall(store, library, before) if before else recall(library.track_ids, {})
    fitted = fit(config, library, engine, begin(config, former, before=before, model=model, fresh=fresh), progress)
    namesake = recall(library.track_ids, members(store, model)) if model else former
    settings = model.settings_digest if model else settings_digest(config)
    names = Names(config.topics.prefix)
    highest = _highest(store, bus, names, library.input_digest, settings)
    ids = identify(namesake, fitted.labels, gaps(fitted, namesake), highest)
    lineage = trace(former, fitted.labels, ids, before.run_id if before else None)
    called = next_run_id(store, bus, names, f"{library.input_digest} {settings}")
    return describe_run(config, called, library, fitted, settings, ids, lineage), fitted


def check(config: Config) -> None:
    """Raise `ConfigError` if blocks are not extracted that the space needs, or MFCCs, by which copies are told."""
    profiles = config.features.profiles
    extracted = {block for profile in profiles for block in PROFILES[profile]}
    groups = {f"clustering.groups.{name}": group.blocks for name, group in config.clustering.groups if group.weight}
    for what, blocks in (groups | {"the telling of copies": ("mfcc",)}).items():
        if missing := [block for block in blocks if block not in extracted]:
            wanted = {next(name for name, its_blocks in PROFILES.items() if block in its_blocks) for block in missing}
            raise ConfigError(
                f"{what}: needs {', '.join(missing)}, which features.profiles [{', '.join(profiles)}] does not have; "
                f"write [{', '.join(sorted({*wanted, *profiles}))}] and extract again"
            )


def settings_digest(config: Config) -> str:
    """Return the digest of everything but the tracks that decides a run."""
    chosen = config.clustering.model_dump_json(exclude={"keep_runs"})
    return digest(f"{chosen} {config.feature_set} {SAMPLE_ROWS}".encode())


def space_digest(config: Config) -> str:
    """Return the digest of everything but the tracks that decides a space."""
    return digest(f"{config.feature_set} {config.clustering.groups.model_dump_json()}".encode())


def begin(config: Config, former: Former, *, before: Run | None, model: Run | None, fresh: bool) -> Start:
    """Return what a fit begins with, given how the rows of the library know the run `before`."""
    if model:
        return Start(model, centres=np.array(model.start or [cluster.centre for cluster in model.clusters]))
    if before is None or fresh:
        return Start()
    has_dimensions = any(group.components for group in before.space)
    grown = len(former.labels) >= GROWTH * before.space_tracks
    kept = before.space_digest == space_digest(config) and has_dimensions and not grown
    return Start(before if kept else None, former.labels, before.n_clusters)


def fit(config: Config, library: Library, engine: Engine, start: Start = COLD, progress: Watch = ignore) -> Fit:
    """Fit the space and the clusters of a library; what both engines and the driver do is here."""
    progress(Progress("fit", 0, None))
    space = start.kept.space if start.kept else engine.fit_space()
    X = engine.place(space)
    n_clusters, trials = number_of_clusters(config, library, start, X, progress)
    first = centres = start_from(config, start, X, n_clusters)
    if X.shape[1] > 0:
        centres = engine.fit_centres(space, centres)
    centres = means(X, nearest(X, centres), centres)
    used, labels = np.unique(nearest(X, centres), return_inverse=True)
    return Fit(start.kept, space, X, trials, first, labels, centres[used])


def number_of_clusters(
    config: Config, library: Library, start: Start, X: Matrix, progress: Watch = ignore
) -> tuple[int, list[Trial]]:
    """Return how many clusters there are to be, and what was tried to find out."""
    settings, n_distinct = config.clustering, library.n_distinct
    if start.centres is not None:
        return len(start.centres), []
    if settings.n_clusters != "auto":
        return choose_n_clusters(len(X), n_distinct, settings.n_clusters), []
    numbers = choice.candidates(len(X), n_distinct if X.shape[1] else 1)
    if not numbers:
        n_clusters = choose_n_clusters(len(X), n_distinct)
        log.warning(
            "clustering.n_clusters: auto needs 50 tracks, 5 of them distinct; these %d get √(n/2), %d clusters",
            *(len(X), n_clusters),
        )
        return n_clusters, []
    options = {"n_init": settings.n_init, "random_state": settings.random_state}
    trials = choice.tried(X, numbers, **options, progress=progress)
    chosen = choice.choose(trials, start.n_clusters)
    return chosen, [trial.model_copy(update={"chosen": trial.n_clusters == chosen}) for trial in trials]


def start_from(config: Config, start: Start, X: Matrix, n_clusters: int) -> Matrix:
    """Return the centres from which the engine is to start."""
    if start.centres is not None:
        return start.centres
    options = {"n_init": config.clustering.n_init, "random_state": config.clustering.random_state}
    if start.former is None or X.shape[1] == 0 or (start.former < 0).all():
        return start_centres(X, n_clusters, **options)
    return continued_centres(X, start.former, n_clusters, **options)


def gaps(fitted: Fit, former: Former) -> Matrix:
    """Return the (n_former, k) distances from the means of former clusters to the centres, in the new space."""
    from scipy.spatial.distance import cdist

    middles = means(fitted.X, former.labels, np.zeros((len(former.ids), fitted.X.shape[1])))
    distances: Matrix = cdist(middles, fitted.centres)
    return distances


def describe_run(
    config: Config,
    called: tuple[str, datetime],
    library: Library,
    fitted: Fit,
    settings: str,
    ids: Sequence[str],
    lineage: Lineage,
) -> Run:
    """Return the run that is `called` by its id and time, not complete yet; its clusters are sorted by id."""
    run_id, now = called
    order = sorted(range(len(ids)), key=lambda label: number(ids[label]))
    distances = distances_within(fitted.X, fitted.centres, fitted.labels)
    descriptions = describe(fitted.labels, distances, library.sounds, library.metadata)
    return Run(
        rev=next_rev(),
        run_id=run_id,
        created_at=now.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        engine=config.clustering.engine,
        feature_set=config.feature_set,
        random_state=config.clustering.random_state,
        n_init=config.clustering.n_init,
        n_clusters=len(ids),
        n_tracks=len(library.revs),
        input_digest=library.input_digest,
        settings_digest=settings,
        space=fitted.space,
        space_digest=fitted.kept.space_digest if fitted.kept else space_digest(config),
        space_tracks=fitted.kept.space_tracks if fitted.kept else len(library.revs),
        start=fitted.start.tolist(),
        clusters=[
            Cluster(
                cluster_id=ids[label],
                size=int(np.sum(fitted.labels == label)),
                radius=float(np.median(distances[fitted.labels == label])),
                p99=float(np.percentile(distances[fitted.labels == label], 99)),
                centre=fitted.centres[label].tolist(),
                description=descriptions[label],
            )
            for label in order
        ],
        lineage=lineage,
        trials=fitted.trials,
        metrics=measure(fitted, distances, library, config.clustering.random_state),
    )


def measure(fitted: Fit, distances: Matrix, library: Library, random_state: int) -> dict[str, float]:
    """Return the sum of the squared distances to the centres (`inertia`) and what `measures` says of the clusters.

    How well they agree with the genres is there where two genres have 5 tracks or more.
    """
    genres = [track["genre"] for track in library.metadata]
    return {
        "inertia": float(np.square(distances).sum()),
        **shape(fitted.X, fitted.labels, random_state),
        **agreement(fitted.labels, classes(genres).codes, random_state),
    }


def write(store: Store, run: Run, assign: Callable[[], int], confirm: Confirm) -> int:
    """Write the run, its assignments, then, if it may still, the run as complete; return how many assignments.

    A job that stood still until another took its place raises instead of completing what nobody waits for any more.
    """
    store_all(store, [run])
    written = assign()
    confirm()
    store_all(store, [run.model_copy(update={"complete": True, "rev": next_rev(run.rev)})])
    return written


def _seeded_as(config: Config, model: Run) -> Config:
    seed = {"random_state": model.random_state, "n_init": model.n_init}
    return config.model_copy(update={"clustering": config.clustering.model_copy(update=seed)})


def _recall(store: Store, library: Library, before: Run) -> Former:
    """Return what the rows know of a run: nothing, if it has no assignments and no track could be assigned anew."""
    try:
        return recall(library.track_ids, members(store, before))
    except ConfigError:
        log.warning(
            "%s: its assignments are no longer kept, and no track has its feature set %s: its clusters end here",
            *(before.run_id, before.feature_set),
        )
        ids = [cluster.cluster_id for cluster in before.clusters]
        return Former(ids, np.full(len(library.revs), -1, np.intp), before.n_tracks)


def _model(config: Config, store: Store, run_id: str) -> Run:
    model = require_run(store, run_id)
    if model.feature_set != config.feature_set:
        raise ConfigError(
            f"{run_id} was made of feature set {model.feature_set}, the configuration asks for {config.feature_set}: "
            "set audio and features as they were then, or run `murmur cluster` without --like"
        )
    return model


def _warn(config: Config, library: Library, before: Run | None, model: Run | None, others: int) -> None:
    """Say what makes a run other than one may expect."""
    if before and before.feature_set != config.feature_set:
        log.warning(
            "%s was made of feature set %s, the configuration asks for %s: the space is fitted anew%s",
            *(before.run_id, before.feature_set, config.feature_set),
            f", and {others} tracks of other feature sets are left out; `murmur run AUDIO_DIR` computes what is missing"
            if others
            else "",
        )
    if model and model.input_digest != library.input_digest:
        log.warning(
            "%s was made of other tracks than there are now: they are fitted anew, from its start", model.run_id
        )


def _highest(store: Store, bus: Bus, names: Names, input_digest: str, settings: str) -> int:
    """Return the highest number in an id, but for ids of an interrupted run that did the same work: they are due now.

    Other interrupted runs may still be alive, and end after this one.
    """
    same = {"complete": False, "input_digest": input_digest, "settings_digest": settings}
    others = (
        run for run in store.scan(Run, fields=[*same, "clusters"]) if any(run[name] != same[name] for name in same)
    )
    ids = {cluster["cluster_id"] for run in others for cluster in run["clusters"]} | cluster_ids_on(bus, names)
    return max(map(number, ids), default=0)


def _nothing(config: Config, store: Store, others: int, unclusterable: int) -> str:
    if others:
        sets = sorted({track["feature_set"] for track in store.scan(Track, fields=["feature_set"])})
        found = ", ".join(one for one in sets if one != config.feature_set)
        short = f", {unclusterable} silent or too short" if unclusterable else ""
        return (
            f"{store.url}: no track of the configured feature set {config.feature_set} ({others} of {found}{short}); "
            "run `murmur run AUDIO_DIR`"
        )
    if unclusterable:
        return (
            f"{store.url}: nothing to cluster ({unclusterable} silent or too short); "
            "run `murmur run AUDIO_DIR` on a folder with music"
        )
    if failures := store.count(Failure):
        return f"{store.url}: nothing to cluster ({failures} files could not be read); `murmur failures` says why"
    return f"{store.url}: no tracks yet; run `murmur run AUDIO_DIR` first"
