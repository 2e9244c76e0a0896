"""``requirements.lock`` and what `scripts/lock` promises of it."""

from __future__ import annotations

import re
from pathlib import Path

LOCK = (Path(__file__).parents[1] / "requirements.lock").read_text()


def test_every_package_is_pinned_and_has_a_hash() -> None:
    entries = re.split(r"\n(?=[a-z])", re.sub(r"^ *#.*\n", "", LOCK, flags=re.MULTILINE).strip())
    assert len(entries) > 50
    for entry in entries:
        assert re.match(r"[a-z0-9-]+==[^ ]+( ;[^\n]*)? \\\n(    --hash=sha256:[0-9a-f]{64}( \\)?\n?)+$", entry), entry


def test_the_lock_names_no_url_and_no_folder() -> None:
    assert "//" not in LOCK
    assert "--index-url" not in LOCK
    assert "--find-links" not in LOCK
    assert not re.search(r"-r /", LOCK)


def test_the_lock_has_what_builds_packages() -> None:
    assert re.search(r"^setuptools==", LOCK, re.MULTILINE)
