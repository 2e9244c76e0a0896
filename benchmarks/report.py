"""What the benchmarks share: interleaved rounds, rows that hold a bar, a section each of docs/benchmarks.md."""

from __future__ import annotations

import math
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

REPORT = Path(__file__).parent.parent / "docs" / "benchmarks.md"


class Measured(NamedTuple):
    """A row of the table."""

    what: str
    times: str
    ratio: float
    least: float = 0.0
    most: float = math.inf

    @property
    def is_met(self) -> bool:
        """Whether the ratio is within its bar."""
        return self.least <= self.ratio <= self.most

    def __str__(self) -> str:
        """Return it as Markdown."""
        bar = f"≥ {self.least:g}" if self.most == math.inf else f"≤ {self.most:g}"
        if self.least and self.most < math.inf:
            bar = f"{self.least:g} … {self.most:g}"
        return f"| {self.what} | {self.times} | {self.ratio:.2f} × | {bar} | {'met' if self.is_met else '**missed**'} |"


def medians(rounds: int, *contestants: Callable[[], object]) -> list[float]:
    """Return the median seconds of each contestant, after one call of each that does not count."""
    times = [[clock(contestant) for contestant in contestants] for _ in range(rounds + 1)]
    return [statistics.median(column) for column in zip(*times[1:], strict=True)]


def clock(contestant: Callable[[], object]) -> float:
    """Return the seconds of one call."""
    start = time.perf_counter()
    contestant()
    return time.perf_counter() - start


def table(rows: Sequence[Measured]) -> str:
    """Return the rows under their heads."""
    return "\n".join(["| what | figures | ratio | bar | |", "|---|---|---|---|---|", *map(str, rows)])


def conclude(heading: str, text: str, rows: Sequence[Measured]) -> None:
    """Print a section, write it in the place of the former one, and exit with 1 if a bar is missed."""
    start, *sections = re.split(r"^## ", REPORT.read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = {section.partition("\n")[0]: section.partition("\n")[2].strip() for section in sections}
    found[heading] = text.strip()
    written = [f"## {name}\n\n{body}\n" for name, body in found.items()]
    REPORT.write_text("\n".join([start.strip() + "\n", *written]), encoding="utf-8")
    print(text)
    sys.exit(not all(row.is_met for row in rows))
