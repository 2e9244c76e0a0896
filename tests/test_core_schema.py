"""`docs/schema.md` has a table for each record, with exactly its fields."""

import re
from pathlib import Path

import pytest

from core import records

TEXT = (Path(__file__).parent.parent / "docs" / "schema.md").read_text("utf-8")
KINDS = [
    records.Track, records.Source, records.File, records.Failure, records.Run, records.Group, records.Cluster,
    records.Assignment, records.RunInForce, records.Member, records.LedgerEntry, records.PublishedRun,
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_page_has_the_fields_of_the_record(kind: type[records.Value]) -> None:
    found = re.search(rf"^## {kind.__name__}\n(.*?)(?=^##+ |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, f"no section on {kind.__name__}"
    first_cells = re.findall(r"^\| (`.*?) \|", found[1], re.MULTILINE)
    named = {name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)}
    assert named == set(kind.model_fields)
