from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from etl_library import CONFIG, NAMES, Library, tone

import features
from core.config import Config, parse_config
from core.errors import ConfigError
from core.jobs import Progress
from core.names import path_digest, path_text
from core.records import Track
from etl import extract
from etl.work import Work

CSV = """\
filename,title,genre,mood
high.ogg,High,Whistle,bright
low.wav,Low,Hum,dark
nowhere.mp3,Nobody,,
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Library, Path]:
    """Return a library after its first extraction, and a copy of it; nothing is loaded."""
    library, copy = Library(tmp_path_factory.mktemp("library")), tmp_path_factory.mktemp("saved") / "copy"
    tone(library.audio / "low.wav", 110, title="Tag", artist="Ann", date="1999-12-31")
    tone(library.audio / "high.ogg", 3000)
    tone(library.audio / "sub" / "mid.flac", 440, title="Middle", genre="Organ")
    tone(library.audio / "voice.mp3", 660)
    shutil.copy(library.audio / "high.ogg", library.audio / "sub" / "high again.ogg")
    library.csv.write_text(CSV)
    library.extract()
    library.save(copy)
    return library, copy


@pytest.fixture
def extracted(saved: tuple[Library, Path]) -> Library:
    library, copy = saved
    library.restore(copy)
    return library


@pytest.fixture(params=["loaded", "load never started"])
def known(request: pytest.FixtureRequest, extracted: Library) -> Library:
    """Return the library with what is known in the store, and with it on the bus alone."""
    if request.param == "loaded":
        extracted.load()
    return extracted


def test_every_recording_is_sent_once_with_metadata_features_and_source(extracted: Library) -> None:
    sent = extracted.sent()
    assert sorted(sent) == ["high.ogg", "low.wav", "mid.flac", "voice.mp3"]
    low = sent["low.wav"]
    assert low
    assert (low.title, low.artist, low.genre, low.year, low.extra) == ("Low", "Ann", "Hum", 1999, {"mood": "dark"})
    assert low.track_id == low.source.digest
    path = extracted.audio / "low.wav"
    computed = features.compute(path)
    assert (low.flags, low.duration) == (computed.flags, computed.duration)
    for block, statistics in computed.features.items():
        for name, values in statistics.items():  # a worker's linear algebra has one thread: the last digit may differ
            assert low.features[block][name] == pytest.approx(values, rel=1e-4, abs=1e-4)
    assert (low.source.path, low.source.size, low.source.mtime_ns) == (
        str(path),
        path.stat().st_size,
        path.stat().st_mtime_ns,
    )
    assert (low.source.codec, low.source.sample_rate, low.source.channels) == ("pcm_16", 22_050, 1)
    assert low.feature_set == CONFIG.feature_set


def test_tags_fill_the_gaps_of_a_file_without_a_row(extracted: Library) -> None:
    mid = extracted.sent()["mid.flac"]
    assert mid
    assert (mid.title, mid.genre, mid.extra, mid.source.row_digest) == ("Middle", "Organ", {}, None)


def test_an_exact_copy_is_a_copy_and_not_a_track(extracted: Library) -> None:
    high = extracted.sent()["high.ogg"]
    assert high
    assert [copy.path for copy in high.copies] == [str(extracted.audio / "sub" / "high again.ogg")]


def test_messages_carry_their_record_in_the_headers(extracted: Library) -> None:
    for message in extracted.messages():
        track = Track.from_json(message.value or b"")
        assert message.key == track.track_id.encode()
        assert message.header("ce_type") == "murmuration.Track.v1"
        assert message.header("rev") == str(track.rev)
        assert message.header("feature_set") == track.feature_set


def test_what_the_first_run_did_is_counted(tmp_path: Path) -> None:
    library = Library(tmp_path)
    tone(library.audio / "a.wav", 440)
    shutil.copy(library.audio / "a.wav", library.audio / "b.wav")
    (library.audio / "empty.mp3").touch()
    library.csv.write_text("filename\na.wav\na.wav\nc.wav\n")
    seen: list[Progress] = []
    report = library.extract(progress=seen.append)
    assert (report.read, report.tried, report.computed, report.copies) == (3, 3, 1, 1)
    assert (report.failed, report.sent, report.unchanged) == (1, 2, 0)
    assert (report.rows_without_file, report.files_without_row, report.repeated_rows) == (1, 2, 1)
    assert [progress.done for progress in seen if progress.stage == "identify"] == [0, 1, 2, 3]
    assert seen[-1] == Progress("extract", 1, 1, failed=1)


def test_the_second_run_computes_and_sends_nothing(known: Library) -> None:
    report = known.extract()
    assert (report.read, report.unchanged, report.tried, report.computed, report.sent) == (5, 5, 0, 0, 0)


def test_a_changed_row_is_sent_with_the_stored_features_and_a_higher_rev(known: Library) -> None:
    before = known.sent()
    known.csv.write_text(CSV.replace("Hum", "Drone"))
    report = known.extract()
    assert (report.computed, report.sent, report.unchanged) == (0, 1, 4)
    low, was = known.sent()["low.wav"], before["low.wav"]
    assert low
    assert was
    assert low.rev > was.rev
    assert low.source.row_digest != was.source.row_digest
    unchanged = {"rev": low.rev, "genre": "Drone", "source": low.source}
    assert low == was.model_copy(update=unchanged)
    assert known.extract().sent == 0


def test_a_retagged_file_is_sent_with_the_stored_features(known: Library) -> None:
    before = known.sent()["mid.flac"]
    tone(known.audio / "sub" / "mid.flac", 440, title="New name", genre="Organ")
    report = known.extract()
    assert (report.computed, report.sent) == (0, 1)
    mid = known.sent()["mid.flac"]
    assert mid
    assert before
    assert mid == before.model_copy(update={"title": "New name", "rev": mid.rev, "source": mid.source})
    assert mid.source.digest == before.source.digest
    assert mid.rev > before.rev


def test_a_moved_file_keeps_its_track(known: Library) -> None:
    before = known.sent()["voice.mp3"]
    (known.audio / "voice.mp3").rename(known.audio / "renamed.mp3")
    report = known.extract()
    assert (report.computed, report.sent, report.deleted, report.gone) == (0, 1, 0, 0)
    moved = known.sent()["renamed.mp3"]
    assert moved
    assert before
    assert (moved.track_id, moved.features) == (before.track_id, before.features)


def test_a_new_copy_is_added_without_computing(known: Library) -> None:
    shutil.copy(known.audio / "voice.mp3", known.audio / "a voice.mp3")
    report = known.extract()
    assert (report.computed, report.sent, report.copies) == (0, 1, 2)
    voice = known.sent()["a voice.mp3"]
    assert voice
    assert [copy.path for copy in voice.copies] == [str(known.audio / "voice.mp3")]
    assert known.extract().tried == 0


def test_replaced_audio_is_a_new_track_and_a_tombstone_with_its_rev(known: Library) -> None:
    before = known.sent()["voice.mp3"]
    assert before
    tone(known.audio / "voice.mp3", 2000)
    report = known.extract()
    assert (report.computed, report.deleted, report.sent) == (1, 1, 2)
    *_, tombstone = known.messages()
    assert (tombstone.key, tombstone.value) == (before.track_id.encode(), None)
    assert int(tombstone.header("rev") or 0) > before.rev
    known.load()
    assert known.stored()["voice.mp3"].track_id != before.track_id
    assert len(known.stored()) == 4
    assert known.extract().sent == 0


def test_ids_of_a_catalogue_take_over_features_and_end_the_old_ids(known: Library) -> None:
    before = known.sent()
    known.csv.write_text("filename,id\nlow.wav,7\n")
    report = known.extract()
    assert (report.computed, report.deleted) == (0, 1)
    low, was = known.sent()["low.wav"], before["low.wav"]
    assert low
    assert was
    assert (low.track_id, low.features, low.title) == ("tracks:7", was.features, "Tag")
    assert known.extract().sent == 0


def test_without_the_catalogue_what_it_said_stays(known: Library) -> None:
    before = known.sent()["low.wav"]
    assert before
    assert before.source.row_digest
    report = known.extract(catalogue=False)
    assert (report.unchanged, report.sent, report.rows_without_file, report.files_without_row) == (5, 0, 0, 0)
    (known.audio / "low.wav").rename(known.audio / "moved.wav")
    coarser = CONFIG.model_copy(update={"audio": CONFIG.audio.model_copy(update={"sample_rate": 16_000})})
    for config, computed in ((CONFIG, 0), (coarser, 4)):
        assert known.extract(config, catalogue=False).computed == computed
        moved = known.sent()["moved.wav"]
        assert moved
        said = (before.track_id, before.title, before.extra, before.source.row_digest)
        assert (moved.track_id, moved.title, moved.extra, moved.source.row_digest) == said


def test_other_feature_settings_compute_everything_again(extracted: Library) -> None:
    config = CONFIG.model_copy(update={"audio": CONFIG.audio.model_copy(update={"sample_rate": 16_000})})
    report = extracted.extract(config)
    assert (report.computed, report.sent) == (4, 4)
    assert {track.feature_set for track in extracted.sent().values() if track} == {config.feature_set}


def test_files_that_are_gone_are_counted_and_kept(extracted: Library) -> None:
    (extracted.audio / "voice.mp3").unlink()
    report = extracted.extract()
    assert (report.gone, report.sent) == (1, 0)


def test_pruning_sends_exactly_the_tombstones_of_tracks_without_any_file(known: Library) -> None:
    """A copy that is left, wherever, a folder that is empty and a file that is no longer looked for keep a track."""
    elsewhere = known.folder / "elsewhere"
    tone(elsewhere / "low.wav", 110, title="Tag", artist="Ann", date="1999-12-31")
    tone(known.audio / "nas" / "unmounted.wav", 880)
    tone(known.audio / "other.aiff", 990)
    library = Library(known.folder)
    library.extract()
    with library.opened() as (store, bus):
        extract.run(CONFIG, elsewhere, store=store, bus=bus)
    before = library.sent()
    for name in ("voice.mp3", "high.ogg", "low.wav", "nas/unmounted.wav"):
        (known.audio / name).unlink()
    without_aiff = CONFIG.model_copy(
        update={"audio": CONFIG.audio.model_copy(update={"extensions": (".flac", ".ogg")})}
    )
    report = library.extract(without_aiff, prune=True)
    assert (report.gone, report.pruned, report.deleted, report.unseen, report.sent) == (1, 1, 0, 1, 2)
    voice = before["voice.mp3"]
    assert voice
    messages = {(message.key or b"").decode(): message for message in library.messages()}
    assert [key for key, message in messages.items() if message.value is None] == [voice.track_id]
    assert int(messages[voice.track_id].header("rev") or 0) > voice.rev
    assert library.extract(without_aiff, prune=True).sent == 0
    library.load()
    assert sorted(library.stored()) == ["high again.ogg", "low.wav", "mid.flac", "other.aiff", "unmounted.wav"]


def test_bad_files_become_failures_and_the_rest_is_done(extracted: Library) -> None:
    (extracted.audio / "empty.mp3").touch()
    (extracted.audio / "text.mp3").write_text("this is not audio\n" * 50)
    voice = (extracted.audio / "voice.mp3").read_bytes()
    (extracted.audio / "truncated.mp3").write_bytes(voice[: len(voice) // 2])
    tone(extracted.audio / "good.wav", 550)
    report = extracted.extract()
    assert (report.failed, report.tried, report.computed) == (2, 4, 2)
    assert {"good.wav", "truncated.mp3"} <= extracted.sent().keys()
    failures = extracted.failures_sent()
    assert sorted(failures) == ["empty.mp3", "text.mp3"]
    empty, text = failures["empty.mp3"], failures["text.mp3"]
    assert empty
    assert text
    assert (empty.stage, empty.error, empty.message, empty.attempts) == ("read", "AudioError", "the file is empty", 1)
    assert empty.advice
    assert (text.stage, text.advice != "") == ("decode", True)


def test_a_failure_is_known_until_it_changes_and_mended_by_a_success(extracted: Library) -> None:
    bad = extracted.audio / "bad.wav"
    bad.touch()
    extracted.extract()
    seen: list[Progress] = []
    again = extracted.extract(progress=seen.append)
    assert (again.failed, again.known_failures, again.tried, again.sent) == (0, 1, 0, 0)
    assert seen == []
    bad.write_text("no audio")
    other = extracted.extract()
    assert (other.failed, other.known_failures) == (1, 0)
    failure = extracted.failures_sent()["bad.wav"]
    assert failure
    assert (failure.attempts, failure.stage) == (2, "decode")
    tone(bad, 880)
    mended = extracted.extract()
    assert (mended.failed, mended.computed, mended.sent) == (0, 1, 2)
    *_, tombstone = extracted.messages(NAMES.failed)
    assert (tombstone.key, tombstone.value) == (path_digest(bad).encode(), None)
    assert int(tombstone.header("rev") or 0) > failure.rev
    assert extracted.extract().sent == 0


def test_a_failure_of_a_deleted_file_is_over(extracted: Library) -> None:
    bad = extracted.audio / "bad.wav"
    bad.touch()
    extracted.extract()
    bad.unlink()
    assert extracted.extract().sent == 1
    assert extracted.failures_sent() == {path_digest(bad): None}


def test_a_failure_stays_while_its_folder_is_unmounted_and_is_over_when_its_file_is_no_longer_looked_for(
    extracted: Library,
) -> None:
    away, other = extracted.audio / "nas" / "bad.wav", extracted.audio / "bad.wma"
    away.parent.mkdir()
    away.touch()
    other.touch()
    assert extracted.extract().failed == 2
    away.unlink()
    assert extracted.extract().sent == 0
    audio = CONFIG.audio.model_copy(update={"extensions": (".wav", ".ogg", ".flac", ".mp3")})
    assert extracted.extract(CONFIG.model_copy(update={"audio": audio})).sent == 1
    failures = extracted.failures_sent()
    assert failures["bad.wav"]
    assert failures[path_digest(other)] is None


def test_a_track_stays_while_its_file_cannot_be_read(extracted: Library) -> None:
    (extracted.audio / "voice.mp3").write_text("damaged")
    report = extracted.extract()
    assert (report.failed, report.deleted, report.sent) == (1, 0, 1)
    assert extracted.sent()["voice.mp3"]
    again = extracted.extract(prune=True)
    assert (again.known_failures, again.tried, again.gone, again.sent) == (1, 0, 0, 0)


def test_a_name_that_is_not_utf8_is_extracted_and_unchanged_the_next_time(tmp_path: Path) -> None:
    library = Library(tmp_path)
    tone(library.audio / "a.wav", 440, title="Umlaut")
    name = os.fsdecode(b"\xe4.wav")
    (library.audio / "a.wav").rename(library.audio / name)
    assert library.extract().computed == 1
    track = library.sent()["%E4.wav"]
    assert track
    assert (track.title, track.source.path) == ("Umlaut", path_text(library.audio / name))
    assert library.extract().sent == 0


def test_one_recording_under_two_ids_is_computed_once(tmp_path: Path) -> None:
    library = Library(tmp_path)
    tone(library.audio / "1.wav", 440)
    shutil.copy(library.audio / "1.wav", library.audio / "2.wav")
    library.csv.write_text("id,title\n1,First\n2,Second\n")
    report = library.extract()
    assert (report.computed, report.sent, report.copies) == (1, 2, 0)
    first, second = library.sent()["1.wav"], library.sent()["2.wav"]
    assert first
    assert second
    assert (first.track_id, first.title, second.track_id, second.title) == ("tracks:1", "First", "tracks:2", "Second")
    assert first.features == second.features


def test_the_longest_is_computed_first_and_of_too_long_a_file_the_middle(tmp_path: Path) -> None:
    library = Library(tmp_path, parse_config({"workers": 1, "audio": {"max_duration": 2}}))
    for name, seconds in {"a.wav": 1.0, "b.flac": 3.0, "c.ogg": 1.5}.items():
        tone(library.audio / name, 440, seconds=seconds)
    library.extract()
    tracks = [Track.from_json(message.value or b"") for message in library.messages()]
    assert [track.duration for track in tracks] == [3.0, 1.5, 1.0]
    assert [track.flags for track in tracks] == [["no_rhythm", "excerpt"], ["no_rhythm"], ["no_rhythm"]]
    assert tracks[0].feature_set == library.config.feature_set != CONFIG.feature_set


def test_a_file_that_needs_too_much_memory_fails_until_there_is_more_of_it(tmp_path: Path) -> None:
    library = Library(tmp_path)
    tone(library.audio / "long.flac", 440, seconds=200)
    assert library.extract(parse_config({"workers": 1, "memory": "512MiB"})).failed == 1
    failure = library.failures_sent()["long.flac"]
    assert failure
    assert failure.message == "needs about 118 MiB of memory where 112 MiB are left for it"
    assert "`memory`" in failure.advice
    assert "`audio.max_duration`" in failure.advice
    assert library.extract(parse_config({"workers": 1, "memory": "1GiB"})).failed == 0
    assert library.failures_sent() == {path_digest(failure.path): None}


def die_on_killer(work: Work) -> list[Track]:
    if work.drafts[0].file.path.endswith("killer.wav"):
        os.kill(os.getpid(), signal.SIGSEGV)
    return DESCRIBE(work)


DESCRIBE = extract.describe


def test_a_decoder_that_kills_its_process_is_blamed_on_its_file(
    extracted: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And on its copy, so that the next run tries neither; once a retry is asked for and it works, it is mended."""
    for number, name in enumerate(["a.wav", "killer.wav", "z.wav"]):
        tone(extracted.audio / name, 500 + 50 * number)
    shutil.copy(extracted.audio / "killer.wav", extracted.audio / "the same killer.wav")
    with monkeypatch.context() as patch:
        patch.setattr(extract, "describe", die_on_killer)
        report = extracted.extract(Config(workers=2))
    assert (report.computed, report.tried, report.failed) == (2, 4, 2)
    failure = extracted.failures_sent()["killer.wav"]
    assert failure
    assert (failure.error, failure.message) == ("WorkerDied", "its worker process died: Segmentation fault")
    assert {"a.wav", "z.wav"} <= extracted.sent().keys()
    again = extracted.extract()
    assert (again.known_failures, again.tried, again.sent) == (2, 0, 0)
    extracted.load()
    assert extracted.retry("killer").sent == 2
    mended = extracted.extract()
    assert (mended.computed, mended.failed, mended.sent) == (1, 0, 3)
    assert {failure for failure in extracted.failures_sent().values() if failure} == set()
    assert extracted.sent()["killer.wav"]


def test_what_was_finished_before_ctrl_c_is_sent_and_the_next_run_does_the_rest(extracted: Library) -> None:
    for number in range(3):
        tone(extracted.audio / f"new {number}.wav", 700 + 50 * number)

    def interrupt(progress: Progress) -> None:
        if progress.stage == "extract" and progress.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extracted.extract(progress=interrupt)
    assert "new 0.wav" in extracted.sent()
    assert extracted.extract().computed == 2


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from etl_library import Library
from etl import outbox
outbox.FLUSH_SECONDS = 0.0
def kill(progress):
    if progress.stage == "extract" and progress.done == 2:
        os.kill(os.getpid(), signal.SIGKILL)
if __name__ == "__main__":
    Library(Path({folder!r})).extract(progress=kill)
"""


def test_killed_half_way_with_nothing_loaded_the_next_run_computes_only_what_is_missing(extracted: Library) -> None:
    for number in range(5):
        tone(extracted.audio / f"new {number}.wav", 700 + 50 * number)
    script = extracted.folder / "killed.py"
    script.write_text(KILLED.format(tests=str(Path(__file__).parent), folder=str(extracted.folder)))
    killed = subprocess.run([sys.executable, script], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert {name for name in extracted.sent() if name.startswith("new")} == {"new 0.wav", "new 1.wav"}
    report = extracted.extract()
    assert (report.computed, report.sent) == (3, 3)
    assert extracted.load().written == 9
    assert len(extracted.stored()) == 9


def test_garbage_on_the_topics_is_not_taken_for_knowledge(extracted: Library) -> None:
    with extracted.opened() as (_, bus):
        producer = bus.producer()
        for key in [message.key for message in extracted.messages()]:
            producer.send(NAMES.tracks, key, b"poison")
        producer.flush()
    assert extracted.extract().computed == 4


def test_a_missing_folder_and_a_catalogue_that_cannot_serve_stop_before_anything_is_sent(extracted: Library) -> None:
    extracted.csv.write_bytes("filename,title\nlow.wav,Caf\u00e9\n".encode("latin-1"))
    with pytest.raises(ConfigError, match="line 2 is not UTF-8"):
        extracted.extract()
    shutil.rmtree(extracted.audio)
    with pytest.raises(ConfigError, match="no such folder"):
        extracted.extract()
    assert len(extracted.messages()) == 4
