"""A store that is older than the bus, and how it takes back what it lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import clustering_library as library
import pytest
from topics_library import said

from cli.pipeline import run_all
from clustering import cluster
from clustering.cluster import ClusterReport
from core import open_bus
from core.bus import Bus
from core.config import Config, parse_config
from core.errors import MurmurError
from core.jobs import Report
from core.names import Names
from core.records import Assignment, Failure, Record, Run, RunInForce, Track, next_rev
from core.sqlite_bus import SQLiteBus
from core.store import Store, open_store
from etl import load, restore
from etl.messages import create_topics, send, send_tombstone
from topics import publish

BACKUPS = 2
KINDS: tuple[type[Record], ...] = (Track, Failure, Run, Assignment, RunInForce)


class Site:
    """A bus, the store that is in use, and stores of which backups are brought back."""

    def __init__(self, config: Config, bus: Bus, store: Store, empty: Callable[[], Store]) -> None:
        self.config, self.bus, self.store, self._empty = config, bus, store, empty
        self.names = Names(config.topics.prefix)
        create_topics(bus, config)

    def send(self, *records: Record, gone: tuple[str, ...] = ()) -> None:
        with closing(self.bus.producer()) as producer:
            for record in records:
                send(producer, self.names.tracks if isinstance(record, Track) else self.names.failed, record)
            for key in gone:
                send_tombstone(producer, self.names.tracks, Track, key, next_rev())
            producer.flush()

    def backup(self) -> Store:
        """Return a store that has what this one has now."""
        copy = self._empty()
        for kind in KINDS:
            copy.upsert(list(map(kind.from_document, self.store.scan(kind))))
        return copy

    def cluster(self, *, fresh: bool = False) -> ClusterReport:
        return cluster.run(self.config, store=self.store, bus=self.bus, fresh=fresh)

    def publish(self) -> Report:
        return publish.run(self.config, store=self.store, bus=self.bus)

    def renew(self) -> str:
        load.run(self.config, store=self.store, bus=self.bus)
        run_id = self.cluster().run_id
        self.publish()
        return run_id

    def restore(self) -> Report:
        return restore.run(self.config, store=self.store, bus=self.bus)

    def said(self) -> dict[str, str]:
        return said(self.bus, self.names)


@pytest.fixture(params=["sqlite", pytest.param("servers", marks=pytest.mark.servers)])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    mark = uuid4().hex[:8]
    on_servers = request.param == "servers"
    bus_url = request.getfixturevalue("kafka_url") if on_servers else f"sqlite:///{tmp_path}/bus.db"
    with ExitStack() as opened:

        def empty() -> Store:
            name = uuid4().hex[:8]
            url = f"sqlite:///{tmp_path}/{name}.db"
            if on_servers:
                mongodb = urlsplit(request.getfixturevalue("mongodb_url"))
                url = mongodb._replace(path=f"/restore_{name}").geturl()
            return opened.enter_context(closing(open_store(url)))

        config = parse_config(
            {
                "clustering": {"engine": "sklearn", "n_clusters": 4},
                "topics": {"prefix": f"r{mark}.", "partitions": 3 if on_servers else 1},
            }
        )
        yield Site(config, opened.enter_context(closing(open_bus(bus_url))), empty(), empty)


def failure(key: str) -> Failure:
    return Failure(
        rev=next_rev(), path_digest=key, path="/x", stage="read", error="E", message="m", advice="a", failed_at="2026"
    )


def contents(store: Store, kind: type[Record]) -> dict[str, Record]:
    return {record.key: record for record in map(kind.from_document, store.scan(kind))}


def test_an_older_backup_is_told_with_both_runs_and_the_command_and_takes_back_all_but_what_was_never_sent(
    site: Site, tmp_path: Path
) -> None:
    tracks = library.tracks(50, kinds=4)
    site.send(*tracks[:40], failure("read since"))
    first = site.renew()
    backup = site.backup()
    site.send(*tracks[40:], tracks[3].model_copy(update={"rev": 9, "title": "Renamed"}), failure("f"), gone=("t007",))
    with closing(site.bus.producer()) as producer:
        send_tombstone(producer, site.names.failed, Failure, "read since", next_rev())
        producer.flush()
    second = site.renew()
    current, topics = site.store, site.said()
    assert len(topics) == 49

    site.store = backup
    for job in (site.cluster, site.publish, lambda: run_all(site.config, tmp_path, None, store=backup, bus=site.bus)):
        with pytest.raises(MurmurError, match=rf"knows {second}, .* is {first}: .*`murmur restore`"):
            job()
    assert site.said() == topics

    report = site.restore()
    assert report.failed == 0
    assert contents(backup, Track) == contents(current, Track)
    assert contents(backup, Failure).keys() == contents(current, Failure).keys() == {"f"}
    assert contents(backup, Run) == contents(current, Run)
    assert backup.get(RunInForce, RunInForce.current) == current.get(RunInForce, RunInForce.current)
    again = site.restore()
    assert (again.written, again.unchanged) == (0, again.read)

    assert (site.cluster().run_id, site.publish().sent) == (second, 0)
    assert site.said() == topics
    assert library.assigned(backup, second) == library.assigned(current, second)
    site.send(library.tracks(51, kinds=4)[50])
    third = site.renew()
    placed = library.assigned(backup, third)
    assert {track_id: placed[track_id] for track_id in topics} == topics


def test_a_lost_store_is_told_and_all_of_it_comes_back(site: Site) -> None:
    site.send(*library.tracks(20))
    only = site.renew()
    topics, site.store = site.said(), site._empty()
    with pytest.raises(MurmurError, match=f"knows {only}, .* has no run: .*`murmur restore`"):
        site.publish()
    site.restore()
    assert (site.cluster().run_id, site.publish().sent, site.said()) == (only, 0, topics)


def test_who_begins_anew_instead_goes_on_without_the_lost_runs_and_gives_no_id_twice(site: Site) -> None:
    site.send(*library.tracks(20))
    site.renew()
    before, site.store = site.said(), site._empty()
    site.store.upsert(library.tracks(20))
    report = site.cluster(fresh=True)
    site.publish()
    assert not set(site.said().values()) & set(before.values())
    assert site.cluster().run_id == report.run_id


def test_a_run_that_was_not_published_does_not_come_back(site: Site) -> None:
    site.send(*library.tracks(20))
    published = site.renew()
    site.send(library.tracks(21)[20])
    load.run(site.config, store=site.store, bus=site.bus)
    unpublished = site.cluster().run_id
    site.store = site._empty()
    site.restore()
    assert site.store.get(Run, unpublished) is None
    assert contents(site.store, Run).keys() == {published}


def test_a_message_that_is_no_record_is_named_and_the_others_come_back(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.send(*library.tracks(3))
    site.bus.create_topics(site.config.topics.of_clusters([]))
    with closing(site.bus.producer()) as producer:
        for topic in (site.names.tracks, site.names.spaces):
            producer.send(topic, b"bad", b"?")
        producer.flush()
    report = site.restore()
    assert (report.read, report.written, report.failed) == (5, 3, 2)
    assert f"{site.names.spaces}, partition " in caplog.text


def test_a_bus_without_topics_has_nothing_to_give(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/murmur.db"
    with closing(open_store(url)) as store, closing(SQLiteBus(url)) as bus:
        assert restore.run(Config(), store=store, bus=bus).read == 0
        assert bus.topics() == []
