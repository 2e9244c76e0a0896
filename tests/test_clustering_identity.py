"""Cluster ids: kept from run to run, never given twice."""

from __future__ import annotations

import numpy as np

from clustering.identity import identify


def ids(labels: str, former: str = "", highest: int = 0) -> list[str]:
    """Return the ids for labels such as ``"0012"``; `former` has the old cluster's number, ``.`` for a new track."""
    names = [f"t{i}" for i in range(len(labels))]
    known = {name: f"c{int(old):02d}" for name, old in zip(names, former, strict=False) if old != "."}
    return identify(names, np.array([int(label) for label in labels]), known, highest)


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
    """Cluster 0 shares 3 with c01 and 2 with c02, cluster 1 shares 2 with c01 only: 0 takes c02, and 4 keep theirs."""
    assert ids("0000011", "1112211", 2) == ["c02", "c01"]


def test_a_cluster_of_new_tracks_gets_an_id_that_no_run_ever_had() -> None:
    assert ids("000111", "111...", 9) == ["c01", "c10"]


def test_a_cluster_that_shares_no_track_is_new_even_if_an_old_one_is_free() -> None:
    assert ids("011", "1..", 2) == ["c01", "c03"]


def test_ids_have_two_digits_or_as_many_as_they_need() -> None:
    assert ids("0", "", 8) == ["c09"]
    assert ids("0", "", 99) == ["c100"]
