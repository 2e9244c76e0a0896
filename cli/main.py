"""The command line: each verb is a thin adapter over the job in the package that owns it."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cli import show
from core.errors import ConfigError, MurmurError

if TYPE_CHECKING:
    from core.bus import Bus
    from core.config import Config
    from core.jobs import Report, Watch
    from core.records import Failure
    from core.store import Store
    from etl.dead_letters import Selection
    from etl.extract import ExtractReport

logger = logging.getLogger(__name__)

app = typer.Typer(
    name="murmur",
    help="Folders of music into clusters that other programs subscribe to.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)
failures_app = typer.Typer(rich_markup_mode=None, help="The files that could not be read.")
app.add_typer(failures_app, name="failures")
dlq_app = typer.Typer(rich_markup_mode=None, help="The records that could not be loaded.")
app.add_typer(dlq_app, name="dlq")
export_app = typer.Typer(rich_markup_mode=None)
app.add_typer(export_app, name="export")


def _n_clusters(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter("write a whole number from 1 on, or auto")
    return int(text)


AudioDir = Annotated[
    Path, typer.Argument(metavar="AUDIO_DIR", help="The folder to walk.", exists=True, file_okay=False)
]
Metadata = Annotated[
    Path | None, typer.Option(metavar="CSV", help="The catalogue: a row for each file.", exists=True, dir_okay=False)
]

Clusters = Annotated[
    Any,  # what the parser returns
    typer.Option(metavar="K|auto", parser=_n_clusters, help="How many; auto: the best tried [default: by size]."),
]
Engine = Annotated[Literal["spark", "sklearn"] | None, typer.Option(help="What fits [default: from the config].")]
Follow = Annotated[bool, typer.Option("--follow", help="Go on until SIGINT (Ctrl-C) or SIGTERM.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Places = Annotated[
    list[str] | None,
    typer.Argument(metavar="PLACE", help="TOPIC, TOPIC/PARTITION or TOPIC/PARTITION/OFFSET where they were."),
]
Reason = Annotated[str, typer.Option(metavar="TEXT", help="Only those with this in their reason.")]
Since = Annotated[
    datetime | None,
    typer.Option(
        metavar="TIME",
        formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"],
        help="Only those first seen since then, UTC.",
    ),
]

_PRUNE = "Delete the tracks of which no file is left; an emptied folder keeps its tracks until it is removed itself."


@dataclass(frozen=True, slots=True)
class Options:
    """What stands before the verb."""

    config: Path | None
    verbose: int
    quiet: bool


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        show.text(f"murmur {version('murmuration')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="Default: ./config.yaml, if it exists.")] = None,
    verbose: Annotated[int, typer.Option("-v", "--verbose", count=True, help="Say more; errors with traceback.")] = 0,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress, only warnings and results.")] = False,
    _: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Folders of music into clusters that other programs subscribe to."""
    context.obj = Options(config, verbose, quiet)
    show.set_up_logging(verbose)
    if context.invoked_subcommand is None:
        show.text(context.get_help())
        raise typer.Exit(2)


@app.command()
def run(
    context: typer.Context,
    audio_dir: AudioDir,
    metadata: Metadata = None,
    clusters: Clusters = None,
    engine: Engine = None,
    as_json: Json = False,
) -> None:
    """Extract, load, cluster and publish, in this process."""
    from cli.pipeline import run_all
    from core.spark import java_version

    config = _config(context, n_clusters=clusters, engine=engine)
    if config.clustering.engine == "spark":
        java_version()  # hours of extraction should not end at a Java that is missing
    with _opened(config) as (store, bus), _watched(context) as watch:
        outcome = run_all(config, audio_dir, metadata, store=store, bus=bus, progress=watch)
    show.outcome(outcome, _command(context), as_json=as_json)
    _check_failures(context, outcome.extract, config.max_failures)


@app.command()
def extract(
    context: typer.Context,
    audio_dir: AudioDir,
    metadata: Metadata = None,
    prune: Annotated[bool, typer.Option("--prune", help=_PRUNE)] = False,
    engine: Annotated[Literal["local", "spark"], typer.Option(help="Where the files are read.")] = "local",
    as_json: Json = False,
) -> None:
    """Compute the features of new and changed files: audio → bus."""
    from etl import extract as job

    config = _config(context)
    with _opened(config) as (store, bus), _watched(context) as watch:
        report = job.run(
            config, audio_dir, metadata=metadata, prune=prune, engine=engine, store=store, bus=bus, progress=watch
        )
    show.report("extract", report, as_json=as_json)
    _check_failures(context, report, config.max_failures)


@app.command()
def load(
    context: typer.Context,
    follow: Follow = False,
    as_json: Json = False,
) -> None:
    """Take over what extract has sent: bus → store."""
    from etl import load as job

    config = _config(context)
    with (
        _measured(config),
        _opened(config) as (store, bus),
        _watched(context) as watch,
        _until_asked(follow=follow) as until,
    ):
        report = job.run(config, store=store, bus=bus, progress=watch, until=until)
    show.report("load", report, as_json=as_json)
    if report.failed and not as_json:
        show.text(f"dead letters: {report.failed:,}; `{_command(context)} dlq` says why")


@app.command()
def restore(context: typer.Context, as_json: Json = False) -> None:
    """Take back from the bus what a new or older store lacks."""
    from etl import restore as job

    config = _config(context)
    with _opened(config) as (store, bus), _watched(context) as watch:
        report = job.run(config, store=store, bus=bus, progress=watch)
    show.report("restore", report, as_json=as_json)


@app.command()
def cluster(
    context: typer.Context,
    clusters: Clusters = None,
    engine: Engine = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew instead of from the former clusters.")] = False,
    like: Annotated[str | None, typer.Option(metavar="RUN", help="Repeat a run: its space, start and seed.")] = None,
    as_json: Json = False,
) -> None:
    """Group the tracks in the store; publish makes it known."""
    from clustering import cluster as job

    if like and (fresh or clusters):
        raise ConfigError(f"--like {like}: it settles the start and the number of clusters; leave out the other option")
    config = _config(context, n_clusters=clusters, engine=engine)
    with _opened(config) as (store, bus), _watched(context) as watch:
        report = job.run(config, store=store, bus=bus, fresh=fresh, like=like, progress=watch)
    show.report("cluster", report, as_json=as_json)


@app.command()
def publish(
    context: typer.Context,
    run: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Put this run in force until the next publish; else the latest."),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Keep the run there is, and route tracks as they arrive.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Send changes to the cluster topics, or tracks as they arrive."""
    from topics import follow as following
    from topics import publish as job

    config = _config(context)
    with (
        _measured(config) if follow else nullcontext(),
        _opened(config) as (store, bus),
        _watched(context) as watch,
        _until_asked(follow=follow) as until,
    ):
        if until:
            report = following.run(config, store=store, bus=bus, until=until, run_id=run, progress=watch)
        else:
            report = job.run(config, store=store, bus=bus, run_id=run, progress=watch)
    show.report("publish", report, as_json=as_json)


@app.command()
def subscribe(
    context: typer.Context,
    cluster: Annotated[str, typer.Argument(metavar="CLUSTER", help="A cluster's id, such as c01.")],
    group: Annotated[str | None, typer.Option(metavar="NAME", help="Show what is new to this consumer group.")] = None,
    follow: Follow = False,
    as_json: Json = False,
) -> None:
    """Show a cluster's members; with a group, what is new to it."""
    from core import open_bus
    from core.names import Names
    from topics import news as reader

    config = _config(context)
    names = Names(config.topics.prefix)
    with (
        _measured(config) if follow else nullcontext(),
        closing(open_bus(config.bus.url, create=False)) as bus,
        _until_asked(follow=follow) as is_asked,
    ):

        def until() -> bool:
            show.check_reader()
            return is_asked is not None and is_asked()

        if follow:
            show.news(reader.batches(bus, names, cluster, group, until), as_json=as_json)
        elif group is None:
            show.members(reader.members(bus, names, cluster), as_json=as_json)
        elif not show.news(reader.batches(bus, names, cluster, group), as_json=as_json) and not as_json:
            show.text("nothing new")


@app.command()
def similar(
    context: typer.Context,
    tracks: Annotated[list[str], typer.Argument(metavar="TRACK...", help="An id, a path, or a part of a title.")],
    n: Annotated[int, typer.Option("-n", min=1, help="How many.")] = 10,
    copies: Annotated[bool, typer.Option("--copies", help="Keep copies of one recording apart.")] = False,
    per_artist: Annotated[int, typer.Option(min=0, help="How many of one artist at most; 0: any number.")] = 2,
    as_json: Json = False,
) -> None:
    """Show the nearest tracks to one or several liked ones."""
    from clustering.similar import resolve
    from clustering.similar import similar as nearest
    from core.names import Names

    with _read_store(context) as store:
        liked = [resolve(store, text) for text in tracks]
        names = Names(_config(context).topics.prefix)
        found = nearest(store, names, liked, n=n, copies=copies, per_artist=per_artist)
    show.similar(found, _command(context), as_json=as_json)


@app.command()
def clusters(
    context: typer.Context,
    history: Annotated[bool, typer.Option("--history", help="Show what became of the clusters, run by run.")] = False,
    compare: Annotated[
        tuple[str, str] | None, typer.Option(metavar="RUN RUN", help="Show what moved between two runs.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="OUT", help="Draw them too: a map, sizes, quality; .png, .pdf or .svg.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the clusters of the run in force."""
    from clustering import history as past
    from clustering.overview import overview
    from core.names import Names

    if bool(history) + bool(compare) + bool(plot) > 1:
        raise ConfigError("clusters: --history, --compare or --plot, one at a time")
    with _read_store(context) as store, _watched(context) as watch:
        if history:
            show.history(past.history(store), as_json=as_json)
        elif compare:
            show.comparison(past.compare(store, *compare), as_json=as_json)
        else:
            if plot:
                from clustering import plot as picture

                picture.plot(store, plot, watch)
            show.clusters(overview(store, Names(_config(context).topics.prefix)), as_json=as_json)


@app.command()
def evaluate(
    context: typer.Context,
    label: Annotated[str, typer.Option(metavar="COLUMN", help="genre, artist, album, year, or a column of the CSV.")],
    tried: Annotated[
        list[str] | None,
        typer.Option("--try", metavar="KEY=VALUE", help="Fit anew with this setting; may be repeated: a grid."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show how well the space agrees with a column of the catalogue."""
    from clustering.evaluate import evaluate as measure

    with _read_store(context) as store, _watched(context) as watch:
        found = measure(_config(context), label, tried or (), store=store, progress=watch)
    show.evaluation(found, as_json=as_json)


@app.command()
def status(context: typer.Context, as_json: Json = False) -> None:
    """Show counts, lag, failures, the last run and the size."""
    from cli.status import status as look

    config = _config(context)
    with _opened(config, create=False) as (store, bus):
        show.status(look(config, store=store, bus=bus), as_json=as_json)


@failures_app.callback(invoke_without_command=True)
def failures(context: typer.Context, as_json: Json = False) -> None:
    """List the files that could not be read."""
    if context.invoked_subcommand is None:
        list_failures(context, as_json)
    elif as_json:
        raise _misplaced_json(context)


@failures_app.command("list")
def list_failures(context: typer.Context, as_json: Json = False) -> None:
    """List all of them, a line each."""
    show.failures(_failures(context), as_json=as_json)


@failures_app.command("show")
def show_failure(
    context: typer.Context,
    path: Annotated[str, typer.Argument(metavar="PATH", help="The file, or a part of its path.")],
    as_json: Json = False,
) -> None:
    """Show one of them in full, or all that match; as JSON a list."""
    from etl.failures import matching

    found = matching(_failures(context), [path])
    if as_json:
        show.failures(found, as_json=True)
    else:
        show.failures_in_full(found)


@failures_app.command("retry")
def retry_failures(
    context: typer.Context,
    paths: Annotated[
        list[str] | None, typer.Argument(metavar="PATH", help="Files, or parts of their paths [default: all].")
    ] = None,
    as_json: Json = False,
) -> None:
    """Have them tried again, although nothing has changed."""
    from etl.failures import retry

    config = _config(context)
    with _opened(config, create=False) as (store, bus):
        report = retry(config, paths or (), store=store, bus=bus)
    show.retried(report, _command(context), as_json=as_json)


@dlq_app.callback(invoke_without_command=True)
def dlq(context: typer.Context, as_json: Json = False) -> None:
    """List the records that could not be loaded."""
    if context.invoked_subcommand is None:
        list_dead_letters(context, as_json=as_json)
    elif as_json:
        raise _misplaced_json(context)


@dlq_app.command("list")
def list_dead_letters(
    context: typer.Context, places: Places = None, reason: Reason = "", since: Since = None, as_json: Json = False
) -> None:
    """List them, a line each."""
    from etl.dead_letters import dead_letters

    with _read_bus(context) as (config, bus):
        show.dead_letters(dead_letters(config, _selection(places, reason, since), bus=bus), as_json=as_json)


@dlq_app.command("show")
def show_dead_letters(
    context: typer.Context,
    places: Annotated[list[str], typer.Argument(metavar="PLACE...", help="As the list has it.")],
    as_json: Json = False,
) -> None:
    """Show some of them in full."""
    from etl.dead_letters import dead_letters

    with _read_bus(context) as (config, bus):
        show.dead_letters_in_full(dead_letters(config, _selection(places), bus=bus), as_json=as_json)


@dlq_app.command("replay")
def replay_dead_letters(
    context: typer.Context, places: Places = None, reason: Reason = "", since: Since = None, as_json: Json = False
) -> None:
    """Send them back to where they were; the next load tries again."""
    from etl.dead_letters import replay

    with _read_bus(context) as (config, bus):
        report = replay(config, _selection(places, reason, since), bus=bus)
    show.replayed(report, _command(context), as_json=as_json)


@dlq_app.command("purge")
def purge_dead_letters(
    context: typer.Context,
    places: Places = None,
    reason: Reason = "",
    since: Since = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    as_json: Json = False,
) -> None:
    """Remove them for good, all or some."""
    from etl.dead_letters import purge

    if not (everything or places or reason or since):
        raise ConfigError("dlq purge: which? Name places, --reason or --since, or say --all")
    with _read_bus(context) as (config, bus):
        report = purge(config, _selection(places, reason, since), bus=bus)
    show.purged(report, as_json=as_json)


@export_app.callback(invoke_without_command=True)
def export(context: typer.Context) -> None:
    """Write what is in the store to files for other programs."""
    if context.invoked_subcommand is None:
        command = f"{_command(context)} export"
        raise ConfigError(
            f"export: what? `{command} features OUT`, `{command} assignments OUT`, `{command} playlists DIR`"
        )


@export_app.command("features")
def export_features(
    context: typer.Context,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write: .parquet or .csv.")],
    as_json: Json = False,
) -> None:
    """Write the feature matrix: a row a track, with FMA's columns."""
    from etl import export as job

    _export(context, job.run, out, as_json=as_json)


@export_app.command("assignments")
def export_assignments(
    context: typer.Context,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write: .parquet or .csv.")],
    as_json: Json = False,
) -> None:
    """Write the cluster of each track: a row with its metadata."""
    from clustering import export as job

    _export(context, job.run, out, as_json=as_json)


@export_app.command("playlists")
def export_playlists(
    context: typer.Context,
    out: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to write to, made if it is missing.")],
    as_json: Json = False,
) -> None:
    """Write a playlist for each cluster, in an order for listening."""
    from clustering import playlists as job

    _export(context, job.run, out, as_json=as_json)


def _export(context: typer.Context, job: Callable[..., Report], out: Path, *, as_json: bool) -> None:
    with _read_store(context) as store, _watched(context) as watch:
        report = job(_config(context), out, store=store, progress=watch)
    show.report("export", report, as_json=as_json)


@app.command()
def doctor(context: typer.Context, as_json: Json = False) -> None:
    """Check the config, store, bus, Java and codecs."""
    from cli.doctor import examine

    show.checks(checks := examine(_options(context).config), as_json=as_json)
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


def program() -> None:
    """Be the process `murmur`: run the command, then let no signal disturb Python's own end."""
    code = 130
    with suppress(KeyboardInterrupt):  # one that comes between the command's end and ours
        code = main()
    for number in (signal.SIGINT, signal.SIGTERM):  # nothing is left to stop, and Python would show a traceback
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


def main() -> int:
    """Run the command and return its exit code: the one place that prints errors."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = app(prog_name="murmur", standalone_mode=False)
    except typer.TyperException as error:
        show.error(error.format_message())
        code = getattr(error, "exit_code", 2)
    except MurmurError as error:
        logger.info("", exc_info=True)
        show.error(str(error))
        code = 2 if isinstance(error, ConfigError) else 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        code = 1
    except Exception as error:  # the last line: nobody sees a traceback unasked
        logger.info("", exc_info=True)
        show.error(f"unexpected {type(error).__name__}: {error}; `-v` before the verb shows where")
        code = 1
    if code == 130:
        show.error("stopped; the same command goes on from here")
    return int(code or 0)


def _options(context: typer.Context) -> Options:
    found = context.obj
    assert isinstance(found, Options)
    return found


def _misplaced_json(context: typer.Context) -> ConfigError:
    group, verb = context.info_name, context.invoked_subcommand
    return ConfigError(f"--json: write it behind the verb: `{_command(context)} {group} {verb} --json`")


def _command(context: typer.Context) -> str:
    """Return the command as it can be pasted again, with the options that stand before the verb."""
    config = _options(context).config
    return show.program() + (f" --config {shlex.quote(str(config))}" if config else "")


def _config(context: typer.Context, **clustering: Any) -> Config:
    from core.config import load_config

    config = load_config(_options(context).config)
    given = {key: value for key, value in clustering.items() if value is not None}
    return config.model_copy(update={"clustering": config.clustering.model_copy(update=given)})


@contextmanager
def _opened(config: Config, *, create: bool = True) -> Iterator[tuple[Store, Bus]]:
    from core import open_bus, open_store

    with (
        closing(open_store(config.store.url, create=create)) as store,
        closing(open_bus(config.bus.url, create=create)) as bus,
    ):
        yield store, bus


@contextmanager
def _read_store(context: typer.Context) -> Iterator[Store]:
    from core import open_store

    with closing(open_store(_config(context).store.url, create=False)) as store:
        yield store


@contextmanager
def _read_bus(context: typer.Context) -> Iterator[tuple[Config, Bus]]:
    from core import open_bus

    config = _config(context)
    with closing(open_bus(config.bus.url, create=False)) as bus:
        yield config, bus


def _selection(places: list[str] | None, reason: str = "", since: datetime | None = None) -> Selection:
    from etl.dead_letters import Selection

    return Selection(tuple(places or ()), reason, since and since.replace(tzinfo=UTC))


@contextmanager
def _until_asked(*, follow: bool) -> Iterator[Callable[[], bool] | None]:
    """Give what says whether SIGINT or SIGTERM has come, so that a batch is finished; a second one cuts it short."""
    if not follow:
        yield None
        return
    asked = threading.Event()

    def ask(number: int, _: object) -> None:
        asked.set()
        signal.signal(number, signal.default_int_handler)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _measured(config: Config) -> Iterator[None]:
    """Let a Prometheus read the metrics meanwhile, where the config names a port."""
    if config.metrics_port is None:
        yield
        return
    from prometheus_client import start_http_server

    try:
        server, thread = start_http_server(config.metrics_port, config.metrics_address)
    except OSError as error:
        place = f"{config.metrics_address}:{config.metrics_port}"
        advice = "each process needs a port of its own, at an address of this machine; null opens none"
        raise ConfigError(f"metrics_port: {place}: {error.strerror}; {advice}") from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _failures(context: typer.Context) -> list[Failure]:
    from etl.failures import failures

    config = _config(context)
    with _opened(config, create=False) as (store, bus):
        return failures(config, store=store, bus=bus)


def _watched(context: typer.Context) -> AbstractContextManager[Watch]:
    return show.progress(quiet=_options(context).quiet)


def _check_failures(context: typer.Context, report: ExtractReport, allowed: float) -> None:
    if report.failed > allowed * report.tried:
        raise MurmurError(
            f"{report.failed} of {report.tried} files tried failed, more than max_failures ({allowed:.0%}) allows: "
            f"`{_command(context)} failures` says why"
        )
