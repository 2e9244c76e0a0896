"""The job `extract`: audio files and a catalogue → tracks and failures on the bus."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from core.bus import Bus
from core.config import Config
from core.jobs import Progress, Report, Watch, ignore
from core.records import Failure
from core.store import Store
from etl.catalogue import Matches, match, read_catalogue
from etl.engine import Engine, EngineName, open_engine
from etl.folders import AudioFile, Walk, is_gone, look, walk
from etl.known import Known, read_known, with_features
from etl.memory import memory_budget
from etl.messages import create_topics
from etl.metadata import plain
from etl.outbox import Outbox
from etl.plan import (
    Plan,
    is_inside,
    is_lasting,
    known_digests,
    plan,
    remembered_failures,
    remembered_rows,
)
from etl.pool import default_workers, fitting_workers
from etl.work import (
    Durations,
    Work,
    describe,
    get_ready_to_describe,
    get_ready_to_identify,
    group_drafts,
    identify,
    task_to_describe,
    task_to_identify,
)
from etl.worker import Trouble
from features.memory import memory_needed

if TYPE_CHECKING:
    from features.identity import Probe

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ExtractReport(Report):
    """What an extraction did: `read`, `unchanged` and `failed` count files, `sent` messages."""

    tried: int = 0
    """Files that were opened, without the known failures."""
    computed: int = 0
    """Files whose features were computed."""
    known_failures: int = 0
    """Files that are as they were when they failed: not tried again, or failed as before; not among `failed`."""
    copies: int = 0
    """Files that hold the same as another one."""
    deleted: int = 0
    """Tracks whose files hold something else now."""
    gone: int = 0
    """Tracks whose files are no longer there; they are kept unless they are to be pruned."""
    pruned: int = 0
    """Of these, those that were deleted."""
    unseen: int = 0
    """Tracks whose files are below a folder that cannot be read or is empty; they are kept."""
    unreadable: int = 0
    """Folders and links that could not be followed."""
    rows_without_file: int = 0
    files_without_row: int = 0
    repeated_rows: int = 0


def run(
    config: Config,
    audio_dir: Path,
    *,
    metadata: Path | None = None,
    prune: bool = False,
    engine: EngineName = "local",
    store: Store,
    bus: Bus,
    progress: Watch = ignore,
) -> ExtractReport:
    """Bring the bus up to date with a folder of audio and its catalogue.

    Reads the folder, the catalogue, and what is known: messages that are not loaded yet, and the store. Sends a `Track`
    for each recording that is new or has changed, a `Failure` for each file that cannot be read, and tombstones for
    tracks whose files hold something else now and for failures that are mended or whose files are gone. Features are
    computed only where no track has the same audio. A file that failed is not tried again until its size, its time or
    the features change, or `etl.failures.retry` asks for it; one that could not even be opened is tried each time,
    since a permission is no change of the file. Run again it sends nothing; stopped anywhere, the next run goes on from
    there.

    Parameters
    ----------
    config : Config
        Sections `audio`, `catalogue`, `features`, `topics` and `spark`, `workers` and `memory`.
    audio_dir : Path
        The folder.
    metadata : Path, optional
        The catalogue, a CSV. Without it, what an earlier one said of a track stays.
    prune : bool
        Whether a track of which no file is left gets a tombstone. A file counts as left below a folder that cannot be
        read or is empty, as one is where nothing is mounted.
    engine : str
        ``'local'``: files are read by processes of this machine; ``'spark'``: by the executors of a cluster, which send
        the tracks, too.
    store, bus
        Where the job reads what is known; it writes to the bus, and executors write to that of the config.
    progress : callable
        Told how many changed files were identified, then how many tracks were extracted.

    Raises
    ------
    ConfigError
        If the folder is missing or without audio, or the catalogue or the engine cannot be used.
    BackendError
        If the store, the bus or Spark fails.
    """
    started = time.monotonic()
    found = walk(audio_dir, config.audio.extensions)
    matches = match(read_catalogue(metadata, config.catalogue), found.files, found.root) if metadata else Matches()
    _warn(found, matches)
    names = create_topics(bus, config)
    known = read_known(names, store=store, bus=bus)
    remembered = remembered_failures(found.files, known.failures.values(), config.feature_set)
    files = [file for file in found.files if file.path not in remembered]
    digests = known_digests(files, known.tracks)
    changed = [file for file in files if file.path not in digests]
    with (
        open_engine(engine, config, audio_dir) as opened,
        closing(Outbox(bus.producer(), names, known.failures, config.feature_set)) as outbox,
    ):
        probes = _identify(changed, config, opened, outbox, progress)
        digests |= {path: probe.digest for path, probe in probes.items()}
        durations: dict[str, float | None] = {track.source.digest: track.duration for track in known.tracks.values()}
        durations |= {probe.digest: probe.duration for probe in probes.values()}
        rows = matches.rows if metadata else remembered_rows(files, digests, known.tracks)
        todo = plan(found, rows, digests, known.tracks, config.feature_set)
        unseen = [known.tracks[track_id].source.path for track_id in todo.unseen]
        _warn_of("tracks kept whose files are below a folder that cannot be read or is empty", unseen)
        donors = with_features(
            known, {draft.donor for draft in todo.drafts if draft.donor}, names, store=store, bus=bus
        )
        works = group_drafts(todo.drafts, donors, durations, config)
        computed = _extract(works, todo, durations, config, opened, outbox, progress)
        deleted = _clear(todo, found, known, outbox)
        pruned = todo.gone if prune else []
        for track_id in pruned:
            outbox.delete(track_id, known.tracks[track_id].rev)
    report = replace(
        _report(found, matches, todo, outbox, computed=computed, changed=changed),
        seconds=time.monotonic() - started,
        known_failures=len(remembered) + len(outbox.failed_again),
        deleted=deleted,
        pruned=len(pruned),
    )
    log.info("%s: %s", found.root, report)
    return report


def _identify(
    files: Sequence[AudioFile], config: Config, engine: Engine, outbox: Outbox, progress: Watch
) -> dict[str, Probe]:
    """Return what is found in files that are new or have changed, by path."""
    largest_first = sorted(files, key=lambda file: -file.size)
    tasks = list(map(task_to_identify, largest_first))
    probes = {}
    if tasks:
        progress(Progress("identify", 0, len(tasks)))
    workers = _workers(config, len(tasks))
    with closing(
        engine.run_tasks(identify, tasks, workers=workers, stage="read", prepare=get_ready_to_identify)
    ) as results:
        for done, (file, result) in enumerate(results, 1):
            if isinstance(result, Trouble):
                outbox.failure(file, result)
            else:
                probes[file.path] = result
            progress(Progress("identify", done, len(files), len(outbox.failed) + len(outbox.failed_again)))
    return probes


def _extract(
    works: Iterator[Work],
    todo: Plan,
    durations: Durations,
    config: Config,
    engine: Engine,
    outbox: Outbox,
    progress: Watch,
) -> set[str]:
    """Send the tracks of every piece of work; return the files that were computed, or failed at it."""
    tasks = (task_to_describe(work, durations) for work in works)
    needs = [memory_needed(durations.get(draft.digest), config) for draft in todo.drafts if draft.donor is None]
    memory = memory_budget(config)
    workers = fitting_workers(_workers(config, len(todo.drafts)), memory, needs)
    prepare = partial(get_ready_to_describe, config) if needs else None
    computed: set[str] = set()
    damaged: list[str] = []
    done = 0
    if todo.drafts:
        progress(Progress("extract", 0, len(todo.drafts)))
    with closing(
        engine.run_tasks(describe, tasks, workers=workers, stage="describe", memory=memory, prepare=prepare)
    ) as results:
        for work, result in results:
            if work.donor is None:
                computed.add(work.drafts[0].file.path)
            if isinstance(result, Trouble):
                for file in _blamed(work, result):
                    outbox.failure(file, result)
            else:
                for track in result:
                    outbox.track(track, delivered=engine.delivers)
                    if "damaged" in track.flags and work.donor is None:
                        damaged.append(track.source.path)
            done += len(work.drafts)
            progress(Progress("extract", done, len(todo.drafts), len(outbox.failed) + len(outbox.failed_again)))
    _warn_of("damaged or cut short, of which what can be decoded counts", damaged)
    return computed


def _clear(todo: Plan, found: Walk, known: Known, outbox: Outbox) -> int:
    """Send the end of failures that are mended and of tracks that were replaced; return how many of these."""
    for path in (*todo.unchanged, *_not_wanted(known.failures.values(), found)):
        outbox.mended(path)
    lost = [track for track in todo.lost if not track.paths <= outbox.failed | outbox.failed_again]
    for track in lost:
        outbox.delete(track.track_id, track.rev)
    return len(lost)


def _not_wanted(failures: Iterable[Failure], found: Walk) -> list[str]:
    """Return the files in the folder that failed and are gone now, or are no longer looked for."""
    walked = {file.path for file in found.files}
    missing = [failure.path for failure in failures if failure.path not in walked]
    return [path for path in missing if is_inside(path, found.root) and (look(path) or is_gone(path))]


def _blamed(work: Work, trouble: Trouble) -> tuple[AudioFile, ...]:
    """Return the files that failed: all that hold the same audio, unless it is only that one could not be opened."""
    if not is_lasting(trouble):
        return (work.drafts[0].file,)
    return tuple(chain.from_iterable(draft.files for draft in work.drafts))


def _workers(config: Config, n_tasks: int) -> int:
    return max(1, min(config.workers or default_workers(), n_tasks))


def _report(
    found: Walk, matches: Matches, todo: Plan, outbox: Outbox, *, computed: set[str], changed: Iterable[AudioFile]
) -> ExtractReport:
    """Count what was found, planned and sent; `computed` and `changed` are the files that were opened."""
    opened = {file.path for file in changed} | computed | outbox.failed
    return ExtractReport(
        read=len(found.files),
        unchanged=len(todo.unchanged),
        failed=len(outbox.failed),
        sent=outbox.sent,
        tried=len(opened - outbox.failed_again),
        computed=len(computed - outbox.failed - outbox.failed_again),
        copies=todo.copies,
        gone=len(todo.gone),
        unseen=len(todo.unseen),
        unreadable=len(found.unreadable),
        rows_without_file=len(matches.rows_without_file),
        files_without_row=len(matches.files_without_row),
        repeated_rows=len(matches.repeated),
    )


def _warn(found: Walk, matches: Matches) -> None:
    for what, names in {
        "folders and links that cannot be followed": found.unreadable,
        "rows of the catalogue without a file": matches.rows_without_file,
        "files without a row in the catalogue": matches.files_without_row,
        "names or ids in more than one row of the catalogue, of which the first counts": matches.repeated,
        "rows of the catalogue that fit more than one file; join by path to tell them apart": matches.shared,
    }.items():
        _warn_of(what, names)


def _warn_of(what: str, names: Sequence[str]) -> None:
    if names:
        first = ", ".join(plain(name) or "" for name in names[:3])
        log.warning("%s: %d (%s%s)", what, len(names), first, ", …" if len(names) > 3 else "")
