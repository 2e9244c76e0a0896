"""The job `cluster`: tracks of the store → a run and its assignments."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from clustering.assign import Labels, assign, distances_to, nearest, neighbours, score
from clustering.centres import SAMPLE_ROWS, choose_n_clusters, count_distinct, means, start_centres
from clustering.describe import describe
from clustering.engine import open_engine
from clustering.identity import identify, number
from clustering.library import Library, current_revs, digest_of, read_library
from clustering.measures import agreement, classes, shape
from clustering.runs import latest_run, next_run_id, purge_runs, run_in_force
from clustering.space import Matrix, declare, transform
from core.blocks import PROFILES
from core.config import Config
from core.errors import BackendError, ConfigError, MurmurError
from core.jobs import Progress, Report, Watch, ignore
from core.names import digest
from core.records import Assignment, Cluster, Failure, Group, Neighbour, Record, Run, Track, next_rev
from core.store import Store

log = logging.getLogger(__name__)

BATCH = 500
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


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted library."""

    space: list[Group]
    X: Matrix
    labels: Labels
    centres: Matrix
    """None without members."""


def run(config: Config, *, store: Store, progress: Watch = ignore) -> ClusterReport:
    """Cluster the tracks of the configured feature set.

    Reads `Track`; writes a `Run`, its `Assignment`s, then the `Run` again as complete, and removes the
    assignments of runs older than ``clustering.keep_runs``. With the same tracks, settings and seed as
    the latest complete run it writes nothing. A run that was interrupted is ignored, and removed later.

    Raises
    ------
    MurmurError
        If there is nothing to cluster.
    ConfigError
        If more clusters are asked for than there are distinct tracks, or blocks that are needed are not extracted.
    BackendError
        If the store or Spark fails, or there is no Java for Spark.
    """
    began = time.monotonic()
    check(config)
    revs = current_revs(store, config.feature_set)
    in_set, everywhere = store.count(Track, {"feature_set": config.feature_set}), store.count(Track)
    others, unclusterable = everywhere - in_set, in_set - len(revs)
    if not revs:
        raise MurmurError(_nothing(store.url, others, unclusterable, store.count(Failure)))
    latest, settings = latest_run(store), settings_digest(config)
    if latest and (latest.input_digest, latest.settings_digest) == (digest_of(revs), settings):
        log.info("%s is up to date: same tracks, settings and seed", latest.run_id)
        new, written, unreadable = latest, 0, len(revs) - latest.n_tracks
    else:
        groups = declare(config.clustering.groups)
        library = read_library(store, config.feature_set, groups, len(revs), progress, fields=METADATA)
        fitted = fit(config, library, progress)
        new = describe_run(config, store, library, fitted, settings, former=run_in_force(store) or latest)
        unreadable = library.unreadable
        written = write(store, new, assignments(new, library, fitted, progress), progress)
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
    )


def check(config: Config) -> None:
    """Raise `ConfigError` if blocks are not extracted that the space needs, or MFCCs, by which copies are told."""
    profiles = config.features.profiles
    extracted = {block for profile in profiles for block in PROFILES[profile]}
    groups = {f"clustering.groups.{name}": group.blocks for name, group in config.clustering.groups if group.weight}
    for place, blocks in (groups | {"the telling of copies": ("mfcc",)}).items():
        if missing := [block for block in blocks if block not in extracted]:
            wanted = {next(name for name, its_blocks in PROFILES.items() if block in its_blocks) for block in missing}
            raise ConfigError(
                f"{place}: needs {', '.join(missing)}, which features.profiles [{', '.join(profiles)}] does not have; "
                f"write [{', '.join(sorted({*wanted, *profiles}))}] and extract again"
            )


def settings_digest(config: Config) -> str:
    """Return the digest of everything but the tracks that decides a run."""
    chosen = config.clustering.model_dump_json(exclude={"keep_runs"})
    return digest(f"{chosen} {config.feature_set} {SAMPLE_ROWS}".encode())


def fit(config: Config, library: Library, progress: Watch = ignore) -> Fit:
    """Fit the space and the clusters of a library; what both engines and the driver do is here."""
    settings, vectors = config.clustering, library.vectors
    n_clusters = choose_n_clusters(len(library.revs), count_distinct(vectors), settings.n_clusters)
    progress(Progress("fit", 0, None))
    with open_engine(config, vectors) as engine:
        space = engine.fit_space()
        X = transform(space, vectors)
        centres = start_centres(X, n_clusters, n_init=settings.n_init, random_state=settings.random_state)
        if X.shape[1] > 0:
            centres = engine.fit_centres(space, centres)
    centres = means(X, nearest(X, centres), centres)
    used, labels = np.unique(nearest(X, centres), return_inverse=True)
    return Fit(space, X, labels, centres[used])


def describe_run(
    config: Config, store: Store, library: Library, fitted: Fit, settings: str, *, former: Run | None
) -> Run:
    """Return the run, not complete yet; its clusters are sorted by id."""
    highest = _highest(store, library.input_digest, settings)
    ids = identify(library.track_ids, fitted.labels, _members(store, former), highest)
    order = sorted(range(len(ids)), key=lambda label: number(ids[label]))
    distances = distances_to(fitted.X, fitted.centres[fitted.labels])
    descriptions = describe(fitted.labels, distances, library.sounds, library.metadata)
    run_id, now = next_run_id(store, f"{library.input_digest} {settings}")
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
        clusters=[
            Cluster(
                cluster_id=ids[label],
                size=int(np.sum(fitted.labels == label)),
                radius=float(np.median(distances[fitted.labels == label])),
                centre=fitted.centres[label].tolist(),
                description=descriptions[label],
            )
            for label in order
        ],
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


def assignments(run: Run, library: Library, fitted: Fit, progress: Watch = ignore) -> Iterator[Assignment]:
    """Yield where each track is, with its 10 nearest others by exact distance in the whole library.

    A neighbour's score is ``1 / (1 + d/r)`` with the radius r of the track's own cluster, so that the
    scores of a track and of its neighbours are on one scale: 1/2 is as far as half the members are from
    the centre.
    """
    placed = assign(run.clusters, fitted.X)
    progress(Progress("neighbours", 0, len(library.revs)))
    indices, distances = neighbours(fitted.X)
    radii = np.array([cluster.radius for cluster in run.clusters])[placed.labels]
    scores = score(distances, radii[:, None])
    track_ids = library.track_ids
    for i, (track_id, rev) in enumerate(library.revs.items()):
        yield Assignment(
            rev=run.rev,
            run_id=run.run_id,
            track_id=track_id,
            track_rev=rev,
            cluster_id=run.clusters[placed.labels[i]].cluster_id,
            distance=float(placed.distances[i]),
            score=float(placed.scores[i]),
            neighbours=[
                Neighbour(track_id=track_ids[j], score=float(near))
                for j, near in zip(indices[i], scores[i], strict=True)
            ],
        )


def write(store: Store, run: Run, records: Iterator[Assignment], progress: Watch = ignore) -> int:
    """Write the run, its assignments in batches, then the run as complete; return how many assignments."""
    _upsert(store, [run])
    written = 0
    while batch := list(islice(records, BATCH)):
        _upsert(store, batch)
        written += len(batch)
        progress(Progress("write", written, run.n_tracks))
    _upsert(store, [run.model_copy(update={"complete": True, "rev": next_rev(run.rev)})])
    return written


def _upsert(store: Store, records: Sequence[Record]) -> None:
    refused = store.upsert(records).refused
    for key, reason in refused.items():
        raise BackendError(f"{store.url}: cannot store {key}: {reason}")


def _members(store: Store, run: Run | None) -> dict[str, str]:
    if run is None:
        return {}
    found = store.scan(Assignment, fields=["track_id", "cluster_id"], prefix=f"{run.run_id}/")
    return {assignment["track_id"]: assignment["cluster_id"] for assignment in found}


def _highest(store: Store, input_digest: str, settings: str) -> int:
    """Return the highest number in an id, but for ids of an interrupted run that did the same work: they are due now.

    Other interrupted runs may still be alive, and end after this one.
    """
    same = {"complete": False, "input_digest": input_digest, "settings_digest": settings}
    others = (
        run for run in store.scan(Run, fields=[*same, "clusters"]) if any(run[name] != same[name] for name in same)
    )
    return max((number(cluster["cluster_id"]) for run in others for cluster in run["clusters"]), default=0)


def _nothing(url: str, others: int, unclusterable: int, failures: int) -> str:
    counts = {"of another feature set": others, "silent or too short": unclusterable}
    left = ", ".join(f"{n} {what}" for what, n in counts.items() if n)
    if others:
        return f"{url}: no track of the configured feature set ({left}); run `murmur run AUDIO_DIR`"
    if unclusterable:
        return f"{url}: nothing to cluster ({left}); run `murmur run AUDIO_DIR` on a folder with music"
    if failures:
        return f"{url}: nothing to cluster ({failures} files could not be read); `murmur failures` says why"
    return f"{url}: no tracks yet; run `murmur run AUDIO_DIR` first"
