"""What the features of a file cost, against plain librosa; written to docs/benchmarks.md: ``scripts/bench extraction``.

All is measured in one run on one thread, as medians of interleaved rounds, so that a busy machine slows all alike. Each
contestant does the whole of it: decode, mix, resample, descriptors, statistics.

* ours: what `features.compute` does;
* each from y: librosa called from ``y`` for every descriptor, as its documentation shows it;
* shared: the better version, one STFT and one constant-Q transform for all, by librosa's own functions;
* floor: decode, mix, resample, one ``librosa.stft``, for `fma` also one ``librosa.cqt`` of known tuning; no features.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from platform import python_version

import librosa
import numpy as np
import scipy.stats
import soundfile

from benchmarks.report import Measured, conclude, medians, table
from core.blocks import BLOCKS
from core.config import parse_config
from etl.pool import Task, run_tasks
from features import audio, descriptors, extraction, spectrum
from features.statistics import summarize

SR = 22_050
FMA = descriptors.blocks(["fma"])
DEFAULT = descriptors.blocks(["default"])
WITHOUT_FLUCTUATION = {block: line for block, line in DEFAULT.items() if block != "fluctuation"}
ROUNDS = 7


def main() -> None:
    """Measure, print and write."""
    warnings.simplefilter("ignore")  # what plain librosa imports is deprecated, and scipy doubts steady rows
    with tempfile.TemporaryDirectory() as folder:
        short, minute, track, long = (synthesise(Path(folder) / f"{s}.mp3", s) for s in (30, 60, 240, 1800))
        rows = [*against_librosa(short, track), fluctuation(track), growth(minute, long), *excerpts(track, minute)]
        songs = [synthesise(Path(folder) / f"song {seconds}.mp3", seconds) for seconds in range(180, 300, 20)]
        rows.append(two_workers(songs * 10))
        text = PAGE.format(
            python=python_version(),
            librosa=librosa.__version__,
            numpy=np.__version__,
            rows=table(rows),
            steps="\n".join(f"| {what} | {1000 * seconds:.1f} |" for what, seconds in steps(track)),
        )
    conclude("Extraction", text, rows)


def against_librosa(short: Path, track: Path) -> Iterable[Measured]:
    """Compare with what a user would write."""
    ours, from_y, floor = medians(
        ROUNDS, partial(describe, track, WITHOUT_FLUCTUATION), partial(default_from_y, track), partial(bare, track)
    )
    yield Measured("`default`, 4 min, against each from y", ms(ours, from_y), from_y / ours, least=5.4)
    yield Measured("`default`, 4 min, against the floor", ms(ours, floor), ours / floor, most=1.5)
    ours, from_y = medians(3 * ROUNDS, partial(describe, short, WITHOUT_FLUCTUATION), partial(default_from_y, short))
    yield Measured("`default`, 30 s, against each from y", ms(ours, from_y), from_y / ours, least=4.2)
    tuning = librosa.estimate_tuning(y=load(track), sr=SR)
    ours, from_y, shared, floor = medians(
        ROUNDS,
        partial(describe, track, FMA),
        partial(fma_from_y, track),
        partial(fma_shared, track),
        partial(bare, track, tuning),
    )
    yield Measured("`fma`, 4 min, against each from y", ms(ours, from_y), from_y / ours, least=5.5)
    yield Measured("`fma`, 4 min, against shared", ms(ours, shared), shared / ours, least=3.2)
    yield Measured("`fma`, 4 min, against its floor", ms(ours, floor), ours / floor, most=1.3)


def fluctuation(track: Path) -> Measured:
    """Compare the default with and without it."""
    without, with_it = medians(
        3 * ROUNDS, partial(describe, track, WITHOUT_FLUCTUATION), partial(describe, track, DEFAULT)
    )
    what = "`default` with `fluctuation`, 4 min, against without"
    return Measured(what, ms(with_it, without), with_it / without, most=1.1)


def growth(minute: Path, long: Path) -> Measured:
    """Compare the cost of a minute in a short and in a long track."""
    of_one, of_thirty = medians(ROUNDS, partial(describe, minute, DEFAULT), partial(describe, long, DEFAULT))
    what = "a minute of 30, against a track of 1 min"
    return Measured(what, ms(of_thirty / 30, of_one), of_thirty / 30 / of_one, least=0.8, most=1.2)


def excerpts(track: Path, minute: Path) -> Iterable[Measured]:
    """Compare the middle minute of a file with a file of a minute."""
    config = parse_config({"audio": {"max_duration": 60}})
    for suffix in (".mp3", ".flac", ".ogg"):
        whole, alone = (converted(path, suffix) for path in (track, minute))
        excerpt, short = medians(
            ROUNDS, partial(extraction.compute, whole, config), partial(extraction.compute, alone, config)
        )
        what = f"a minute of 4, {suffix[1:].upper()}, against a file of 1 min"
        yield Measured(what, ms(excerpt, short), excerpt / short, most=1.3)


def two_workers(tracks: list[Path]) -> Measured:
    """Compare the throughput of two workers with that of one, from the first result to the last."""
    one, two = (throughput(tracks, workers) for workers in (1, 2))
    what = f"2 workers against 1, {len(tracks)} tracks of 3 to 5 min"
    return Measured(what, f"{60 * two:.0f} : {60 * one:.0f} per min", two / one, least=1.8)


def steps(track: Path) -> Iterable[tuple[str, float]]:
    """Time each step of the default profile."""
    decoded = audio.decode(track, SR)
    y = decoded.samples
    blocks = [block.copy() for block in spectrum.magnitudes(y)]
    power = np.empty((1 + len(y) // spectrum.HOP, spectrum.N_LINES), np.float32)
    frames = descriptors.frames(y, SR)

    def fresh() -> descriptors.Frames:
        return descriptors.Frames(y, frames.spectrum)

    values = [(measure(frames), BLOCKS[block].statistics) for block, measure in DEFAULT.items()]
    named: dict[str, Callable[[], object]] = {
        "decode, mix and resample": lambda: audio.decode(track, SR),
        "STFT and magnitude": lambda: [None for _ in spectrum.magnitudes(y)],
        "power, mel, contrast, moments, rolloff, flatness, RMS": lambda: spectrum.measure(blocks, SR, power),
        "tuning": lambda: fresh().tuning,
        "chroma, without tuning": lambda: descriptors.chroma_stft(frames),
        "mel spectrogram in dB and MFCC": lambda: fresh().mfcc,
        "zero crossings": lambda: descriptors.zcr(frames),
        "`fluctuation`": lambda: DEFAULT["fluctuation"](frames),
        "statistics": lambda: [summarize(rows, wanted) for rows, wanted in values],
        "flags": lambda: extraction.flags(decoded),
        "all of it": lambda: extraction.compute(track),
        "for comparison: `librosa.load`": lambda: load(track),
        "for comparison: `librosa.stft`": lambda: librosa.stft(y),
        "for comparison: `librosa.cqt` of known tuning": lambda: plain_cqt(y, 0.0),
        "the constant-Q transform of `fma`": lambda: fresh().cqt,
    }
    return zip(named, medians(ROUNDS, *named.values()), strict=True)


def describe(path: Path, table: dict[str, descriptors.Descriptor]) -> object:
    """Do what `features.compute` does, for any table."""
    decoded = audio.decode(path, SR)
    return extraction.describe(decoded.samples, SR, table), extraction.flags(decoded)


def bare(path: Path, tuning: float | None = None) -> object:
    """Do what nobody can do without."""
    samples, sr = soundfile.read(path, dtype="float32", always_2d=True)
    y = librosa.resample((samples[:, 0] + samples[:, 1]) / 2, orig_sr=sr, target_sr=SR)
    return librosa.stft(y), None if tuning is None else plain_cqt(y, tuning)


def load(path: Path) -> np.ndarray:
    """Read a file as librosa's users do."""
    return librosa.load(path, sr=SR)[0]


def plain_cqt(y: np.ndarray, tuning: float | None) -> np.ndarray:
    """Take the transform of the FMA dataset."""
    return np.abs(librosa.cqt(y, sr=SR, n_bins=84, bins_per_octave=12, tuning=tuning))


def default_from_y(path: Path) -> object:
    """Describe a file by librosa, without `fluctuation`, which librosa does not have."""
    y, of = load(path), librosa.feature
    mfcc = of.mfcc(y=y, sr=SR, n_mfcc=20)
    delta = np.diff(mfcc)
    mel = librosa.power_to_db(of.melspectrogram(y=y, sr=SR))
    rows = [
        mfcc,
        of.chroma_stft(y=y, sr=SR),
        of.spectral_contrast(y=y, sr=SR),
        of.spectral_centroid(y=y, sr=SR),
        of.spectral_bandwidth(y=y, sr=SR),
        of.spectral_rolloff(y=y, sr=SR),
        of.spectral_flatness(y=y),
        of.zero_crossing_rate(y),
        of.rms(S=np.abs(librosa.stft(y))),
    ]
    few = [np.abs(delta).mean(axis=1), delta.std(axis=1), mel.mean(axis=1), mel.std(axis=1)]
    return few, [seven(values) for values in rows]


def fma_from_y(path: Path) -> object:
    """Describe a file as the FMA dataset, every descriptor from ``y``."""
    y, of = load(path), librosa.feature
    rows = [
        of.chroma_cens(y=y, sr=SR, bins_per_octave=12),
        of.chroma_cqt(y=y, sr=SR, bins_per_octave=12),
        of.chroma_stft(y=y, sr=SR),
        of.mfcc(y=y, sr=SR, n_mfcc=20),
        of.rms(S=np.abs(librosa.stft(y))),
        of.spectral_bandwidth(y=y, sr=SR),
        of.spectral_centroid(y=y, sr=SR),
        of.spectral_contrast(y=y, sr=SR),
        of.spectral_rolloff(y=y, sr=SR),
        of.tonnetz(chroma=of.chroma_cens(y=y, sr=SR, bins_per_octave=12)),
        of.zero_crossing_rate(y),
    ]
    return [seven(values) for values in rows]


def fma_shared(path: Path) -> object:
    """Describe a file as the FMA dataset, with one STFT and one constant-Q transform."""
    y, of = load(path), librosa.feature
    magnitude = np.abs(librosa.stft(y))
    power = magnitude**2
    cqt = plain_cqt(y, None)
    cens = of.chroma_cens(C=cqt, bins_per_octave=12)
    rows = [
        cens,
        of.chroma_cqt(C=cqt, bins_per_octave=12),
        of.chroma_stft(S=power, sr=SR),
        of.mfcc(S=librosa.power_to_db(of.melspectrogram(S=power, sr=SR)), n_mfcc=20),
        of.rms(S=magnitude),
        of.spectral_bandwidth(S=magnitude, sr=SR),
        of.spectral_centroid(S=magnitude, sr=SR),
        of.spectral_contrast(S=magnitude, sr=SR),
        of.spectral_rolloff(S=magnitude, sr=SR),
        of.tonnetz(chroma=cens),
        of.zero_crossing_rate(y),
    ]
    return [seven(values) for values in rows]


def seven(values: np.ndarray) -> list[np.ndarray]:
    """Summarise each row by numpy and scipy."""
    return [
        scipy.stats.kurtosis(values, axis=1),
        values.max(axis=1),
        values.mean(axis=1),
        np.median(values, axis=1),
        values.min(axis=1),
        scipy.stats.skew(values, axis=1),
        values.std(axis=1),
    ]


def throughput(paths: list[Path], workers: int) -> float:
    """Return the tracks per second of a pool, from its first result to its last."""
    import features

    tasks = [Task(path, path, 600.0) for path in paths]
    ends = [
        time.perf_counter()
        for _ in run_tasks(features.compute, tasks, workers=workers, stage="", prepare=features.warm_up)
    ]
    return (len(ends) - 1) / (ends[-1] - ends[0])


def synthesise(path: Path, seconds: int, sr: int = 44_100) -> Path:
    """Write chords that change each second, pulsing, over noise, in stereo."""
    notes = np.random.default_rng(0).integers(40, 88, (seconds, 4))
    noise = np.random.default_rng(1)
    t = np.arange(sr) / sr
    with soundfile.SoundFile(path, "w", sr, 2) as file:
        for chord in 440.0 * 2 ** ((notes - 69) / 12):
            tones = sum(np.sin(2 * np.pi * k * pitch * t) / (8 * k) for pitch in chord for k in (1, 2, 3))
            pulse = (tones * np.exp(-4 * np.mod(t, 0.5)))[:, np.newaxis]
            file.write(pulse * (0.5, 0.3) + 0.02 * noise.standard_normal((sr, 2)))
    return path


def converted(path: Path, suffix: str) -> Path:
    """Write a file in another format beside it."""
    other = path.with_suffix(suffix)
    if other != path:
        with soundfile.SoundFile(path) as source, soundfile.SoundFile(other, "w", source.samplerate, 2) as target:
            for block in source.blocks(blocksize=1 << 16):  # libsndfile's Vorbis encoder crashes on minutes at once
                target.write(block)
    return other


def ms(*seconds: float) -> str:
    """Write times down."""
    return " : ".join(f"{1000 * value:.0f}" for value in seconds) + " ms"


PAGE = """Written by `scripts/bench extraction`, on one thread, as medians of interleaved rounds; Python {python},
librosa {librosa}, numpy {numpy}. Each contestant does the whole: decode, mix, resample, descriptors, statistics. Times
are ours : theirs.

* *each from y*: librosa called from `y` for every descriptor, with the statistics of numpy and scipy;
* *shared*: one STFT and one constant-Q transform for all descriptors, by librosa's own functions;
* *the floor*: decode, mix, resample, one `librosa.stft`, no features; for `fma` also one `librosa.cqt` of known tuning.

The tracks are stereo MP3s at 44.1 kHz; `default` is without `fluctuation`, which librosa does not have, where it is
held against librosa.

{rows}

### Where the time goes

The steps of a 4-min stereo MP3, each for itself.

| step | ms |
|---|---|
{steps}
"""

if __name__ == "__main__":
    main()
