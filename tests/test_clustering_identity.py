"""Cluster ids: kept from run to run, never given twice; and what became of the clusters before."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustering.identity import identify, trace
from clustering.members import Former, recall
from core.records import Lineage


def known(former: str) -> Former:
    """Return what is known of each track: the old cluster's number, ``.`` for a new track."""
    names = [f"t{i}" for i in range(len(former))]
    return recall(names, {name: f"c{int(old):02d}" for name, old in zip(names, former, strict=True) if old != "."})


def numbers(labels: str) -> np.ndarray:
    return np.array([int(label) for label in labels])


def ids(labels: str, former: str = "", highest: int = 0, gaps: list[list[float]] | None = None) -> list[str]:
    """Return the ids for labels such as ``"0012"``; all centres are equally far away unless `gaps` are given."""
    past, new = known(former or "." * len(labels)), numbers(labels)
    return identify(past, new, np.array(gaps or np.ones((len(past.ids), new.max() + 1))), highest)


def lineage(labels: str, former: str, names: list[str]) -> Lineage:
    return trace(known(former), numbers(labels), names, "the run before")


def test_the_first_run_numbers_its_clusters_by_size() -> None:
    assert ids("0122201") == ["c02", "c03", "c01"]


def test_equally_large_clusters_are_numbered_in_order() -> None:
    assert ids("1100") == ["c01", "c02"]


def test_relabelled_clusters_keep_their_ids() -> None:
    assert ids("2200011", "1133322", 3) == ["c03", "c02", "c01"]


def test_a_cluster_that_is_split_leaves_its_id_to_the_larger_part() -> None:
    assert ids("000112", "111113", 3) == ["c01", "c04", "c03"]


def test_of_clusters_that_merge_the_one_with_more_members_gives_the_id() -> None:
    assert ids("00000", "11222", 2) == ["c02"]


def test_the_ids_are_given_so_that_most_tracks_keep_theirs() -> None:
    """Both parts of c01 could have its id; the one with c02's track takes that, so that 3 tracks keep theirs."""
    assert ids("00011", "11211", 2) == ["c02", "c01"]


@pytest.mark.parametrize(("gaps", "given"), [([[1.0, 2]], ["c01", "c02"]), ([[2.0, 1]], ["c02", "c01"])])
def test_of_parts_that_are_equally_large_the_nearer_one_has_the_id(gaps: list[list[float]], given: list[str]) -> None:
    assert ids("0011", "1111", 1, gaps) == given


def test_one_more_track_weighs_more_than_any_distance() -> None:
    assert ids("00011", "11111", 1, [[1e9, 0]]) == ["c01", "c02"]


@pytest.mark.parametrize(("labels", "lives"), [("0012", True), ("001234", False)])
def test_a_cluster_lives_on_where_at_least_half_of_its_members_stay_together(labels: str, lives: bool) -> None:
    assert ("c01" in ids(labels, "1" * len(labels), 1)) == lives


def test_members_that_are_gone_and_tracks_that_are_new_do_not_end_a_cluster() -> None:
    """One of 3 members is left, among 3 new tracks."""
    past = recall(["t0", "n1", "n2", "n3"], {"t0": "c01", "t1": "c01", "t2": "c01"})
    assert identify(past, np.zeros(4, dtype=int), np.zeros((1, 1)), 1) == ["c01"]


def test_a_cluster_of_new_tracks_gets_an_id_that_no_run_ever_had() -> None:
    assert ids("000111", "111...", 9) == ["c01", "c10"]


def test_a_cluster_that_shares_no_track_is_new_even_if_an_old_one_is_free() -> None:
    assert ids("011", "1..", 2) == ["c01", "c03"]


def test_ids_have_two_digits_or_as_many_as_they_need() -> None:
    assert ids("0", "", 8) == ["c09"]
    assert ids("0", "", 99) == ["c100"]


@settings(deadline=None)
@given(old=st.lists(st.integers(-1, 4), min_size=1, max_size=30), seed=st.integers(0, 1000))
def test_permuting_tracks_changes_neither_ids_nor_lineage(old: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.unique(rng.integers(0, 4, size=len(old)), return_inverse=True)[1]
    names = [f"c{number + 1:02d}" for number in range(5)]
    outcomes = []
    for order in (np.arange(len(old)), rng.permutation(len(old))):
        past = recall([f"t{i}" for i in order], {f"t{i}": names[label] for i, label in enumerate(old) if label >= 0})
        gaps = np.add.outer(np.arange(len(past.ids)), np.arange(labels.max() + 1)).astype(float)
        found = identify(past, labels[order], gaps, 5)
        outcomes.append((found, trace(past, labels[order], found, None)))
    assert outcomes[0] == outcomes[1]


def test_a_first_run_has_births_alone() -> None:
    found = lineage("00122", ".....", ["c01", "c03", "c02"])
    assert found == Lineage(former="the run before", births=["c01", "c02", "c03"], joined=5)


def test_tracks_that_stayed_moved_joined_and_left_are_counted() -> None:
    past = recall(["a", "b", "c", "d"], {"a": "c01", "b": "c01", "c": "c02", "gone": "c02", "gone too": "c01"})
    found = trace(past, np.array([0, 1, 1, 1]), ["c01", "c02"], "before")
    assert (found.stayed, found.moved, found.joined, found.left) == (2, 1, 1, 2)


def test_a_split_says_which_clusters_have_how_many_of_the_members() -> None:
    """One in ten went to c02, which is no part worth the name."""
    found = lineage("0000011112" + "222", "1111111111" + "222", ["c01", "c03", "c02"])
    assert found.splits == {"c01": {"c01": 5, "c03": 4}}
    assert (found.births, found.deaths, found.merges, found.moved) == (["c03"], [], {}, 5)


def test_a_merge_says_which_clusters_gave_how_many_and_the_dead_one_names_its_successor() -> None:
    found = lineage("00000011", "11122233", ["c01", "c03"])
    assert found.merges == {"c01": {"c01": 3, "c02": 3}}
    assert (found.deaths, found.successors, found.splits) == (["c02"], {"c02": {"c01": 3}}, {})


def test_a_cluster_that_scatters_names_all_that_took_its_members_the_most_first() -> None:
    found = lineage("0112220011222", "1111112233333", ["c02", "c04", "c03"])
    assert found.deaths == ["c01"]
    assert list(found.successors["c01"].items()) == [("c03", 3), ("c04", 2), ("c02", 1)]


def test_a_cluster_of_which_no_track_is_left_is_dead_without_a_successor() -> None:
    past = recall(["a"], {"a": "c01", "b": "c02"})
    found = trace(past, np.array([0]), ["c01"], "before")
    assert (found.deaths, found.successors, found.left) == (["c02"], {"c02": {}}, 1)
