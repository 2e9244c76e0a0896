"""The command as a new user meets it: every mistake is one line with the right exit code."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import clustering_library as library
import numpy as np
import pandas as pd
import pytest
import soundfile

from cli.main import app, main
from core import open_bus, open_store
from core.bus import read_to_end
from core.config import Config
from core.records import Run
from etl.messages import create_topics

COMMANDS = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Murmur = Callable[..., Outcome]


@pytest.fixture
def murmur(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Murmur:
    """Return a function that runs the command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> Outcome:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["murmur", *map(str, arguments)])
        return Outcome(main(), *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with six short tracks: three tones, three noises."""
    folder = tmp_path_factory.mktemp("tones")
    rng = np.random.default_rng(0)
    t = np.arange(3 * 22_050) / 22_050
    for i in range(3):
        soundfile.write(folder / f"tone {i}.wav", 0.3 * np.sin(2 * np.pi * 440 * 1.2**i * t), 22_050)
        soundfile.write(folder / f"noise {i}.flac", 0.1 * (i + 1) * rng.standard_normal(len(t)), 22_050)
    return folder


@pytest.fixture(scope="session")
def finished(tones: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder where the tones were run once."""
    folder = tmp_path_factory.mktemp("finished")
    murmur = Path(sys.executable).with_name("murmur")
    subprocess.run([murmur, "run", tones, "--engine", "sklearn"], cwd=folder, check=True, capture_output=True)
    return folder


def says(outcome: Outcome, code: int, *words: str) -> None:
    """Check that an error is one line on stderr, with these words and this exit code."""
    assert outcome.code == code, outcome.err
    assert outcome.out == ""
    assert outcome.err.startswith("murmur: ")
    assert outcome.err.count("\n") == 1, outcome.err
    assert [word for word in words if word not in outcome.err] == []


def test_help_names_every_command_on_a_line_of_its_own(murmur: Murmur) -> None:
    done = murmur("--help")
    assert done.code == 0
    assert {line.split()[0] for line in done.out.splitlines() if line.startswith("  ")} >= COMMANDS
    assert "..." not in done.out.replace("[ARGS]...", "")


@pytest.mark.parametrize("group", ["failures", "dlq", "export"])
def test_help_of_a_group_says_of_each_verb_on_one_line_what_it_does(murmur: Murmur, group: str) -> None:
    said = murmur(group, "--help").out.partition("Commands:\n")[2]
    assert said
    assert "..." not in said


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help(murmur: Murmur, command: str) -> None:
    done = murmur(command, "--help")
    assert done.code == 0
    assert "Usage: murmur" in done.out


def test_help_imports_nothing_heavy() -> None:
    heavy = "librosa numpy pandas pymongo kafka pyspark sklearn rich.progress"
    code = (
        "import sys; sys.argv=['murmur','--help']\nfrom cli.main import main\n"
        f"main()\nprint([m for m in '{heavy}'.split() if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_version_is_that_of_the_package(murmur: Murmur) -> None:
    assert murmur("--version") == Outcome(0, f"murmur {version('murmuration')}\n", "")


def test_no_verb_shows_the_help_as_wrong_usage(murmur: Murmur) -> None:
    done = murmur()
    assert done.code == 2
    assert "Commands:" in done.out


def test_an_unknown_verb_and_option_are_wrong_usage(murmur: Murmur) -> None:
    says(murmur("frobnicate"), 2, "frobnicate")
    says(murmur("run", "--frobnicate", "x"), 2, "--frobnicate")
    for wrong in ("0", "-1", "2.5", "many"):
        says(murmur("cluster", "--clusters", wrong), 2, "--clusters", "a whole number from 1 on, or auto")
    says(murmur("cluster", "--engine", "abacus"), 2, "abacus", "sklearn")
    says(murmur("run"), 2, "AUDIO_DIR")
    says(murmur("export"), 2, "murmur export features OUT", "murmur export playlists DIR")


def test_a_missing_folder_is_named(murmur: Murmur) -> None:
    says(murmur("run", "nowhere"), 2, "nowhere")
    assert list(Path().iterdir()) == []


def test_a_folder_without_audio_is_named_with_the_extensions(murmur: Murmur, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no music")
    says(murmur("-q", "run", "empty"), 2, "empty", ".mp3")
    assert [file.name for file in tmp_path.iterdir()] == ["empty"]


def test_a_second_cluster_stops_at_once_with_who_is_at_work(murmur: Murmur, finished: Path) -> None:
    os.chdir(finished)
    with closing(open_store("sqlite:///murmur.db")) as store, store.lease("cluster"):
        says(murmur("-q", "cluster", "--engine", "sklearn"), 1, "`cluster` is at work", f"process {os.getpid()} on ")


def test_a_missing_csv_is_named(murmur: Murmur, tones: Path) -> None:
    says(murmur("-q", "run", tones, "--metadata", "none.csv"), 2, "none.csv")


def test_a_csv_without_the_key_column_names_the_columns_there_are(murmur: Murmur, tones: Path, tmp_path: Path) -> None:
    (tmp_path / "tracks.csv").write_text("colour,mood\nred,good\n")
    says(murmur("-q", "run", tones, "--metadata", "tracks.csv"), 2, "tracks.csv", "colour", "catalogue.key")


def test_an_unknown_key_in_the_config_is_named_with_the_nearest(murmur: Murmur, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("clustering: {n_cluster: 3}\n")
    says(murmur("status"), 2, "clustering.n_cluster", "n_clusters")


def test_a_config_that_is_not_there_is_named(murmur: Murmur) -> None:
    says(murmur("--config", "none.yaml", "status"), 2, "none.yaml")


@pytest.mark.parametrize(
    "command",
    [
        "status",
        "clusters",
        "failures",
        "failures retry",
        "dlq",
        "dlq replay",
        "dlq purge --all",
        "similar x",
        "subscribe c01",
        "export features a.csv",
        "export assignments a.csv",
        "export playlists a",
    ],
)
def test_a_command_that_reads_makes_no_file_before_the_first_run(murmur: Murmur, command: str) -> None:
    says(murmur(*command.split()), 2, "murmur.db", "murmur run")
    assert list(Path().iterdir()) == []


def test_no_java_names_java_17_and_the_other_engine(
    murmur: Murmur, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, "copy")
    monkeypatch.chdir("copy")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    says(murmur("-q", "cluster", "--engine", "spark", "--clusters", "3"), 1, "Java 17", "--engine sklearn")


@pytest.mark.parametrize("verb", ["status", "load", "publish"])
def test_nobody_at_kafka_is_said_within_seconds(murmur: Murmur, tmp_path: Path, verb: str) -> None:
    (tmp_path / "config.yaml").write_text("bus: kafka://127.0.0.1:1\n")
    (tmp_path / "murmur.db").touch()
    says(murmur("-q", verb), 1, "kafka://127.0.0.1:1", "refused")


def test_nobody_at_mongodb_is_said_within_seconds(murmur: Murmur, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("store: mongodb://user:secret@127.0.0.1:1/music\n")
    done = murmur("-q", "status")
    says(done, 1, "mongodb://127.0.0.1:1/music")
    assert "secret" not in done.err


def test_more_clusters_than_tracks_is_wrong_usage(murmur: Murmur, finished: Path) -> None:
    shutil.copytree(finished, "copy")
    os.chdir("copy")
    says(murmur("-q", "cluster", "--engine", "sklearn", "--clusters", "7"), 2, "7", "6")


def test_a_chosen_number_of_clusters_comes_with_the_table_of_those_that_were_tried(murmur: Murmur) -> None:
    with closing(open_store(Config().store.url)) as store:
        store.upsert(library.tracks(70, kinds=6))
    done = murmur("-q", "cluster", "--engine", "sklearn", "--clusters", "auto")
    sentence, _, heads, _, *rows = done.out.splitlines()
    assert ", 6 clusters, " in sentence
    assert heads.split() == ["K", "silhouette", "stability"]
    assert [row.split()[:-2] for row in rows] == [["5"], ["→", "6"], ["7"]]
    again = json.loads(murmur("-q", "cluster", "--engine", "sklearn", "--clusters", "auto", "--json").out)
    told = [(one["n_clusters"], f"{one['silhouette']:.4f}", f"{one['stability']:.4f}") for one in again["trials"]]
    assert told == [(int(row.split()[-3]), *row.split()[-2:]) for row in rows]


def test_too_few_tracks_to_choose_for_are_clustered_by_the_rule_with_one_line(murmur: Murmur, finished: Path) -> None:
    shutil.copytree(finished, "copy")
    os.chdir("copy")
    done = murmur("-q", "cluster", "--engine", "sklearn", "--clusters", "auto")
    assert (done.code, done.out.count("\n")) == (0, 1)
    assert "auto needs 50 tracks, 5 of them distinct; these 6 get √(n/2), 2 clusters" in done.err
    assert done.err.count("\n") == 1


def test_the_history_tells_what_became_of_the_clusters_and_so_does_the_runs_topic(
    murmur: Murmur, finished: Path
) -> None:
    shutil.copytree(finished, "copy")
    os.chdir("copy")
    murmur("-q", "cluster", "--engine", "sklearn", "--clusters", "1")
    murmur("-q", "publish")
    first, second = json.loads(murmur("clusters", "--history", "--json").out)
    assert (first["former"], first["births"], first["joined"]) == (None, ["c01", "c02"], 6)
    assert (second["former"], second["deaths"]) == (first["run_id"], ["c02"])
    shown = murmur("clusters", "--history").out
    assert "2 are new" in shown
    assert "c02 ended: 3 to c01; c01 merged: 3 of c01, 3 of c02" in " ".join(shown.split())
    with closing(open_bus(Config().bus.url)) as bus:
        sent = {message.key: message.value for message in read_to_end(bus, ["clusters.runs.v1"])}
    published = json.loads(sent[second["run_id"].encode()] or b"")
    told = {name: published[name] for name in ("former", "births", "deaths", "successors")}
    assert told == {"former": first["run_id"], "births": [], "deaths": ["c02"], "successors": {"c02": {"c01": 3}}}


def test_a_comparison_of_two_runs_shows_what_moved(murmur: Murmur, finished: Path) -> None:
    shutil.copytree(finished, "copy")
    os.chdir("copy")
    murmur("-q", "cluster", "--engine", "sklearn", "--clusters", "1")
    runs = [one["run_id"] for one in json.loads(murmur("clusters", "--history", "--json").out)]
    found = json.loads(murmur("clusters", "--compare", *runs, "--json").out)
    assert found["pairs"] == [["c01", "c01", 3], ["c02", "c01", 3]]
    assert (found["both"], found["stayed"]) == (6, 0.5)
    assert "6 tracks in both: 50.0% stayed, ARI 0.000" in murmur("clusters", "--compare", *runs).out
    again = json.loads(murmur("-q", "cluster", "--engine", "sklearn", "--like", runs[0], "--json").out)
    assert json.loads(murmur("clusters", "--compare", runs[0], again["run_id"], "--json").out)["stayed"] == 1


def test_an_unknown_run_and_options_that_exclude_each_other_are_wrong_usage(murmur: Murmur, finished: Path) -> None:
    os.chdir(finished)
    (known,) = [one["run_id"] for one in json.loads(murmur("clusters", "--history", "--json").out)]
    says(murmur("-q", "cluster", "--engine", "sklearn", "--like", "run-0"), 2, "'run-0'", known)
    says(murmur("clusters", "--compare", known, "run-0"), 2, "'run-0'", known)
    says(murmur("-q", "cluster", "--like", known, "--fresh"), 2, "--like", "leave out the other option")
    says(murmur("-q", "cluster", "--like", known, "--clusters", "auto"), 2, "--like", "leave out the other option")
    says(murmur("clusters", "--history", "--compare", known, known), 2, "--history", "--compare")


def test_an_unknown_cluster_lists_those_there_are(murmur: Murmur, finished: Path) -> None:
    os.chdir(finished)
    says(murmur("subscribe", "c99"), 2, "c99", "c01, c02")


def test_an_unknown_track_says_how_to_name_one(murmur: Murmur, finished: Path) -> None:
    os.chdir(finished)
    says(murmur("similar", "no such song"), 2, "no such song")


def test_a_part_of_a_title_that_fits_several_lists_them(murmur: Murmur, finished: Path) -> None:
    os.chdir(finished)
    says(murmur("similar", "tone"), 2, "tone 0", "tone 1")


def test_a_track_is_found_by_path_by_id_and_by_a_part_of_its_title(murmur: Murmur, finished: Path, tones: Path) -> None:
    os.chdir(finished)
    by_path = json.loads(murmur("similar", tones / "tone 1.wav", "--json").out)
    by_title = json.loads(murmur("similar", "tone 1", "--json").out)
    back = json.loads(murmur("similar", by_path[0]["track_id"], "--json").out)
    assert by_path == by_title
    assert {Path(near["path"]).name for near in by_path[:2]} == {"tone 0.wav", "tone 2.wav"}
    assert len(back) == 5


def test_an_earlier_run_is_in_force_until_the_latest_is_published_and_one_like_it_stays(
    murmur: Murmur, finished: Path
) -> None:
    shutil.copytree(finished, "copy")
    os.chdir("copy")

    def nightly() -> list[int]:
        for verb in (["cluster", "--engine", "sklearn"], ["publish"]):
            assert murmur("-q", *verb).code == 0
        return sizes()

    def sizes() -> list[int]:
        return [one["size"] for one in json.loads(murmur("clusters", "--json").out)]

    (first,) = json.loads(murmur("clusters", "--history", "--json").out)
    Path("config.yaml").write_text("clustering: {n_clusters: 1}")
    assert nightly() == [6]
    assert murmur("-q", "publish", "--run", first["run_id"]).code == 0
    assert (sizes(), nightly()) == ([3, 3], [6])
    assert murmur("-q", "cluster", "--engine", "sklearn", "--like", first["run_id"]).code == 0
    Path("config.yaml").unlink()
    assert (nightly(), nightly()) == ([3, 3], [3, 3])
    assert len(json.loads(murmur("clusters", "--history", "--json").out)) == 3


def test_what_is_similar_comes_with_the_clusters_to_subscribe_to(murmur: Murmur, finished: Path, tones: Path) -> None:
    os.chdir(finished)
    found = json.loads(murmur("similar", tones / "tone 1.wav", "--json").out)
    ids = [one["cluster_id"] for one in found]
    said = murmur("similar", tones / "tone 1.wav").out.partition("More like these:\n")[2]
    assert {line.partition("  # ")[2] for line in said.splitlines()} == {f"{ids.count(one)} of these 5" for one in ids}
    assert all(f" subscribe {one} --follow" in said for one in ids)


def test_no_topic_is_suggested_for_similar_tracks_that_are_in_no_cluster(
    murmur: Murmur, finished: Path, tones: Path
) -> None:
    """The noises are said to be too far from their centre."""
    shutil.copytree(finished, "copy")
    os.chdir("copy")
    Path("config.yaml").write_text("topics: {prefix: lab.}\n")
    near, far = (json.loads(murmur("similar", tones / name, "-n", "1", "--json").out)[0]["cluster_id"]
                 for name in ("tone 1.wav", "noise 1.flac"))  # fmt: skip
    with closing(open_store(Config().store.url)) as store:
        (run,) = (Run.model_validate(one) for one in store.scan(Run))
        clusters = [one.model_copy(update={"p99": 1e-6} if one.cluster_id == far else {}) for one in run.clusters]
        store.upsert([run.model_copy(update={"rev": run.rev + 1, "clusters": clusters})])
    found = json.loads(murmur("similar", tones / "tone 1.wav", "--json").out)
    topics = {near: f"lab.clusters.{near}.tracks.v1", "unclustered": "lab.clusters.unclustered.tracks.v1"}
    assert {one["cluster_id"]: one["topic"] for one in found} == topics
    said = murmur("similar", tones / "tone 1.wav").out.partition("More like these:\n")[2]
    assert [line.split()[1:3] for line in said.splitlines()] == [["subscribe", near]]
    assert "More like these" not in murmur("similar", tones / "noise 1.flac", "-n", "2").out


def test_a_text_file_named_mp3_an_empty_file_and_a_name_that_is_not_utf8_are_reported_and_the_rest_goes_on(
    murmur: Murmur, tones: Path
) -> None:
    shutil.copytree(tones, "music")
    Path("music/words.mp3").write_text("These are words. " * 1000)
    Path("music/empty.ogg").touch()
    soundfile.write("music/chord.wav", np.sin(np.arange(66_150) / 7) / 4 + np.sin(np.arange(66_150) / 9) / 4, 22_050)
    Path("music/chord.wav").rename(os.fsdecode(b"music/caf\xe9.wav"))
    done = murmur("-q", "run", "music", "--engine", "sklearn")
    assert done.code == 1
    assert done.err.count("\n") == 1
    assert "2 of 9 files" in done.err
    assert "max_failures" in done.err
    listed = {Path(one["path"]).name: one for one in json.loads(murmur("failures", "--json").out)}
    assert listed.keys() == {"words.mp3", "empty.ogg"}
    assert all(one["message"] and one["advice"] for one in listed.values())
    assert murmur("failures", "show", "words").out.count("words.mp3") >= 1
    again = murmur("-q", "run", "music", "--engine", "sklearn")
    assert again.code == 0
    assert "nothing computed, written or sent" in again.out
    assert json.loads(murmur("status", "--json").out)["tracks"] == 7


def test_a_folder_of_which_no_file_can_be_read_says_so_and_fails(murmur: Murmur) -> None:
    Path("bad").mkdir()
    Path("bad/words.mp3").write_text("These are words. " * 1000)
    says(murmur("-q", "run", "bad", "--engine", "sklearn"), 1, "1 files could not be read", "murmur failures")


def test_a_failure_is_listed_before_it_is_loaded_and_tried_again_by_the_command_that_retry_prints(
    murmur: Murmur, tones: Path
) -> None:
    music = Path("my music").absolute()
    music.mkdir()
    for name in ("tone 0.wav", "tone 1.wav"):
        shutil.copy(tones / name, music)
    (music / "words.mp3").write_text("These are words. " * 1000)
    assert murmur("-q", "extract", music).code == 1
    assert "words.mp3" in murmur("failures").out
    known = json.loads(murmur("-q", "extract", music, "--json").out)
    assert (known["known_failures"], known["tried"]) == (1, 0)
    says(murmur("failures", "retry", "tone"), 2, "tone", "murmur failures")
    assert murmur("failures", "retry", "words").out.splitlines()[-1].endswith(f"murmur extract '{music}'")
    (again,) = json.loads(murmur("failures", "retry", "--json").out)["next"]
    tried = murmur("-q", *shlex.split(again)[1:], "--json")
    counts = json.loads(tried.out)
    assert (tried.code, counts["failed"], counts["known_failures"], counts["sent"]) == (0, 0, 1, 1)


def test_failures_are_shown_and_tried_again_by_a_relative_path_too_and_as_one_list_of_json(murmur: Murmur) -> None:
    for name in ("music/noise.mp3", "more/music/noise.mp3"):
        Path(name).parent.mkdir(parents=True)
        Path(name).write_text("These are words. " * 1000)
    assert murmur("-q", "extract", ".").code == 1
    assert len(json.loads(murmur("failures", "show", "noise", "--json").out)) == 2
    (one,) = json.loads(murmur("failures", "show", "./music/noise.mp3", "--json").out)
    assert one["path"] == str(Path("music/noise.mp3").absolute())
    assert [part.split()[0] for part in murmur("failures", "show", "noise").out.split("\n\n")] == ["rev", "rev"]
    assert json.loads(murmur("failures", "retry", "./music/noise.mp3", "--json").out)["paths"] == [one["path"]]


@pytest.mark.parametrize("verb", ["list", "show", "retry"])
def test_json_before_the_verb_of_failures_is_refused_with_the_command_that_is_meant(murmur: Murmur, verb: str) -> None:
    says(murmur("failures", "--json", verb, *["x"] * (verb != "list")), 2, f"murmur failures {verb} --json")


def test_extract_prunes_only_when_it_is_told_to(murmur: Murmur, tones: Path) -> None:
    shutil.copytree(tones, "music", ignore=shutil.ignore_patterns("noise*"))
    murmur("-q", "extract", "music")
    Path("music/tone 1.wav").unlink()
    for options, pruned in (((), 0), (("--prune",), 1)):
        report = json.loads(murmur("-q", "extract", "music", *options, "--json").out)
        assert (report["gone"], report["pruned"], report["sent"]) == (1, pruned, pruned)


def test_the_feature_matrix_is_exported_with_the_report_of_a_job(murmur: Murmur, finished: Path) -> None:
    shutil.copytree(finished, "copy")
    os.chdir("copy")
    assert murmur("-q", "export", "features", "features.csv").out.startswith("export: 6 read, 6 written")
    report = json.loads(murmur("-q", "export", "features", "features.parquet", "--json").out)
    assert (report["written"], report["other_feature_sets"]) == (6, 0)
    assert pd.read_parquet("features.parquet").columns.names == ["feature", "statistics", "number"]
    says(murmur("export", "features", "features.xlsx"), 2, "features.xlsx", ".parquet")


def test_the_assignments_are_exported_as_a_table(murmur: Murmur, finished: Path) -> None:
    shutil.copytree(finished, "copy")
    os.chdir("copy")
    assert murmur("-q", "export", "assignments", "a.csv").out.startswith("export: 6 read, 6 written (")
    assert json.loads(murmur("-q", "export", "assignments", "a.parquet", "--json").out)["written"] == 6
    clusters = json.loads(murmur("clusters", "--json").out)
    for table in (pd.read_csv("a.csv"), pd.read_parquet("a.parquet")):
        assert table["cluster_id"].value_counts().to_dict() == {one["cluster_id"]: one["size"] for one in clusters}
    says(murmur("export", "assignments", "a.xlsx"), 2, "a.xlsx", ".parquet")


def test_each_cluster_is_exported_as_a_playlist_of_files_that_are_there(murmur: Murmur, finished: Path) -> None:
    shutil.copytree(finished, "copy")
    os.chdir("copy")
    clusters = json.loads(murmur("clusters", "--json").out)
    report = json.loads(murmur("-q", "export", "playlists", "lists", "--json").out)
    assert (report["written"], report["failed"], report["playlists"]) == (6, 0, len(clusters))
    files = sorted(Path("lists").iterdir())
    assert [file.name.split()[0] for file in files] == [one["cluster_id"] for one in clusters]
    paths = [line for file in files for line in file.read_text().splitlines() if not line.startswith("#")]
    assert len(paths) == len(set(paths)) == 6
    assert all(Path(path).is_file() for path in paths)
    says(murmur("export", "playlists", "murmur.db"), 2, "murmur.db", "a file, not a folder")


def test_a_column_that_no_track_has_is_one_line(murmur: Murmur, finished: Path) -> None:
    os.chdir(finished)
    says(murmur("-q", "evaluate", "--label", "genre"), 2, "--label genre", "the catalogue has no columns")


def test_blocks_that_the_clustering_needs_are_missed_before_anything_is_extracted(
    murmur: Murmur, tones: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text("features: {profiles: [fma]}\nclustering: {engine: sklearn}\n")
    for command in (("run", tones), ("cluster",)):
        says(murmur("-q", *command), 2, "clustering.groups.timbre", "mfcc_delta", "features.profiles", "[default, fma]")


def test_a_group_does_not_lose_what_a_closed_pipe_did_not_take(murmur: Murmur, finished: Path) -> None:
    os.chdir(finished)
    command = Path(sys.executable).with_name("murmur")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        [command, "subscribe", "c01", "--group", "piped"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    ) as reading:
        assert reading.stdout
        assert reading.stderr
        reading.stdout.close()
        assert reading.stderr.read() == b""
    assert reading.returncode == 1
    assert "nothing new" not in murmur("subscribe", "c01", "--group", "piped").out


def test_sigterm_stops_as_ctrl_c_does(murmur: Murmur, tones: Path, tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("murmur")
    with subprocess.Popen([command, "extract", tones], cwd=tmp_path, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr
        while "identify" not in running.stderr.readline():
            pass
        running.terminate()
        said = running.stderr.read()
    assert running.returncode == 130
    assert said.endswith("murmur: stopped; the same command goes on from here\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_load_that_follows_finishes_its_batch_and_says_what_it_did_when_it_is_stopped(
    murmur: Murmur, tmp_path: Path, number: signal.Signals
) -> None:
    bury("murmur.db")
    command = [Path(sys.executable).with_name("murmur"), "-v", "load", "--follow"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr
        while "loaded 3 messages: 0 records written, 3 dead letters" not in running.stderr.readline():
            pass
        running.send_signal(number)
        said, _ = running.communicate()
    assert running.returncode == 0
    assert said.startswith("load: 3 read, 3 failed, 3 sent")
    assert "nothing to do" in murmur("load").out


# Dead letters


def bury(database: str, n_messages: int = 3) -> None:
    """Send messages that cannot be loaded."""
    with closing(open_bus(f"sqlite:///{database}")) as bus:
        names = create_topics(bus, Config())
        producer = bus.producer()
        for n in range(n_messages):
            producer.send(names.tracks, b"k%d" % n, b"poison \xff %d" % n, (("rev", b"1"),))
        producer.flush()


def test_dead_letters_are_listed_shown_sent_back_and_removed(murmur: Murmur) -> None:
    bury("murmur.db")
    assert murmur("-q", "load").code == 0
    listed = json.loads(murmur("dlq", "--json").out)
    assert [letter["place"] for letter in listed] == [f"tracks.features.v1/0/{n}" for n in range(3)]
    assert json.loads(murmur("status", "--json").out)["dead_letters"] == 3
    assert murmur("dlq").out.count("not a Track") == 3
    (shown,) = json.loads(murmur("dlq", "show", listed[1]["place"], "--json").out)
    assert (shown["value"], shown["headers"], shown["attempts"]) == ("poison \\xff 1", [["rev", "1"]], 1)

    assert murmur("dlq", "list", "--reason", "no such reason").out == "no dead letters, or none that match\n"
    assert murmur("dlq", "list", "--since", "2999-12-31T23:59").out == "no dead letters, or none that match\n"
    assert murmur("dlq", "replay", listed[1]["place"]).out == "dead letters sent back: 1; type next:\n  murmur load\n"
    assert murmur("dlq", "purge", "tracks.features.v1/0/0").out == "dead letters removed: 1\n"
    assert murmur("-q", "load").code == 0
    listed = json.loads(murmur("dlq", "list", "tracks.features.v1", "--json").out)
    assert [(letter["place"], letter["attempts"]) for letter in listed] == [
        ("tracks.features.v1/0/2", 1),
        ("tracks.features.v1/0/3", 2),
    ]
    assert json.loads(murmur("dlq", "purge", "--all", "--json").out)["read"] == 2
    assert murmur("dlq", "replay").out == "no dead letters, or none that match\n"


def test_what_is_tried_too_often_stays_and_that_is_said(murmur: Murmur) -> None:
    bury("murmur.db")
    for _ in range(4):
        assert murmur("-q", "load").code == 0
        assert "sent back: 3" in murmur("dlq", "replay").out
    murmur("-q", "load")
    assert murmur("dlq", "replay").out.startswith("dead letters that stay, tried too often, ")


def test_to_purge_everything_must_be_said(murmur: Murmur) -> None:
    bury("murmur.db")
    murmur("-q", "load")
    says(murmur("dlq", "purge"), 2, "--all")
    says(murmur("dlq", "show", "nowhere/0/1"), 2, "nowhere/0/1", "murmur dlq")
    says(murmur("dlq", "--json", "replay"), 2, "--json", "murmur dlq replay --json")
    assert len(json.loads(murmur("dlq", "--json").out)) == 3


def test_too_many_bad_messages_stop_load_with_the_setting_that_says_so(murmur: Murmur) -> None:
    bury("murmur.db", 120)
    says(murmur("-q", "load"), 1, "120 of the last 120", "load.max_bad_share", "tracks.features.v1/0/0")
    assert json.loads(murmur("dlq", "--json").out) == []


def test_status_says_what_there_is(murmur: Murmur, finished: Path) -> None:
    os.chdir(finished)
    found = json.loads(murmur("status", "--json").out)
    assert (found["tracks"], found["failures"], found["not_loaded_yet"], found["dead_letters"]) == (6, 0, 0, 0)
    assert found["run_in_force"] == found["latest_run"]
    assert "run in force" in murmur("status").out


def test_doctor_examines_everything_and_makes_no_file(murmur: Murmur, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("clustering: {engine: sklearn}\n")
    done = murmur("doctor", "--json")
    assert done.code == 0
    checks = json.loads(done.out)
    assert all(check["ok"] for check in checks)
    assert {"config", "store", "bus", "codecs"} <= {check["what"] for check in checks}
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]


def test_doctor_fails_where_something_is_missing(murmur: Murmur, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("bus: kafka://127.0.0.1:1\nclustering: {engine: sklearn}\n")
    done = murmur("doctor")
    assert done.code == 1
    assert "kafka://127.0.0.1:1" in done.out


def test_the_suggested_commands_of_a_run_work_as_they_are_pasted(finished: Path, tones: Path) -> None:
    murmur = Path(sys.executable).with_name("murmur")
    link = finished / "bin" / "murmur"
    link.parent.mkdir(exist_ok=True)
    if not link.exists():
        link.symlink_to(murmur)
    said = subprocess.run(
        ["bin/murmur", "run", tones, "--engine", "sklearn"], cwd=finished, check=True, capture_output=True, text=True
    ).stdout
    suggested = [line.strip() for line in said.partition("Try next:")[2].splitlines() if line.strip()]
    assert len(suggested) == 3
    for line in suggested:
        done = subprocess.run(line, shell=True, cwd=finished, check=False, capture_output=True, text=True)
        assert done.returncode == 0, (line, done.stderr)
        assert done.stdout
