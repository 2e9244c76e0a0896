"""What is written of the records is true: the tables of `docs/schema.md`, and the JSON Schema files."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from core import records

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "schema.md").read_text("utf-8")
KINDS = [
    records.Track, records.Source, records.File, records.Failure, records.Run, records.Group, records.Cluster,
    records.Lineage, records.Assignment, records.RunInForce, records.Member, records.LedgerEntry, records.PublishedRun,
    records.Description, records.OverRepresented, records.Sound, records.Trial,
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_page_has_the_fields_of_the_record(kind: type[records.Value]) -> None:
    found = re.search(rf"^## {kind.__name__}\n(.*?)(?=^##+ |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, f"no section on {kind.__name__}"
    first_cells = re.findall(r"^\| (`.*?) \|", found[1], re.MULTILINE)
    named = {name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)}
    assert named == set(kind.model_fields)


def test_the_json_schemas_are_those_of_the_records(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "scripts" / "schemas.py", tmp_path], check=True)
    assert contents(ROOT / "docs" / "schemas") == contents(tmp_path)
    kept = {kind.__name__ for kind in KINDS if issubclass(kind, records.Record)}
    assert {file.stem for file in tmp_path.glob("records/*")} >= kept


def contents(folder: Path) -> dict[Path, str]:
    return {file.relative_to(folder): file.read_text("utf-8") for file in folder.rglob("*.json")}
