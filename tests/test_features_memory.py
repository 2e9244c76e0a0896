"""Memory: what is admitted by the estimate fits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from core.config import parse_config
from etl.pool import BASE, Task, run_tasks
from features.memory import memory_needed

CONFIG = parse_config({"features": {"profiles": ["default", "fma", "tempo"]}})


def largest(path: str) -> int:
    """Analyse a file; return the most memory that this process has had to itself, bytes."""
    import features

    features.compute(Path(path), CONFIG)
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    most, of_files, shared = (int(status[name].split()[0]) for name in ("VmHWM", "RssFile", "RssShmem"))
    return 1024 * (most - of_files - shared)


def test_the_analysis_takes_no_more_than_was_estimated(tmp_path):
    path, noise = tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.1, (22_050 * 60, 1))
    with soundfile.SoundFile(path, "w", 22_050, 1) as file:
        for _ in range(20):
            file.write(noise)
    ((_, taken),) = run_tasks(largest, [Task("", str(path), 300.0)], workers=1, stage="describe")
    assert isinstance(taken, int), taken
    assert taken < BASE + memory_needed(20 * 60, CONFIG)


def test_no_more_is_needed_than_for_the_longest_excerpt_whatever_a_header_says():
    config = parse_config({"audio": {"max_duration": 600}})
    assert memory_needed(60, config) == pytest.approx(memory_needed(600, config) / 10)
    assert memory_needed(1e15, config) == memory_needed(None, config) == memory_needed(600, config)
