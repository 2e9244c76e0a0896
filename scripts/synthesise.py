"""Write a small library of invented music: 40 tracks of four kinds of sound, and their ``metadata.csv``.

The same samples at every call. The CSV is written last and marks a finished library, which is left as it is.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray
from scipy.signal import lfilter

Audio = NDArray[np.float64]

SAMPLE_RATE = 44_100
FORMATS = ("wav", "flac", "ogg", "mp3")
TRACKS_PER_KIND = 10
ARTISTS = {
    "strings": ("Mirelle Tandow", "The Oarlock Trio"),
    "drums": ("Kettle & Brine", "Dorn Patwick"),
    "surf": ("Sallow Point", "Inlet Nine"),
    "bells": ("Verrin Oake", "Glass Fennel"),
}
MOODS = ("Amber", "Borrowed", "Hollow", "Little", "Northern", "Patient", "Quiet")
THINGS = ("Ferry", "Harbour", "Ladder", "Meadow", "Orchard", "Parade", "Sparrow", "Window")


def seconds(duration: float) -> Audio:
    """Return the times (s) of the samples of `duration` seconds."""
    return np.arange(int(duration * SAMPLE_RATE)) / SAMPLE_RATE


def mix(y: Audio, onset: float, note: Audio) -> None:
    """Add `note` to `y` at `onset` (s), cut where `y` ends."""
    start = int(onset * SAMPLE_RATE)
    y[start : start + len(note)] += note[: max(len(y) - start, 0)]


def strings(rng: np.random.Generator, t: Audio) -> Audio:
    """Strummed chords: all harmonics, the higher the weaker and the sooner gone.

    The sum over n of r**n / n * sin(n * phase) is the angle of 1 / (1 - r * exp(i * phase)); r falls with time.
    """
    y = np.zeros_like(t)
    note_t, beat, root = seconds(1.5), rng.uniform(0.45, 0.8), rng.uniform(165, 330)
    r, third = 0.9 * np.exp(-1.5 * note_t), rng.choice([3, 4])
    for onset in np.arange(0, t[-1], beat):
        chord = rng.choice([0, 5, 7, 9])
        for i, step in enumerate((0, third, 7, 12)):
            string = r * np.exp(2j * np.pi * root * 2 ** ((chord + step) / 12) * note_t)
            mix(y, onset + 0.02 * i, np.angle(1 / (1 - string)) * np.exp(-1.5 * note_t) * rng.uniform(0.7, 1))
    return y


def drums(rng: np.random.Generator, t: Audio) -> Audio:
    """Draw a bar of sixteen steps of kick, snare and hi-hat, and repeat it."""
    y = np.zeros_like(t)
    hit_t, step = seconds(0.3), 60 / rng.uniform(85, 150) / 4
    noise = rng.standard_normal(len(hit_t))
    kick = np.sin(2 * np.pi * (45 * hit_t - rng.uniform(4, 8) * np.exp(-25 * hit_t))) * np.exp(-12 * hit_t)
    snare = (0.5 * noise + np.sin(2 * np.pi * rng.uniform(160, 220) * hit_t)) * np.exp(-20 * hit_t)
    hat = np.diff(noise, prepend=0) * np.exp(-rng.uniform(50, 90) * hit_t)
    kicks, hats = rng.random(16) < 0.3, rng.random(16) < 0.8
    for i, onset in enumerate(np.arange(0, t[-1], step)):
        beat = i % 16
        if beat in (0, 8) or kicks[beat]:
            mix(y, onset, kick)
        if beat in (4, 12):
            mix(y, onset, 0.7 * snare)
        if hats[beat]:
            mix(y, onset, 0.3 * hat)
    return y


def surf(rng: np.random.Generator, t: Audio) -> Audio:
    """Low-passed noise that swells and falls slowly."""
    pole = rng.uniform(0.85, 0.95)
    noise = lfilter([1 - pole], [1, -pole], rng.standard_normal(len(t)))
    swell = np.sin(2 * np.pi * (rng.uniform(0.1, 0.3) * t + rng.random()))
    return np.asarray(noise * (1.2 + swell))


def bells(rng: np.random.Generator, t: Audio) -> Audio:
    """Sparse bells: frequency modulation with an inharmonic ratio, whose index decays (Chowning 1973)."""
    y = np.zeros_like(t)
    note_t, ratio, root = seconds(2.5), rng.choice([1.4, 2.76, 3.5]), rng.uniform(500, 900)
    for beat in np.arange(0, t[-1], rng.uniform(0.5, 0.9)):
        f = root * 2 ** (rng.choice([0, 2, 4, 7, 9, 12]) / 12)
        modulator = 3 * np.exp(-2 * note_t) * np.sin(2 * np.pi * ratio * f * note_t)
        mix(y, beat + rng.uniform(0, 0.2), np.sin(2 * np.pi * f * note_t + modulator) * np.exp(-1.5 * note_t))
    return y


KINDS = {"strings": strings, "drums": drums, "surf": surf, "bells": bells}


def synthesise(folder: Path, seed: int = 0) -> None:
    """Write the tracks and their CSV to `folder`; do nothing where the CSV is there already."""
    catalogue = folder / "metadata.csv"
    if catalogue.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    titles = rng.permutation([f"{mood} {thing}" for mood in MOODS for thing in THINGS])
    rows = []
    for i in range(TRACKS_PER_KIND * len(KINDS)):
        kind = list(KINDS)[i % len(KINDS)]
        album = i // len(KINDS) % 5
        title = str(titles[i])
        filename = f"{title.lower().replace(' ', '-')}.{FORMATS[(i + i // len(FORMATS)) % len(FORMATS)]}"
        y = KINDS[kind](rng, seconds(rng.uniform(8, 15)))
        y *= 10 ** (rng.uniform(-12, -1) / 20) / np.abs(y).max()
        soundfile.write(folder / filename, y, SAMPLE_RATE)
        rows.append([filename, title, ARTISTS[kind][album % 2], f"{MOODS[album]} {kind}", kind, 1990 + 7 * album])
    with catalogue.with_suffix(".part").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["filename", "title", "artist", "album", "genre", "year"], *rows])
    catalogue.with_suffix(".part").replace(catalogue)


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: python scripts/synthesise.py FOLDER")
    synthesise(Path(sys.argv[1]))
