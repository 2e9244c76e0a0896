"""What a worker does with a file, and what that takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from core.config import Config
from core.records import File, Source, Track, next_rev
from etl.folders import AudioFile
from etl.metadata import Metadata, plain, read_tags
from etl.plan import Draft
from etl.pool import Task
from features.memory import analysed_seconds, memory_needed

if TYPE_CHECKING:
    from features.extraction import Computed
    from features.identity import Probe

Durations = Mapping[str, float | None]
"""Seconds of audio, by the digest of its packets; None where they are not known."""

SLOWEST_READ = 2_000_000
"""Bytes per second at which a file is read at least; a disk that is slower seems to hang."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a worker does at once: the tracks that need the same features."""

    drafts: tuple[Draft, ...]
    donor: Track | None
    """Has the features; None: they are to be computed."""
    config: Config


def identify(path: str) -> Probe:
    """Return what a file's packets and headers say; runs in a worker, so that nobody else has to read them."""
    from features.identity import probe

    return probe(Path(path))


def describe(work: Work) -> list[Track]:
    """Return the tracks of one piece of work, whole; runs in a worker."""
    import features

    sound = work.donor or features.compute(Path(work.drafts[0].file.real), work.config)
    return [_track(draft, sound, work.config.feature_set) for draft in work.drafts]


def get_ready_to_describe(config: Config) -> None:
    """Compile and cache what the first track would wait for; runs once in each worker."""
    import features

    features.warm_up(config)


def get_ready_to_identify() -> None:
    """Import what the first file would wait for; runs once in each worker."""
    import features.identity  # noqa: F401  # now, and not within the time limit of the first file


def group_drafts(
    drafts: Sequence[Draft], donors: Iterator[Track], durations: Durations, config: Config
) -> Iterator[Work]:
    """Give each draft its donor; without one, drafts of the same audio go together, the longest first."""
    waiting: dict[str | None, list[Draft]] = {}
    for draft in drafts:
        waiting.setdefault(draft.donor, []).append(draft)
    for donor in donors:
        yield Work(tuple(waiting.pop(donor.track_id)), donor, config)
    without: dict[str, list[Draft]] = {}
    for draft in chain.from_iterable(waiting.values()):
        without.setdefault(draft.digest, []).append(draft)
    for digest in sorted(without, key=lambda digest: -analysed_seconds(durations.get(digest), config)):
        yield Work(tuple(without[digest]), None, config)


def task_to_identify(file: AudioFile) -> Task[AudioFile, str]:
    """Say what a file takes to be identified."""
    return Task(file, file.real, 10 + file.size / SLOWEST_READ)


def task_to_describe(work: Work, durations: Durations) -> Task[Work, Work]:
    """Say what a piece of work takes: as long as slow disks and busy processors may need, more than that is a hang."""
    seconds = 60 + work.drafts[0].file.size / SLOWEST_READ
    if work.donor:
        return Task(work, work, seconds)
    duration = durations.get(work.drafts[0].digest)
    seconds += analysed_seconds(duration, work.config) / 4
    return Task(work, work, seconds, memory_needed(duration, work.config))


def _track(draft: Draft, sound: Track | Computed, feature_set: str) -> Track:
    heard = sound.source if isinstance(sound, Track) else sound
    known = (draft.row.metadata if draft.row else Metadata()).fill_gaps(read_tags(draft.file.real))
    return Track(
        track_id=draft.track_id,
        rev=next_rev(draft.rev),
        title=known.title or plain(PurePath(draft.file.path).stem),
        artist=known.artist,
        album=known.album,
        genre=known.genre,
        year=known.year,
        extra=known.extra,
        duration=sound.duration,
        source=Source(
            path=draft.file.path,
            size=draft.file.size,
            mtime_ns=draft.file.mtime_ns,
            digest=draft.digest,
            row_digest=draft.row.digest if draft.row else None,
            codec=heard.codec,
            sample_rate=heard.sample_rate,
            channels=heard.channels,
            decoder=heard.decoder,
            librosa=heard.librosa,
        ),
        copies=[File(path=copy.path, size=copy.size, mtime_ns=copy.mtime_ns) for copy in draft.copies],
        feature_set=feature_set,
        features=sound.features,
        flags=sound.flags,
    )
