"""Everything a person or a program sees: results on stdout, progress, log and errors on stderr."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import select
import shlex
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import chain
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from core.names import UNCLUSTERED, printable

if TYPE_CHECKING:
    from rich.console import Console

    from cli.doctor import Check
    from cli.pipeline import Outcome
    from clustering.evaluate import Evaluated, Evaluation
    from clustering.history import Comparison
    from clustering.measures import Accuracy
    from clustering.overview import Overview
    from clustering.similar import Similar
    from core.jobs import Progress, Report, Watch
    from core.records import Failure, Member
    from etl.dead_letters import DeadLetter
    from etl.failures import RetryReport
    from topics.news import News

PLAIN_SECONDS = 5.0
"""Between two lines of progress where there is no terminal."""


def set_up_logging(verbose: int) -> None:
    """Send warnings to stderr, with `verbose` 1 a line per batch and job too, with 2 all."""
    level = logging.DEBUG if verbose > 1 else logging.INFO if verbose else logging.WARNING
    handler = _Stderr()
    if not verbose:
        handler.addFilter(lambda record: record.name != "root")  # py4j's: the traceback of a call that Ctrl-C ended
    logging.basicConfig(handlers=[handler], level=level, format="%(levelname)s %(name)s: %(message)s", force=True)
    logging.captureWarnings(True)
    for noisy in ("py4j", "pymongo", "numba", "pyspark"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL if verbose < 2 else logging.INFO)


class _Stderr(logging.Handler):
    """Writes to what is stderr at the time, so that a line does not tear a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        sys.stderr.write(f"{self.format(record)}\n")


def error(message: str) -> None:
    """Print an error."""
    print(f"murmur: {message}", file=sys.stderr)  # noqa: T201


def program() -> str:
    """Return how this program was called, so that a suggested command can be pasted."""
    called = Path(sys.argv[0])
    found = shutil.which("murmur")
    if called.name != "murmur" or (found and Path(found).resolve() == called.resolve()):
        return "murmur"
    try:
        return shlex.quote(str(called.absolute().relative_to(Path.cwd())))
    except ValueError:
        return shlex.quote(str(called))


@contextmanager
def progress(*, quiet: bool) -> Iterator[Watch]:
    """Give a watch that draws a bar on a terminal and prints plain lines otherwise."""
    from core.jobs import ignore

    if quiet:
        yield ignore
    elif sys.stderr.isatty():
        with _bars() as watch:
            yield watch
    else:
        yield _plain()


def report(job: str, done: Report, *, as_json: bool) -> None:
    """Print what a job did."""
    if as_json:
        _json(dataclasses.asdict(done))
    else:
        _report(job, done)


def sentence(job: str, done: Report) -> str:
    """Return a report as one line; counts of 0 are left out."""
    values = dataclasses.asdict(done)
    seconds = values.pop("seconds")
    counts = [
        f"{value:,} {name.replace('_', ' ')}" for name, value in values.items() if value and isinstance(value, int)
    ]
    said = ", ".join([*filter(None, [values.get("run_id")]), *counts]) or "nothing to do"
    news = "" if done.written or done.sent or not counts else "; nothing new"
    return f"{job}: {said}{news} ({seconds:.1f} s)"


def outcome(done: Outcome, command: str, *, as_json: bool) -> None:
    """Print the reports of a whole run, its clusters, and what to try next."""
    if as_json:
        reports = {job: dataclasses.asdict(report) for job, report in done.reports.items()}
        _json({"reports": reports, "clusters": [dataclasses.asdict(one) for one in done.clusters]})
        return
    for job, one in done.reports.items():
        _report(job, one)
    if not any(one.written or one.sent for one in done.reports.values()):
        text("Everything is as it was: nothing computed, written or sent.")
    text("")
    clusters(done.clusters, as_json=False)
    if done.clusters:
        example = done.clusters[0]
        text("\nTry next:")
        text(f"  {command} subscribe {example.cluster_id}")
        text(f"  {command} similar {shlex.quote(example.typical_id)}")
        text(f"  {command} status")


def clusters(found: Iterable[Overview], *, as_json: bool) -> None:
    """Print a row for each cluster."""
    found = list(found)
    if as_json:
        _json([dataclasses.asdict(one) for one in found])
        return
    rows = [
        (one.cluster_id, str(one.size), _sounds(one), _shares(one), "; ".join(one.typical), one.topic) for one in found
    ]
    _table(("cluster", "tracks", "sounds", "genres", "most typical", "topic"), rows, right=("tracks",))


def evaluation(found: Evaluation, *, as_json: bool) -> None:
    """Print what was compared, and a row for each space."""
    if as_json:
        _json(dataclasses.asdict(found))
        return
    text(
        f"{found.label}: {found.tracks:,} tracks of {found.classes:,} classes; left out: {found.small_tracks:,} tracks "
        f"of {found.small_classes:,} classes under 5, {found.unlabelled:,} without a value"
    )
    first = found.settings[0]
    text(f"all neighbours: n = {first.neighbours.n:,}, majority share {first.neighbours.majority:.3f}")
    if first.apart:
        text(
            f"* none of the same {' or '.join(found.apart)}: n = {first.apart.n:,}, "
            f"majority share {first.apart.majority:.3f}"
        )
    accuracies = ("1-NN", "5-NN", "1-NN*", "5-NN*")
    columns = ("setting", "K", *accuracies, "purity (chance)", "NMI (chance)", "ARI", "most lists", "in none")
    _table(columns, [_evaluated(one) for one in found.settings], right=columns[1:])


def history(found: Iterable[Mapping[str, Any]], *, as_json: bool) -> None:
    """Print a row for each run, the oldest first."""
    found = list(found)
    if as_json:
        _json(found)
    elif not found:
        text("no runs yet")
    else:
        counts = ("n_tracks", "joined", "left", "moved", "n_clusters")
        rows = [(one["run_id"], *(f"{one[name]:,}" for name in counts), _lineage(one)) for one in found]
        columns = ("run", "tracks", "joined", "left", "moved", "clusters", "what became of them")
        _table(columns, rows, right=columns[1:-1])


def comparison(found: Comparison, *, as_json: bool) -> None:
    """Print a row for each pair of clusters that have tracks in common, and the sums."""
    if as_json:
        _json(dataclasses.asdict(found))
        return
    _table(("before", "after", "tracks"), [(a, b, f"{n:,}") for a, b, n in found.pairs], right=("tracks",))
    text(
        f"\n{found.both:,} tracks in both: {found.stayed:.1%} stayed, ARI {found.ari:.3f}; "
        f"{found.joined:,} joined, {found.left:,} left"
    )


def similar(found: Sequence[Similar], command: str, *, as_json: bool) -> None:
    """Print a row for each similar track, the best first, and how to hear of more: the clusters they are in."""
    if as_json:
        _json([dataclasses.asdict(one) for one in found])
        return
    rows = [(f"{one.score:.3f}", one.title or "", one.artist or "", one.cluster_id, one.path) for one in found]
    _table(("score", "title", "artist", "cluster", "path"), rows, right=("score",))
    if clusters := Counter(one.cluster_id for one in found if one.cluster_id != UNCLUSTERED):
        text("\nMore like these:")
        for cluster_id, count in clusters.most_common():
            text(f"  {command} subscribe {cluster_id} --follow  # {count} of these {len(found)}")


def members(found: Mapping[str, Member], *, as_json: bool) -> None:
    """Print the members of a cluster, the most typical first; as JSON a line each."""
    ordered = sorted(found.values(), key=lambda member: (-member.score, member.track_id))
    if as_json:
        for member in ordered:
            text(member.to_json().decode())
        return
    rows = [
        (f"{one.score:.3f}", one.title or "", one.artist or "", one.genre or "", _neighbours(one), one.track_id)
        for one in ordered
    ]
    _table(("score", "title", "artist", "genre", "nearest", "track_id"), rows, right=("score",))


def news(batches: Iterable[Iterable[News]], *, as_json: bool) -> int:
    """Print what is new, a line each, as it is read; return how many."""
    count = 0
    for count, change in enumerate(chain.from_iterable(batches), 1):  # noqa: B007  # returned
        if as_json:
            text(change.to_json().decode())
        else:
            title = change.member.title or change.track_id if change.member else change.track_id
            text(f"{'+' if change.member else '-'} {printable(title)}")
    return count


def check_reader() -> None:
    """Raise `BrokenPipeError` if nobody reads stdout any more, as after `| head`: a write may be long in coming."""
    reader = select.poll()
    reader.register(sys.stdout.fileno(), 0)
    if any(event & (select.POLLERR | select.POLLHUP) for _, event in reader.poll(0)):
        raise BrokenPipeError


def failures(found: Iterable[Failure], *, as_json: bool) -> None:
    """Print a row for each file that could not be read."""
    found = list(found)
    if as_json:
        _json([one.model_dump() for one in found])
    elif not found:
        text("no failures")
    else:
        rows = [(one.path, one.stage, one.message, one.advice) for one in found]
        _table(("path", "stage", "reason", "what to do"), rows)


def failures_in_full(found: Iterable[Failure]) -> None:
    """Print everything that is known of failures, with an empty line between them."""
    for number, failure in enumerate(found):
        if number:
            text("")
        facts(failure.model_dump(), as_json=False)


def retried(done: RetryReport, command: str, *, as_json: bool) -> None:
    """Print how many files are tried again, and the commands that do it."""
    next_commands = [f"{command} extract {shlex.quote(folder)}" for folder in _folders(done.paths)]
    if as_json:
        _json(dataclasses.asdict(done) | {"next": next_commands})
    elif not done.paths:
        text("no failures")
    else:
        text(f"files to be tried again: {len(done.paths):,}; type next:")
        for line in next_commands:
            text(f"  {line}")


def dead_letters(found: Iterable[DeadLetter], *, as_json: bool) -> None:
    """Print a row for each record that could not be loaded; its value, which may be large, is not kept."""
    if as_json:
        _json([_dead_letter(one) for one in found])
        return
    rows = [
        (str(one.place), _text(one.key) or "", str(one.attempts), f"{one.first_seen:%Y-%m-%d %H:%M:%S}", one.reason)
        for one in found
    ]
    if rows:
        _table(("place", "key", "attempts", "first seen (UTC)", "reason"), rows, right=("attempts",))
    else:
        text("no dead letters, or none that match")


def dead_letters_in_full(found: Iterable[DeadLetter], *, as_json: bool) -> None:
    """Print all that there is of records that could not be loaded, with an empty line between them."""
    letters = (
        _dead_letter(one)
        | {"headers": [[name, _text(value)] for name, value in one.headers], "value": _text(one.value)}
        for one in found
    )
    if as_json:
        _json(list(letters))
        return
    for number, letter in enumerate(letters):
        if number:
            text("")
        facts(letter, as_json=False)


def replayed(done: Report, command: str, *, as_json: bool) -> None:
    """Print how many dead letters were sent back, and what takes them up."""
    if as_json:
        _json(dataclasses.asdict(done))
        return
    if not done.read:
        text("no dead letters, or none that match")
    if done.sent:
        text(f"dead letters sent back: {done.sent:,}; type next:\n  {command} load")
    if done.unchanged:
        text(
            "dead letters that stay, tried too often, from elsewhere, or followed by a later message of their key: "
            f"{done.unchanged:,}; `{command} dlq` lists them"
        )


def purged(done: Report, *, as_json: bool) -> None:
    """Print how many dead letters were removed."""
    if as_json:
        _json(dataclasses.asdict(done))
    else:
        text(f"dead letters removed: {done.read:,}")


def facts(found: Mapping[str, Any], *, as_json: bool) -> None:
    """Print names and values."""
    if as_json:
        _json(found)
        return
    width = max(map(len, found))
    for name, value in found.items():
        text(f"{name.replace('_', ' '):<{width}}  {'-' if value is None else printable(str(value))}")


def status(found: Mapping[str, Any], *, as_json: bool) -> None:
    """Print the state of everything, with a row for each topic that a group reads."""
    if as_json:
        _json(found)
        return
    single = dict(found)
    lags, limit = single.pop("lag"), single.pop("dead_letters_counted_up_to")
    if single["dead_letters"] == limit:
        single["dead_letters"] = f"{limit} or more"
    facts(single, as_json=False)
    text("")
    rows = [(one["group"], one["topic"], str(one["messages"]), _duration(one["oldest_seconds"])) for one in lags]
    _table(
        ("group", "topic", "messages behind", "the oldest since"), rows, right=("messages behind", "the oldest since")
    )


def checks(found: Iterable[Check], *, as_json: bool) -> None:
    """Print a row for each thing that was examined."""
    found = list(found)
    if as_json:
        _json([dataclasses.asdict(one) for one in found])
        return
    _table(("", "what", "found"), [("ok" if one.ok else "!!", one.what, one.found) for one in found])


def _report(job: str, done: Report) -> None:
    """Print a report as one line, and where a number of clusters was chosen the table of those that were tried."""
    text(sentence(job, done))
    tried = dataclasses.asdict(done).get("trials")
    if tried:
        rows = [
            (
                "→" if one["chosen"] else "",
                str(one["n_clusters"]),
                f"{one['silhouette']:.4f}",
                f"{one['stability']:.4f}",
            )
            for one in tried
        ]
        columns = ("", "K", "silhouette", "stability")
        text("")
        _table(columns, rows, right=columns[1:])


def _dead_letter(one: DeadLetter) -> dict[str, Any]:
    return {
        "place": str(one.place),
        "key": _text(one.key),
        "reason": one.reason,
        "class": one.error,
        "attempts": one.attempts,
        "first_seen": one.first_seen.isoformat(),
        "version": one.version,
    }


def _duration(seconds: float | None) -> str:
    return "-" if seconds is None else str(timedelta(seconds=round(seconds)))


def _text(data: bytes | None) -> str | None:
    return None if data is None else data.decode("utf-8", "backslashreplace")


def _folders(paths: Iterable[str]) -> list[str]:
    """Return the folder that all the files are in; each file's own where that would be the whole file system."""
    own = sorted({str(PurePath(path).parent) for path in paths})
    common = os.path.commonpath(own) if own else ""
    return own if common in ("", os.sep) else [common]


def _lineage(run: Mapping[str, Any]) -> str:
    """Return births, deaths, splits and merges in words, each with how many tracks went where."""
    if run["former"] is None:
        return f"{len(run['births'])} are new"

    def told(clusters: Mapping[str, Mapping[str, int]], what: str, way: str) -> list[str]:
        flows = [
            (one, ", ".join(f"{n:,} {way} {other}" for other, n in parts.items())) for one, parts in clusters.items()
        ]
        return [f"{one} {what}: {flow or 'no track is left'}" for one, flow in flows]

    words = [
        *(f"{one} is new" for one in run["births"]),
        *told(run["successors"], "ended", "to"),
        *told(run["splits"], "split", "to"),
        *told(run["merges"], "merged", "of"),
    ]
    return "; ".join(words) or "unchanged"


def _sounds(one: Overview) -> str:
    if one.cluster_id == UNCLUSTERED:
        return "far from every cluster"
    heard = one.description["sounds"] if one.description else []
    said = [f"{sound['word']} {sound['deviation']:+.1f}σ" for sound in heard if sound["word"]]
    return ", ".join(said) or ("close to the average" if one.description else "")


def _shares(one: Overview) -> str:
    named = sum(one.genres.values())
    lifts = {over["genre"]: over["lift"] for over in one.description["genres"]} if one.description else {}
    top = sorted(one.genres.items(), key=lambda item: (-lifts.get(item[0], 0.0), -item[1], item[0]))[:3]
    return ", ".join(
        f"{genre} {count / named:.0%}" + (f" (×{lifts[genre]:.1f})" if genre in lifts else "") for genre, count in top
    )


def _evaluated(one: Evaluated) -> tuple[str, ...]:
    return (
        one.setting.replace("clustering.", "").replace("groups.", ""),
        str(one.n_clusters),
        *_accuracies(one.neighbours),
        *_accuracies(one.apart),
        f"{one.purity:.3f} ({one.purity_chance:.3f})",
        f"{one.nmi:.3f} ({one.nmi_chance:.3f})",
        f"{one.ari:.3f}",
        str(one.most_lists),
        f"{one.never_listed:.1%}",
    )


def _accuracies(found: Accuracy | None) -> tuple[str, str]:
    if found is None:
        return "-", "-"
    return f"{found.nn1:.3f} ± {found.nn1_error:.3f}", f"{found.nn5:.3f} ± {found.nn5_error:.3f}"


def _neighbours(member: Member) -> str:
    return "; ".join(one.title or one.track_id for one in member.neighbours[:3])


def _json(value: Any) -> None:
    text(json.dumps(value, ensure_ascii=False, indent=2))


def text(words: str) -> None:
    """Print to stdout."""
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()  # what is committed as read must have been written


def _table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]], right: tuple[str, ...] = ()) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    _console(sys.stdout).print(table)


def _console(file: Any) -> Console:
    from rich.console import Console

    return Console(file=file, width=None if file.isatty() else 160, highlight=False)


@contextmanager
def _bars() -> Iterator[Watch]:
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[failed]} failed"),
    )
    with Bars(*columns, console=_console(sys.stderr), transient=True) as bars:
        tasks: dict[str, Any] = {}
        started: dict[str, float] = {}
        last = time.monotonic()

        def watch(now: Progress) -> None:
            nonlocal last
            if now.stage not in tasks:
                tasks[now.stage] = bars.add_task(now.stage, total=now.total, rate="", failed=0)
                started[now.stage] = last  # a stage begins where the one before it ended
            last = time.monotonic()
            rate = f"{now.done / max(last - started[now.stage], 1e-3):,.1f}/s" if now.done else ""
            bars.update(tasks[now.stage], completed=now.done, total=now.total, rate=rate, failed=now.failed)

        yield watch


def _plain() -> Watch:
    said: dict[str, float] = {}

    def watch(now: Progress) -> None:
        late = time.monotonic() - said.get(now.stage, 0.0) > PLAIN_SECONDS
        if late or now.done == now.total:
            said[now.stage] = time.monotonic()
            total = "" if now.total is None else f"/{now.total}"
            failed = f", {now.failed} failed" if now.failed else ""
            sys.stderr.write(f"{now.stage} {now.done}{total}{failed}\n")

    return watch
