"""What docs/subscribing.md tells a subscriber is true, and its programs run as they stand there."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from processes import running
from topics_library import JobDiedError, Mortal, World, add_run, messages, opened, settings

from core.records import Lineage, Member, NamedNeighbour, PublishedRun, next_rev
from topics import publisher

PAGE = (Path(__file__).parent.parent / "docs" / "subscribing.md").read_text("utf-8")
FIRST = {"a": "c01", "b": "c01", "c": "c01", "d": "c02"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def world(kafka_url: str, tmp_path: Path) -> Iterator[World]:
    with opened(settings(tmp_path, kafka_url)) as world:
        yield world


def here(program: str, world: World) -> str:
    """Return a program of the page with this broker and this installation's prefix in place of the page's."""
    for there, ours in (
        ("localhost:9092", world.bus.url.removeprefix("kafka://")),
        ('"clusters.', f'"{world.names.prefix}clusters.'),
        ("^clusters", f"^{world.names.prefix}clusters"),
        ("my-player", f"{world.names.prefix}my-player"),
    ):
        program = program.replace(there, ours)
    return program


def read_lines(process: subprocess.Popen[str], n_lines: int) -> set[str]:
    assert process.stdout is not None
    return {process.stdout.readline().strip() for _ in range(n_lines)}


@pytest.mark.servers
def test_the_consumer_prints_who_joins_and_who_leaves(world: World) -> None:
    add_run(world.store, FIRST)
    world.publish()
    with running(sys.executable, "-c", here(blocks("python")[0], world), seconds=60) as process:
        assert read_lines(process, 3) == {"+ a Title of a", "+ b Title of b", "+ c Title of c"}
        add_run(world.store, {"a": "c02", "b": "c01", "c": "c01", "d": "c02"})
        world.publish()
        assert read_lines(process, 1) == {"- a None"}


@pytest.mark.servers
def test_the_consumer_follows_the_birth_of_clusters_by_their_pattern(world: World) -> None:
    one, pattern = blocks("python")[:2]
    every = one.replace('"clusters.c01.tracks.v1",', "metadata_max_age_ms=5000,").replace("while", f"{pattern}while")
    assert "`metadata_max_age_ms=5000`" in PAGE
    add_run(world.store, FIRST)
    world.publish()
    with running(sys.executable, "-c", here(every, world), seconds=60) as process:
        assert len(read_lines(process, len(FIRST))) == len(FIRST)
        add_run(world.store, FIRST | {"e": "c03"})
        world.publish()
        assert "+ e Title of e" in read_lines(process, 3)


@pytest.mark.servers
def test_the_program_prints_the_run_in_force_as_a_whole_while_another_is_sent(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_run(world.store, FIRST)
    world.publish()
    add_run(world.store, {"a": "c02", "b": "c01", "d": "c03"})
    world.publish()
    add_run(world.store, dict.fromkeys(FIRST, "c04"))
    monkeypatch.setattr(publisher, "CHUNK", 1)
    with pytest.raises(JobDiedError):
        world.publish(Mortal(world.bus, 12))
    done = subprocess.run(
        [sys.executable, "-c", here(blocks("python")[2], world)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines() == ["c01 b Title of b", "c02 a Title of a", "c03 d Title of d"]


@pytest.fixture(params=["sqlite", pytest.param("kafka", marks=pytest.mark.servers)])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    url = str(request.getfixturevalue("kafka_url")) if request.param == "kafka" else ""
    with opened(settings(tmp_path, url)) as world:
        yield world


def ours(program: str, world: World) -> str:
    """Return a program of the page with this bus and this installation's prefix in place of the page's."""
    assert '"kafka://localhost:9092", "c01"' in program
    place = f'{world.config.bus.url!r}, "c01", prefix={world.names.prefix!r}'
    return program.replace('"kafka://localhost:9092", "c01"', place)


def test_the_program_with_a_view_prints_who_joins_and_leaves_until_the_cluster_ends(either: World) -> None:
    add_run(either.store, FIRST)
    either.publish()
    with running(sys.executable, "-c", ours(blocks("python")[3], either), seconds=60) as process:
        assert read_lines(process, 3) == {"+ a Title of a", "+ b Title of b", "+ c Title of c"}
        former = add_run(either.store, {"b": "c01", "c": "c01", "d": "c01"})
        either.publish()
        while not (lines := read_lines(process, 1)) & {"- a None"}:
            assert lines <= {"+ b Title of b", "+ c Title of c", "+ d Title of d"}
        run = add_run(either.store, dict.fromkeys("bcd", "c03"))
        lineage = Lineage(former=former.run_id, deaths=["c01"], successors={"c01": {"c03": 3}})
        either.store.upsert([run.model_copy(update={"lineage": lineage, "rev": next_rev(run.rev)})])
        either.publish()
        assert process.stdout
        *left, last = process.stdout.read().splitlines()
        assert sorted(left[-3:]) == ["- b None", "- c None", "- d None"]
        assert last == "it has ended; its members are in c03"
        assert process.wait() == 0


def test_the_program_with_a_group_keeps_a_table_of_the_members_run_after_run(either: World, tmp_path: Path) -> None:
    program = ours(blocks("python")[4], either)
    for clusters in (FIRST, FIRST | {"a": "c02", "d": "c01"}, FIRST):
        add_run(either.store, clusters)
        either.publish()
        subprocess.run([sys.executable, "-c", program], check=True, timeout=60, cwd=tmp_path)
        with closing(sqlite3.connect(tmp_path / "player.db")) as table:
            found = dict(table.execute("SELECT track_id, title FROM tracks"))
        assert found == {one: f"Title of {one}" for one, cluster_id in clusters.items() if cluster_id == "c01"}


def test_the_consumer_has_ten_lines_and_uses_nothing_of_ours() -> None:
    program = blocks("python")[0]
    assert len(program.splitlines()) == 10
    assert set(re.findall(r"^(?:import|from) (\w+)", program, re.MULTILINE)) == {"json", "kafka"}


def test_the_example_of_a_member_is_one() -> None:
    example = json.loads(blocks("json")[0])
    assert set(example) == set(Member.model_fields)
    assert all(set(near) == set(NamedNeighbour.model_fields) for near in example["neighbours"])
    Member.model_validate(example, strict=True)


def test_the_example_of_a_run_is_one() -> None:
    current, run = map(json.loads, blocks("json")[1:])
    assert set(run) == set(PublishedRun.model_fields)
    assert PublishedRun.model_validate(run, strict=True).published
    assert current["run_id"] == run["run_id"]


def test_every_header_that_is_sent_is_told(tmp_path: Path) -> None:
    with opened(settings(tmp_path, "")) as world:
        add_run(world.store, FIRST)
        world.publish()
        sent = {name for message in messages(world.bus, world.names) for name, _ in message.headers}
    told = re.findall(r"^\| `([\w-]+)` \| `", PAGE, re.MULTILINE)
    assert sent == set(told)


def test_every_field_of_a_member_is_told() -> None:
    table = PAGE.split("| field | type |")[1].split("\n\n")[0]
    told = {
        name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1] if "|" in row else "")
    }
    assert told == set(Member.model_fields)
