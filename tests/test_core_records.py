"""The records: one JSON form, never NaN, later versions readable."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import RecordError
from core.records import Assignment, Failure, LedgerEntry, Member, Run, Source, Track, next_rev

TEXT = st.text(st.characters(exclude_categories=("Cs",)))
FLOATS = st.floats(allow_nan=False, allow_infinity=False, width=32)
SOURCE = st.builds(
    Source, path=TEXT, size=st.integers(0, 2**62), mtime_ns=st.integers(0, 2**62), digest=TEXT, codec=TEXT,
    sample_rate=st.integers(1, 400_000), channels=st.integers(1, 64), decoder=TEXT, librosa=TEXT,
)  # fmt: skip
FEATURES = st.dictionaries(
    st.text(string.ascii_lowercase, min_size=1), st.dictionaries(TEXT, st.lists(FLOATS, max_size=4), max_size=2)
)
TRACK = st.builds(
    Track, track_id=TEXT.filter(bool), title=st.none() | TEXT, year=st.none() | st.integers(-9999, 9999),
    duration=FLOATS, extra=st.dictionaries(TEXT, TEXT, max_size=3), source=SOURCE, feature_set=TEXT,
    features=FEATURES, flags=st.lists(TEXT, max_size=2), rev=st.integers(0, 2**63 - 1),
)  # fmt: skip


@given(TRACK)
def test_a_track_survives_its_json_form(track: Track) -> None:
    assert Track.from_json(track.to_json()) == track


@given(TRACK)
def test_an_added_field_is_ignored(track: Track) -> None:
    assert Track.from_json(b'{"a_later_field": {"x": [1]}, ' + track.to_json()[1:]) == track


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "JSON"),
        (b"\xff\xfe", "JSON"),
        (b"[]", "Failure"),
        (b'{"path": "p"}', "rev"),
        (b'{"rev": "x"}', "Failure"),
    ],
)
def test_bytes_that_do_not_fit_are_a_record_error_of_one_line(data: bytes, words: str) -> None:
    with pytest.raises(RecordError, match=words) as caught:
        Failure.from_json(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [b"NaN", b"Infinity", b"-Infinity", b"null", b'"x"'])
def test_a_feature_is_a_finite_number(value: bytes) -> None:
    with pytest.raises(RecordError):
        Assignment.from_json(
            b'{"run_id":"r","track_id":"t","track_rev":1,"cluster_id":"c01","distance":%b,"score":1,'
            b'"neighbours":[],"rev":1}' % value
        )


def test_a_rev_beyond_64_bits_is_refused() -> None:
    with pytest.raises(RecordError, match="rev"):
        Failure.from_document({"rev": 2**63, "path": "", "path_digest": "", "stage": "", "error": "", "message": ""})


def test_a_rev_is_above_the_last_one_and_follows_the_clock() -> None:
    first = next_rev()
    assert next_rev(first) > first
    assert next_rev(first + 10**15) == first + 10**15 + 1


def test_every_record_names_its_collection_and_values_carry_none() -> None:
    assert len({kind.collection for kind in (Track, Failure, Run, Assignment)}) == 4
    assert not any(hasattr(kind, "collection") for kind in (Member, LedgerEntry))
