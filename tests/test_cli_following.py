"""The commands that follow, as processes of their own: stopped, cut off from their servers, and measured."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, closing
from pathlib import Path

import pytest
import topics_library
from conftest import Run
from processes import running
from servers import free_port
from test_cli_main import Murmur, murmur, says
from test_etl_load import track
from topics_library import add_run, opened, settings

from core import open_bus
from core.config import Config
from etl.messages import create_topics, send

__all__ = ["murmur"]  # a fixture

FIRST = {"a": "c01", "b": "c01", "c": "c01", "d": "c02"}


def written(config: Config, folder: Path) -> Path:
    """Write a config and return its file."""
    (folder / "following.yaml").write_text(json.dumps(config.model_dump(exclude_defaults=True)))
    return folder / "following.yaml"


def following(config: Config, folder: Path, *arguments: str) -> AbstractContextManager[subprocess.Popen[str]]:
    """Run the command with a config."""
    command = [Path(sys.executable).with_name("murmur"), "--config", written(config, folder), *arguments]
    return running(*command, seconds=240, cwd=folder, stderr=subprocess.PIPE)


def lines(process: subprocess.Popen[str], n_lines: int) -> list[str]:
    assert process.stdout is not None
    return sorted(process.stdout.readline().rstrip("\n") for _ in range(n_lines))


def read_until(process: subprocess.Popen[str], wanted: set[str]) -> None:
    """Read until all those lines have come, in whatever order, and some of them twice if need be."""
    missing = set(wanted)
    assert process.stdout is not None
    while missing:
        line = process.stdout.readline()
        assert line, process.communicate()
        missing.discard(line.rstrip("\n"))


def stop(process: subprocess.Popen[str], number: signal.Signals = signal.SIGTERM) -> tuple[int, str, str]:
    process.send_signal(number)
    out, err = process.communicate()
    return process.returncode, out, err


def publish(config: Config, clusters: dict[str, str]) -> None:
    with opened(config) as world:
        add_run(world.store, clusters)
        world.publish()


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Return a config of which all is in one file, with a cluster published."""
    config = settings(tmp_path, "")
    publish(config, FIRST)
    return config


# Subscribing


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_subscriber_that_follows_prints_each_change_at_once_until_it_is_stopped(
    config: Config, tmp_path: Path, number: signal.Signals
) -> None:
    with following(config, tmp_path, "subscribe", "c01", "--follow") as process:
        assert lines(process, 3) == ["+ Title of a", "+ Title of b", "+ Title of c"]
        publish(config, FIRST | {"a": "c02", "d": "c01"})
        assert lines(process, 2) == ["+ Title of d", "- a"]
        assert stop(process, number) == (0, "", "")


def test_a_group_that_was_stopped_goes_on_with_what_is_new_a_line_of_json_for_each_change(
    config: Config, tmp_path: Path, murmur: Murmur
) -> None:
    with following(config, tmp_path, "subscribe", "c01", "--follow", "--group", "player", "--json") as process:
        assert [json.loads(line)["member"]["title"] for line in lines(process, 3)] == [f"Title of {x}" for x in "abc"]
        assert stop(process) == (0, "", "")
    publish(config, FIRST | {"a": "c02"})
    done = murmur("--config", written(config, tmp_path), "subscribe", "c01", "--group", "player", "--json")
    assert (done.code, json.loads(done.out)) == (0, {"track_id": "a", "member": None})


def test_a_subscriber_whose_pipe_is_closed_ends_quietly_although_nothing_new_comes(
    config: Config, tmp_path: Path
) -> None:
    with following(config, tmp_path, "subscribe", "c01", "--follow") as process:
        assert lines(process, 3) == ["+ Title of a", "+ Title of b", "+ Title of c"]
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 1


def test_following_a_cluster_that_is_not_there_is_answered_with_those_there_are(
    config: Config, tmp_path: Path, murmur: Murmur
) -> None:
    says(murmur("--config", written(config, tmp_path), "subscribe", "c99", "--follow"), 2, "c99", "c01, c02")


@pytest.mark.servers
def test_subscribers_that_follow_outlive_a_restart_of_the_broker(own_kafka: Run, tmp_path: Path) -> None:
    with ExitStack() as kafka, ExitStack() as started:
        config = settings(tmp_path, kafka.enter_context(own_kafka(tmp_path)))
        publish(config, FIRST)
        command = ("subscribe", "c01", "--follow")
        processes = [
            started.enter_context(following(config, tmp_path, *command, *group))
            for group in ((), ("--group", "player"))
        ]
        for process in processes:
            read_until(process, {"+ Title of a", "+ Title of b", "+ Title of c"})
        kafka.close()
        kafka.enter_context(own_kafka(tmp_path))
        publish(config, FIRST | {"a": "c02", "d": "c01"})
        for process in processes:
            read_until(process, {"+ Title of d", "- a"})
            code, _, err = stop(process)
            assert code == 0
            assert "Traceback" not in err, err


# Metrics


def scrape(port: int) -> dict[str, float]:
    """Return the metrics of ours by name and labels, nothing while the port is not open."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    except OSError:
        return {}
    samples = [line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("murmur_")]
    return {name: float(value) for name, value in samples}


def await_metrics(port: int, process: subprocess.Popen[str], wanted: Callable[[dict[str, float]], bool]) -> None:
    while not wanted(found := scrape(port)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    assert wanted(found)


@pytest.mark.servers
def test_the_metrics_of_a_load_that_follows_can_be_scraped(kafka_url: str, tmp_path: Path) -> None:
    port = free_port()
    config = settings(tmp_path, kafka_url).model_copy(update={"metrics_port": port})

    def put(*keys: str) -> None:
        with closing(open_bus(kafka_url)) as bus, closing(bus.producer()) as producer:
            names = create_topics(bus, config)
            for key in keys:
                send(producer, names.tracks, track(key))
            producer.send(names.tracks, b"bad", b"poison")
            producer.flush()

    put("a", "b", "c")
    with following(config, tmp_path, "load", "--follow") as process:
        await_metrics(port, process, lambda found: found.get("murmur_messages_read_total") == 4)
        put("d")
        await_metrics(port, process, lambda found: found.get("murmur_messages_read_total") == 6)
        found = scrape(port)
        assert found["murmur_records_written_total"] == 4
        assert found["murmur_dead_letters_total"] == 2
        assert found["murmur_connection_failures_total"] == 0
        assert found["murmur_batch_seconds_count"] >= 2
        assert found["murmur_batch_seconds_sum"] > 0
        prefix = config.topics.prefix
        for topic in ("tracks.features.v1", "tracks.failed.v1"):
            assert f'murmur_lag_messages{{group="{prefix}murmur.load",topic="{prefix}{topic}"}}' in found
        assert stop(process)[0] == 0
    assert scrape(port) == {}


def test_the_metrics_of_a_subscriber_that_follows_can_be_scraped(config: Config, tmp_path: Path) -> None:
    port = free_port()
    config = config.model_copy(update={"metrics_port": port})
    with following(config, tmp_path, "subscribe", "c01", "--follow", "--group", "player") as process:
        await_metrics(port, process, lambda found: found.get("murmur_messages_read_total") == 3)
        assert 'murmur_lag_messages{group="player",topic="clusters.c01.tracks.v1"}' in scrape(port)


@pytest.mark.parametrize("command", ["load", "load --follow", "subscribe c01 --follow"])
def test_a_port_that_is_taken_is_named_before_anything_is_done(tmp_path: Path, murmur: Murmur, command: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (tmp_path / "config.yaml").write_text(f"metrics_port: {port}\n")
        says(murmur(*command.split()), 2, f"metrics_port: 127.0.0.1:{port}: Address already in use")
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]


def test_an_address_of_another_machine_is_named(tmp_path: Path, murmur: Murmur) -> None:
    (tmp_path / "config.yaml").write_text("metrics_port: 9464\nmetrics_address: 192.0.2.1\n")
    says(murmur("load"), 2, "192.0.2.1:9464", "an address of this machine")


def test_a_port_can_be_named_by_the_environment_for_each_process(
    config: Config, tmp_path: Path, murmur: Murmur, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METRICS_PORT", str(free_port()))
    (tmp_path / "config.yaml").write_text("metrics_port: $METRICS_PORT\n")
    assert murmur("-q", "load").code == 0


# Routing


@pytest.mark.servers
def test_a_publisher_that_follows_routes_what_arrives_until_it_is_stopped(kafka_url: str, tmp_path: Path) -> None:
    config = settings(tmp_path, kafka_url)
    publish(config, FIRST)
    with following(config, tmp_path, "publish", "--follow") as publisher, ExitStack() as started:
        subscriber = started.enter_context(following(config, tmp_path, "subscribe", "c02", "--follow"))
        assert lines(subscriber, 1) == ["+ Title of d"]
        with closing(open_bus(kafka_url)) as bus, closing(bus.producer()) as producer:
            send(producer, create_topics(bus, config).tracks, topics_library.track("g", 2.0))
            producer.flush()
        assert lines(subscriber, 1) == ["+ Title of g"]
        code, out, _ = stop(publisher)
        assert (code, out.splitlines()[-1][:15]) == (0, "publish: 1 read")
