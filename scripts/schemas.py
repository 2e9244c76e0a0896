"""Write the JSON Schema of every record and every topic's value into ``docs/schemas``, or into a folder that is named.

A schema tells what a reader takes. Fields that it does not name are allowed, so a message of a later ``v1`` fits too.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pydantic import TypeAdapter

from core.names import CURRENT, REQUESTED, Names
from core.records import Failure, LedgerEntry, Member, PublishedRun, Record, Run, RunInForce, RunRequest, Track

FOLDER = Path(__file__).parents[1] / "docs" / "schemas"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
NAMES = Names()
TOPICS: dict[str, tuple[object, str]] = {
    NAMES.tracks: (Track, "The latest of each track. Key: track_id. A tombstone: the track was deleted."),
    NAMES.failed: (Failure, "The latest of each file. Key: path_digest. A tombstone: the file was read after all."),
    NAMES.dead_letters: (object, "What could not be loaded, as it came: any bytes, or none. Key: as it came."),
    NAMES.cluster("ID"): (Member, "The members of the cluster ID. Key: track_id. A tombstone: the track has left."),
    NAMES.members: (LedgerEntry, "What was last sent of each track. Key: track_id. A tombstone: it is in no cluster."),
    NAMES.spaces: (Run, "The published runs in full: their spaces and centres. Key: run_id."),
    NAMES.runs: (
        PublishedRun | RunInForce | RunRequest,
        f"Published runs. Key: run_id; {CURRENT}, with the run in force; {REQUESTED}, with the run that is asked for.",
    ),
}


def schema(kind: object, **words: str) -> str:
    """Return the schema of a type as JSON text, with other words for its title and description if any are given."""
    return json.dumps({"$schema": DIALECT, **TypeAdapter(kind).json_schema(), **words}, indent=2) + "\n"


def main(folder: Path) -> None:
    """Write all of them, and nothing else into the folder."""
    on_topics = {kind for kind, _ in TOPICS.values() if isinstance(kind, type) and kind is not object}
    files = {
        f"records/{kind.__name__}.json": schema(kind) for kind in on_topics | {*Record.__subclasses__(), PublishedRun}
    }
    files |= {
        f"topics/{name}.json": schema(kind, title=name, description=said) for name, (kind, said) in TOPICS.items()
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
