"""The main job through the real command: audio and CSV → bus → store → clusters → topics."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from sklearn.metrics import adjusted_rand_score

from core import open_bus, open_store
from core.bus import read_to_end
from core.names import CURRENT
from core.records import Assignment, Failure, Run, RunInForce, Track
from core.store import Document, Store

ROOT = Path(__file__).parent.parent
AUDIO = os.environ.get("MURMUR_TEST_AUDIO")
FLATNESS = "spectral_flatness.mean"
VARYING = {"rev", "track_rev", "run_id", "since_run", "input_digest", "created_at"}
"""Fields that differ between two runs over the same library."""


def murmur(*arguments: str | Path, cwd: Path, code: int = 0) -> str:
    """Run the command as a user does and return what it prints to stdout."""
    done = subprocess.run(
        [Path(sys.executable).with_name("murmur"), "-q", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the synthetic library: 40 tracks of four kinds and their CSV."""
    folder = tmp_path_factory.mktemp("synthetic") / "library"
    subprocess.run([sys.executable, ROOT / "scripts" / "synthesise.py", folder], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def embedded(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder where the library was run with the embedded default, on Spark where there is Java."""
    folder = tmp_path_factory.mktemp("embedded")
    murmur("run", library, "--metadata", library / "metadata.csv", "--engine", _engine(), cwd=folder)
    return folder


def test_the_kinds_of_the_library_are_separated(library: Path, embedded: Path) -> None:
    with closing(open_store(f"sqlite:///{embedded}/murmur.db", create=False)) as store:
        kinds = {track["track_id"]: track["genre"] for track in store.scan(Track, fields=("track_id", "genre"))}
        found = _partition(store)
    with (library / "metadata.csv").open() as rows:
        assert sorted(kinds.values()) == sorted(row["genre"] for row in csv.DictReader(rows))
    assert len(found) == len(kinds) == 40
    assert adjusted_rand_score([kinds[track] for track in found], list(found.values())) >= 0.9


def test_the_second_run_computes_writes_and_sends_nothing_and_says_so(library: Path, embedded: Path) -> None:
    before = _contents(f"sqlite:///{embedded}/murmur.db", f"sqlite:///{embedded}/murmur.db", varying=set())
    said = murmur("run", library, "--metadata", library / "metadata.csv", "--engine", _engine(), cwd=embedded)
    assert "nothing computed, written or sent" in said
    after = _contents(f"sqlite:///{embedded}/murmur.db", f"sqlite:///{embedded}/murmur.db", varying=set())
    assert after == before
    reports = json.loads(
        murmur("run", library, "--metadata", library / "metadata.csv", "--engine", _engine(), "--json", cwd=embedded)
    )["reports"]
    assert reports["extract"]["unchanged"] == 40
    assert [one["written"] + one["sent"] for one in reports.values()] == [0, 0, 0, 0]


def test_a_subscriber_gets_each_member_with_metadata_score_and_neighbours(embedded: Path) -> None:
    with closing(open_store(f"sqlite:///{embedded}/murmur.db", create=False)) as store:
        partition = _partition(store)
    for cluster_id in sorted(set(partition.values())):
        lines = murmur("subscribe", cluster_id, "--json", cwd=embedded).splitlines()
        members = [json.loads(line) for line in lines]
        assert {member["track_id"] for member in members} == {t for t, c in partition.items() if c == cluster_id}
        for member in members:
            assert member["title"]
            assert 0 < member["score"] <= 1
            assert len(member["neighbours"]) == 10
            assert member["track_id"] not in {near["track_id"] for near in member["neighbours"]}
            assert str(embedded.parent) not in json.dumps(member)


def test_the_kinds_of_the_library_are_found_without_the_help_of_the_artist(embedded: Path) -> None:
    counts, _, filtered, *table = murmur("evaluate", "--label", "genre", cwd=embedded).splitlines()
    assert counts.startswith("genre: 40 tracks of 4 classes; left out: 0 tracks")
    assert filtered == "* none of the same artist or album: n = 40, majority share 0.250"
    assert table[0].split()[:6] == ["setting", "K", "1-NN", "5-NN", "1-NN*", "5-NN*"]
    assert table[-1].count("1.000 ± 0.000") >= 2


def test_the_runs_topic_and_the_command_say_what_each_cluster_is(embedded: Path) -> None:
    """Each kind is a cluster of 10 of the 40 tracks, so that its genre is four times as frequent there."""
    with closing(open_bus(f"sqlite:///{embedded}/murmur.db", create=False)) as bus:
        values = [json.loads(message.value or b"") for message in read_to_end(bus, ["clusters.runs.v1"])]
    descriptions = next(value["descriptions"] for value in values if value.get("published"))
    shown = json.loads(murmur("clusters", "--plot", "map.png", "--json", cwd=embedded))
    assert {one["cluster_id"]: one["description"] for one in shown} == descriptions
    assert {(genre["tracks"], genre["lift"]) for one in descriptions.values() for genre in one["genres"]} == {(10, 4)}
    assert {one["text"].rpartition("; ")[2] for one in descriptions.values()} == {"drums", "bells", "surf", "strings"}
    noisiest = max(descriptions.values(), key=lambda one: {s["scale"]: s for s in one["sounds"]}[FLATNESS]["mean"])
    assert "noisy" in noisiest["text"]
    assert noisiest["text"].endswith("surf")
    assert (embedded / "map.png").read_bytes().startswith(b"\x89PNG")


def test_a_group_hears_of_each_member_once(embedded: Path) -> None:
    first = murmur("subscribe", "c01", "--group", "listeners", "--json", cwd=embedded).splitlines()
    members = murmur("subscribe", "c01", "--json", cwd=embedded).splitlines()
    assert len(first) == len(members) > 0
    assert murmur("subscribe", "c01", "--group", "listeners", cwd=embedded) == "nothing new\n"


@pytest.mark.servers
def test_servers_give_the_same_tracks_partition_and_messages_as_the_embedded_default(
    library: Path, embedded: Path, tmp_path: Path, kafka_url: str, mongodb_url: str
) -> None:
    prefix = f"e2e-{uuid.uuid4().hex[:8]}."
    urls = (f"{mongodb_url.rstrip('/')}/{prefix.rstrip('.')}", kafka_url)
    tree = {"store": urls[0], "bus": urls[1], "topics": {"prefix": prefix, "partitions": 3}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    command = ("run", library, "--metadata", library / "metadata.csv", "--engine", _engine())
    murmur(*command, cwd=tmp_path)
    expected = _contents(f"sqlite:///{embedded}/murmur.db", f"sqlite:///{embedded}/murmur.db")
    found = _contents(*urls, prefix=prefix)
    assert found.keys() == expected.keys()
    for name, records in expected.items():
        assert found[name] == records, name
    assert "nothing computed, written or sent" in murmur(*command, cwd=tmp_path)


def test_a_killed_extract_goes_on_with_the_missing_files_though_nothing_was_loaded(
    library: Path, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/murmur.db"
    (tmp_path / "config.yaml").write_text("workers: 1\n")  # slow enough to be killed half way
    command = [Path(sys.executable).with_name("murmur"), "extract", library]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL) as running:
        sent = 0
        while sent < 1 and running.poll() is None:
            sent = _count_tracks_on(url) if (tmp_path / "murmur.db").exists() else 0
        running.send_signal(signal.SIGKILL)
    sent = _count_tracks_on(url)
    assert 1 <= sent < 40
    report = json.loads(murmur("extract", library, "--json", cwd=tmp_path))
    assert (report["unchanged"], report["sent"]) == (sent, 40 - sent)


@pytest.fixture(scope="session")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder where the real recordings were run."""
    if not AUDIO:
        pytest.skip("MURMUR_TEST_AUDIO names no folder of real audio")
    folder = tmp_path_factory.mktemp("recordings")
    murmur("run", AUDIO, "--metadata", Path(AUDIO) / "metadata.csv", "--engine", "sklearn", cwd=folder)
    return folder


def test_the_other_encoding_of_each_real_recording_is_the_most_similar(recordings: Path) -> None:
    with closing(open_store(f"sqlite:///{recordings}/murmur.db", create=False)) as store:
        tracks = {t["track_id"]: t for t in store.scan(Track, fields=("track_id", "extra", "source"))}
        assert store.count(Failure) == 0
    assert len(tracks) == 28
    for track_id, track in tracks.items():
        nearest = json.loads(murmur("similar", track_id, "--copies", "-n", "1", "--json", cwd=recordings))[0]
        other = tracks[nearest["track_id"]]
        assert other["extra"]["recording"] == track["extra"]["recording"], track["source"]["path"]
        assert other["source"]["path"] != track["source"]["path"]


def test_copies_of_a_real_recording_are_one_result_unless_asked(recordings: Path) -> None:
    found = json.loads(murmur("similar", "nutcracker.ogg", "-n", "27", "--per-artist", "0", "--json", cwd=recordings))
    assert len(found) == len({result["title"] for result in found}) == 13


def test_the_space_tells_speech_from_field_recordings(recordings: Path) -> None:
    """The two genres of five recordings or more: the nearest is the other encoding, so of the same genre."""
    found = json.loads(murmur("evaluate", "--label", "genre", "--json", cwd=recordings))
    assert (found["tracks"], found["classes"], found["small_tracks"]) == (12, 2, 16)
    (one,) = found["settings"]
    assert one["neighbours"]["nn1"] == 1.0
    assert 0.5 < one["apart"]["nn1"] <= one["neighbours"]["nn1"]
    assert one["purity"] > one["purity_chance"]
    assert one["nmi"] > one["nmi_chance"]


def test_a_bad_file_does_not_keep_the_others_from_being_clustered(library: Path, tmp_path: Path) -> None:
    shutil.copytree(library, tmp_path / "music")
    (tmp_path / "music" / "broken.mp3").write_text("These are words, not audio. " * 100)
    out = murmur("run", "music", "--engine", "sklearn", "--json", cwd=tmp_path)
    assert json.loads(out)["reports"]["extract"]["failed"] == 1
    assert "broken.mp3" in murmur("failures", cwd=tmp_path)
    assert len(json.loads(murmur("clusters", "--json", cwd=tmp_path))) == 4
    assert "nothing computed, written or sent" in murmur("run", "music", "--engine", "sklearn", cwd=tmp_path)


def _engine() -> str:
    return "spark" if shutil.which("java") or os.environ.get("CI") == "true" else "sklearn"


def _partition(store: Store) -> dict[str, str]:
    in_force = store.get(RunInForce, CURRENT)
    assert in_force is not None
    rows = store.scan(Assignment, fields=("track_id", "cluster_id"), prefix=f"{in_force.run_id}/")
    return {row["track_id"]: row["cluster_id"] for row in rows}


def _count_tracks_on(url: str) -> int:
    with closing(open_bus(url)) as bus:
        there = [topic for topic in bus.topics() if topic == "tracks.features.v1"]
        return sum(bus.ends(there).values())


def _contents(
    store_url: str, bus_url: str, *, prefix: str = "", varying: set[str] = VARYING
) -> dict[str, dict[str, Any]]:
    """Return all records of the store by collection and key, all messages of the bus by topic and key."""
    found: dict[str, dict[str, Any]] = {}
    with closing(open_store(store_url, create=False)) as store:
        for kind in (Track, Failure, Run, Assignment):
            documents = list(store.scan(kind))
            found[kind.collection] = {_stable_key(kind, one): _without(one, varying) for one in documents}
    with closing(open_bus(bus_url, create=False)) as bus:
        topics = [topic for topic in bus.topics() if topic.startswith(prefix) and not topic.startswith("__")]
        for message in read_to_end(bus, topics):
            key = (message.key or b"").decode()
            name = message.topic.removeprefix(prefix)
            of_runs = name in ("clusters.runs.v1", "clusters.spaces.v1")
            key = "run" if of_runs and key != CURRENT and varying else key
            value = json.loads(message.value) if message.value else None
            found.setdefault(name, {})[key] = _without(value, varying)
    return found


def _stable_key(kind: type, document: Document) -> str:
    name = "track_id" if kind in (Track, Assignment) else "path_digest" if kind is Failure else "engine"
    return str(document[name])


def _without(value: Any, names: set[str]) -> Any:
    if isinstance(value, dict):
        # offsets and their topics depend on the number of partitions
        kept = names | {"_id", "offsets"} if names else {"_id"}
        return {key: _without(one, names) for key, one in value.items() if key not in kept}
    return [_without(one, names) for one in value] if isinstance(value, list) else value
