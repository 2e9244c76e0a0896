"""The configuration: its file, its defaults, and what it says of a mistake."""

import traceback
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.config import Config, Topics, load_config, parse_config
from core.errors import ConfigError
from core.names import Names

ROOT = Path(__file__).parent.parent


def group(timbre: dict[str, Any], rhythm: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"clustering": {"groups": {"timbre": timbre, "rhythm": rhythm or {}}}}


def test_the_documented_file_holds_every_key_with_its_default() -> None:
    tree = yaml.safe_load((ROOT / "config.yaml").read_text("utf-8"))
    assert parse_config(tree) == Config()
    assert _keys(tree) == _keys(Config().model_dump())


def test_without_a_file_everything_is_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config() == Config()


def test_a_section_without_keys_is_default(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("spark:\n  # master: yarn\nworkers: 3\n")
    assert load_config(tmp_path / "config.yaml") == parse_config({"workers": 3})


def test_a_store_and_a_bus_may_be_bare_urls() -> None:
    config = parse_config({"store": "mongodb://h/music", "bus": "kafka://h:9092"})
    assert (config.store.url, config.bus.url) == ("mongodb://h/music", "kafka://h:9092")


def test_a_profile_may_be_a_bare_name() -> None:
    assert parse_config({"features": {"profiles": "fma"}}) == parse_config({"features": {"profiles": ["fma"]}})


@pytest.mark.parametrize("n_clusters", [None, 1, "auto"])
def test_a_number_of_clusters_is_given_chosen_or_left_to_the_rule(n_clusters: int | str | None) -> None:
    assert parse_config({"clustering": {"n_clusters": n_clusters}}).clustering.n_clusters == n_clusters


def test_a_group_keeps_what_is_not_said_of_it() -> None:
    groups = parse_config({"clustering": {"groups": {"rhythm": {"weight": 0.25}}}}).clustering.groups
    assert groups.rhythm == Config().clustering.groups.rhythm.model_copy(update={"weight": 0.25})
    assert groups.timbre == Config().clustering.groups.timbre


def test_topics_are_declared_with_the_configured_partitions_and_the_one_of_the_runs_with_one() -> None:
    topics = Topics(prefix="a.", partitions=3, replication=2)
    declared = {topic.name: topic for topic in (*topics.of_tracks(), *topics.of_clusters(["c01"]))}
    names = Names("a.")
    assert [name for name, topic in declared.items() if topic.cleanup == "delete"] == [names.dead_letters]
    assert [name for name, topic in declared.items() if topic.partitions == 1] == [names.runs]
    assert [name for name, topic in declared.items() if topic.is_wide] == [names.spaces]
    assert {topic.partitions for topic in declared.values()} == {1, 3}
    assert {topic.replication for topic in declared.values()} == {2}
    assert declared.keys() == {
        names.tracks, names.failed, names.dead_letters, names.members, names.runs, names.spaces,
        names.cluster("c01"),
    }  # fmt: skip


def test_variables_are_expanded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PASSWORD", "a$HOME")
    assert parse_config({"store": "mongodb://u:${PASSWORD}@h/music"}).store.url == "mongodb://u:a$HOME@h/music"


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"clusterin": {}}, ["clusterin", "did you mean 'clustering'"]),
        ({"clustering": {"n_cluster": 3}}, ["clustering.n_cluster", "did you mean 'n_clusters'"]),
        ({"store": {"deleted_retention": 14}}, ["store.deleted_retention", "14", "greater"]),
        (
            {"clustering": {"n_clusters": "many"}},
            ["clustering.n_clusters: 'many' is not valid: write a whole number", "auto"],
        ),
        ({"clustering": {"n_clusters": 0}}, ["clustering.n_clusters: 0 is not valid", "from 1 on"]),
        ({"audio": {"sample_rate": 8000}}, ["audio.sample_rate", "8000", "16000"]),
        ({"topics": {"prefix": "a b"}}, ["topics.prefix", "'a b'"]),
        ({"max_failures": 2}, ["max_failures", "2", "less than or equal to 1"]),
        ({"spark": {"master": "$NO_SUCH_NAME"}}, ["NO_SUCH_NAME", "environment"]),
        ({"store": {"url": ["mongodb://u:secret@h"]}}, ["store.url"]),
        ({"memory": 1000}, ["memory: 1000 is not valid: write 512MiB or more"]),
        ({"memory": "511MiB"}, ["memory: '511MiB'", "512MiB"]),
        ({"features": {"profiles": []}}, ["features.profiles: an empty list is not valid: write [default]"]),
        ({"features": {"profiles": "fmq"}}, ["features.profiles", "'fmq'", "'fma'"]),
        ({"clustering": {"groups": {"rythm": {}}}}, ["clustering.groups.rythm", "did you mean 'rhythm'"]),
        ({"clustering": {"groups": {"rhythm": {"wait": 1}}}}, ["clustering.groups.rhythm.wait", "'weight'"]),
        (group({"weight": -1}), ["clustering.groups.timbre.weight", "-1", "greater than or equal to 0"]),
        (group({"clip": 0}), ["clustering.groups.timbre.clip", "0", "greater than 0"]),
        (group({"components": 0}), ["clustering.groups.timbre.components", "0", "greater than or equal to 1"]),
        (group({"blocks": ["mfcc", "mfc"]}), ["clustering.groups.timbre.blocks", "'mfc' is no block", "mfcc_delta"]),
        (group({"blocks": ["mfcc", "mfcc"]}), ["clustering.groups.timbre.blocks", "each once"]),
        (group({"blocks": []}), ["clustering.groups.timbre.blocks", "at least one block"]),
        (group({"weight": 0}, {"weight": 0}), ["clustering.groups", "one of the groups a weight above 0"]),
    ],
)
def test_a_mistake_is_one_line_with_its_key_and_value(tree: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(tree)
    assert "\n" not in str(caught.value)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    "text",
    [
        "store: {url: ['mongodb://u:secret@h']}",
        "stor: mongodb://u:secret@h",
        "workers: u:secret@h",
        "store: mongodb://u:secret@h/music: x",
        "store: 'mongodb://u:secret@h",
    ],
)
def test_a_password_is_printed_neither_by_an_error_nor_by_its_traceback(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "config.yaml")
    assert "secret" not in "".join(traceback.format_exception(caught.value))
    assert "secret" not in repr(parse_config({"store": "mongodb://u:secret@h"}))


def test_a_line_that_is_no_yaml_is_named_by_its_place(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("workers: 2\nstore: a: b\n")
    with pytest.raises(ConfigError, match=r"config\.yaml, line 2, column 9: not YAML: mapping values"):
        load_config(tmp_path / "config.yaml")


@pytest.mark.parametrize("text", ["a: [", "just words", "\t: x", b"a: \xff"])
def test_a_file_that_is_no_yaml_is_one_line(tmp_path: Path, text: str | bytes) -> None:
    file = tmp_path / "config.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=r"config\.yaml") as caught:
        load_config(file)
    assert "\n" not in str(caught.value)


def test_a_named_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--config"):
        load_config(tmp_path / "none.yaml")


def test_the_feature_set_follows_from_what_changes_a_feature() -> None:
    rate = parse_config({"audio": {"sample_rate": 44100}})
    workers = parse_config({"workers": 3, "audio": {"extensions": ["MP3"]}})
    assert rate.feature_set != Config().feature_set == workers.feature_set
    assert workers.audio.extensions == (".mp3",)


def _keys(tree: Any, place: str = "") -> set[str]:
    if not isinstance(tree, dict) or not tree:
        return {place}
    return set().union(*(_keys(value, f"{place}.{key}") for key, value in tree.items()))
