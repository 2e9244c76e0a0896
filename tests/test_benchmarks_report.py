"""The page that the benchmarks write."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.report import Measured, conclude, table

MET = Measured("sending", "9 : 10 per s", 0.9, least=0.7)
MISSED = Measured("loading", "7 : 10 per s", 0.7, least=0.8)


def conclusion(heading: str, *rows: Measured) -> bool:
    """Write a section; return whether the exit code says that every bar is met."""
    with pytest.raises(SystemExit) as caught:
        conclude(heading, table(rows), rows)
    return not caught.value.code


def test_a_part_replaces_its_own_section_and_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text("# Benchmarks\n\nWhat it costs.\n\n## One\n\nold\n\n### Steps\n\nold\n\n## Two\n\nkept\n")
    monkeypatch.setattr(report, "REPORT", page)
    conclusion("One", MET)
    conclusion("Three", MISSED)
    row = "| sending | 9 : 10 per s | 0.90 × | ≥ 0.7 | met |"
    assert page.read_text().startswith("# Benchmarks\n\nWhat it costs.\n\n## One\n\n| what | figures |")
    assert f"{row}\n\n## Two\n\nkept\n\n## Three\n\n| what |" in page.read_text()
    assert "old" not in page.read_text()


def test_a_missed_bar_is_an_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "REPORT", tmp_path / "benchmarks.md")
    report.REPORT.write_text("# Benchmarks\n")
    assert conclusion("One", MET)
    assert not conclusion("One", MET, MISSED)
