from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from itertools import accumulate
from pathlib import Path

import pytest

import etl.pool
from core.errors import AudioError, MurmurError
from etl.pool import BASE, Task, fitting_workers, run_tasks
from etl.worker import ONE_THREAD, Trouble

MB = 10**6
SLOW = "play it to check; if it plays and the disk was slow, `murmur failures retry`"
CONVERT = "play it to check; if it plays, convert it to WAV or FLAC"


def square(number: int) -> int:
    return number * number


def misbehave(what: str) -> str:
    match what:
        case "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(3)
        case "hang":
            time.sleep(600)
        case "hang in native code":
            busy()
        case "memory":
            raise MemoryError
        case "audio":
            raise AudioError("the file is empty", stage="read", advice="copy it again")
        case "bug":
            raise ValueError("could not\nbroadcast")
    return what


def busy() -> None:
    """Do not return from native code, where no signal is seen to by Python."""
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)


def die_the_first_time(marker: str) -> str:
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def environment(name: str) -> str:
    return os.environ[name]


def die() -> None:
    os._exit(1)


def pid(_: object) -> int:
    return os.getpid()


leaked = []


def leak(megabytes: int) -> int:
    leaked.append(b"x" * (megabytes * MB))
    return os.getpid()


def log_and_wait(place: tuple[str, int]) -> int:
    """Write when a task with so much memory begins and when it ends; lines of an appended file stay whole."""
    log, memory = place
    for line in (f"{memory}\n", f"-{memory}\n"):
        with open(log, "a") as file:  # noqa: PTH123
            file.write(line)
        time.sleep(0.05)
    return memory


def tasks(arguments: Iterable[str], seconds: float = 60.0) -> list[Task[str, str]]:
    return [Task(f"file of {argument}", argument, seconds) for argument in arguments]


def is_alive(pid: int) -> bool:
    with suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def wait_until_dead(pids: Iterable[int]) -> bool:
    deadline = time.monotonic() + 60
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(is_alive, pids))


def test_every_task_comes_back_with_its_result() -> None:
    numbers = [Task(number, number, 60.0) for number in range(50)]
    assert dict(run_tasks(square, numbers, workers=2, stage="read")) == {number: number**2 for number in range(50)}


def test_tasks_are_begun_in_the_order_they_are_given() -> None:
    numbers = [Task(number, number, 60.0) for number in (3, 1, 2)]
    assert [number for number, _ in run_tasks(square, numbers, workers=1, stage="read")] == [3, 1, 2]


def test_without_tasks_no_worker_starts() -> None:
    assert list(run_tasks(square, [], workers=2, stage="read", prepare=die)) == []


def test_what_kills_or_breaks_a_worker_is_blamed_on_its_task_and_the_others_go_on() -> None:
    good = [f"good {number}" for number in range(8)]
    bad = ["segfault", "audio", "killed", "bug", "exit"]
    arguments = [argument for pair in zip(good, [*bad, "last"], strict=False) for argument in pair] + good[6:]
    results = list(run_tasks(misbehave, tasks(arguments), workers=2, stage="describe"))
    assert len(results) == len(arguments)
    memory = "if memory was short, set `workers` or `audio.max_duration` lower; then `murmur failures retry`"
    died = "its worker process died"
    assert dict(results) == {f"file of {name}": name for name in [*good, "last"]} | {
        "file of audio": Trouble("read", "AudioError", "the file is empty", "copy it again"),
        "file of bug": Trouble("describe", "ValueError", "could not broadcast", CONVERT),
        "file of segfault": Trouble("describe", "WorkerDied", f"{died}: Segmentation fault", CONVERT),
        "file of killed": Trouble("describe", "WorkerDied", f"{died}: Killed", memory),
        "file of exit": Trouble("describe", "WorkerDied", f"{died}: exit code 3", CONVERT),
    }


def test_a_task_whose_worker_was_killed_by_chance_is_done_again(tmp_path: Path) -> None:
    marker = str(tmp_path / "marker")
    assert list(run_tasks(die_the_first_time, tasks([marker]), workers=2, stage="read")) == [
        (f"file of {marker}", "done")
    ]


def test_a_task_whose_worker_died_is_done_again_beside_no_other(tmp_path: Path) -> None:
    log = tmp_path / "log"
    work = [Task(number, (str(log), number), 60.0) for number in range(6)]
    assert len(list(run_tasks(log_and_die_once, work, workers=2, stage="read"))) == 6
    lines = log.read_text().split()
    again = len(lines) - 1 - lines[::-1].index("0")
    assert lines[again + 1] == "-0"
    begun = [line for line in lines[:again] if line != "0" and not line.startswith("-")]
    assert sorted(lines[:again]) == sorted(["0", *begun, *(f"-{line}" for line in begun)])


def log_and_die_once(place: tuple[str, int]) -> int:
    """Write when a task begins and ends; the first time, that of 0 kills its worker."""
    log, number = place
    with open(log, "a") as file:  # noqa: PTH123
        file.write(f"{number}\n")
    if number == 0:
        die_the_first_time(f"{log}.marker")
    time.sleep(0.05)
    with open(log, "a") as file:  # noqa: PTH123
        file.write(f"-{number}\n")
    return number


@pytest.mark.parametrize("hang", ["hang", "hang in native code"])
def test_a_task_that_never_ends_is_ended_and_blamed(hang: str) -> None:
    results = dict(run_tasks(misbehave, [*tasks([hang], 1.0), *tasks(["good"])], workers=1, stage="describe"))
    assert results == {
        "file of good": "good",
        f"file of {hang}": Trouble("describe", "TimeoutError", "took longer than 1 s", SLOW),
    }


def test_a_worker_that_dies_between_two_tasks_is_replaced_and_none_is_blamed(tmp_path: Path) -> None:
    def kill_between() -> Iterator[Task[int, str]]:
        yield Task(1, str(tmp_path), 60.0)
        (worker,) = noted(tmp_path, n=1)
        time.sleep(0.3)  # it has sent its result
        os.kill(int(worker), signal.SIGKILL)
        yield Task(2, str(tmp_path), 60.0)

    workers = dict(run_tasks(note, kill_between(), workers=1, stage="read"))
    assert {str(worker) for worker in workers.values()} == set(noted(tmp_path))
    assert workers[1] != workers[2]


def note(folder: str) -> int:
    Path(folder, str(os.getpid())).touch()
    return os.getpid()


def test_a_worker_that_dies_while_it_starts_is_replaced(tmp_path: Path) -> None:
    prepare = partial(die_the_first_time, str(tmp_path / "marker"))
    results = run_tasks(square, [Task("", 3, 60.0)], workers=1, stage="read", prepare=prepare)  # type: ignore[arg-type]
    assert list(results) == [("", 9)]


def test_workers_that_cannot_start_are_one_error_and_no_file_is_blamed() -> None:
    with pytest.raises(MurmurError, match="worker processes do not start: exit code 1; if memory is short"):
        list(run_tasks(misbehave, tasks(["good"]), workers=1, stage="read", prepare=die))


def test_tasks_are_read_as_workers_become_free() -> None:
    read = []

    def endless() -> Iterable[Task[int, int]]:
        while True:
            read.append(len(read))
            yield Task(read[-1], read[-1], 60.0)

    with closing(run_tasks(square, endless(), workers=2, stage="read")) as results:
        for _ in range(5):
            next(results)
    assert len(read) <= 5 + 2 * 2


def test_all_that_are_under_way_fit_into_the_memory_together(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    needs = [90, 60, 40, 40, 30, 20, 20, 10, 10, 10]
    work = [Task(need, (log, need), 60.0, need * MB) for need in needs]
    done = run_tasks(log_and_wait, work, workers=3, stage="read", memory=3 * BASE + 100 * MB)
    assert sorted(need for need, _ in done) == sorted(needs)
    assert max(accumulate(map(int, Path(log).read_text().split()))) <= 100


def test_what_fits_is_under_way_at_once(tmp_path: Path) -> None:
    work = [Task(0, str(tmp_path), 60.0, 50 * MB) for _ in range(2)]
    done = list(run_tasks(meet, work, workers=2, stage="read", memory=2 * BASE + 100 * MB))
    assert done == [(0, 2), (0, 2)]


def meet(folder: str) -> int:
    Path(folder, str(os.getpid())).touch()
    return len(noted(Path(folder)))


def test_a_task_that_does_not_fit_alone_is_refused_and_never_begun(tmp_path: Path) -> None:
    log = tmp_path / "log"
    work = [Task(need, (str(log), need), 60.0, need * MB) for need in (300, 100, 101)]
    results = dict(run_tasks(log_and_wait, work, workers=1, stage="describe", memory=BASE + 100 * MB))
    assert results[100] == 100
    assert log.read_text() == "100\n-100\n"
    assert results[300] == Trouble(
        "describe",
        "MemoryError",
        "needs about 286 MiB of memory where 95 MiB are left for it",
        "set `audio.max_duration` lower, or `memory` higher",
    )
    assert isinstance(results[101], Trouble)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_what_a_task_needs_too_much_of_is_said_alike_with_any_number_of_workers(workers: int) -> None:
    refused = run_tasks(square, [Task(0, 1, 60.0, 4 * BASE)], workers=workers, stage="read", memory=3 * BASE)
    assert [result.message for _, result in refused if isinstance(result, Trouble)] == [
        "needs about 1,600 MiB of memory where 800 MiB are left for it"
    ]


def test_memory_that_runs_out_in_a_task_is_told_from_a_fault_of_its_file() -> None:
    trouble = next(run_tasks(misbehave, tasks(["memory"]), workers=1, stage="describe"))[1]
    assert isinstance(trouble, Trouble)
    assert (trouble.error, trouble.advice) == ("MemoryError", "set `audio.max_duration` lower, or `memory` higher")


@pytest.mark.parametrize(
    ("workers", "room", "needs", "expected"),
    [
        (8, 100.0, [0], 8),
        (8, 2.5, [0], 2),
        (8, 0.5, [0], 1),
        (8, 8.5, [0.4] * 9, 6),  # typical tasks side by side
        (8, 9.0, [0.1] * 9 + [4.0], 5),  # the largest has room beside the other workers
        (8, 9.0, [0.1] * 9 + [8.5], 8),  # what does not fit alone is refused anyway
        (8, 9.0, [], 8),
    ],
)
def test_as_many_workers_as_the_memory_allows(workers: int, room: float, needs: list[float], expected: int) -> None:
    assert fitting_workers(workers, int(room * BASE), [int(need * BASE) for need in needs]) == expected


def test_a_worker_that_has_grown_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etl.pool, "BASE", 0)
    monkeypatch.setattr(etl.pool, "GROWTH", 16 * MB)
    sizes = [1, 1, 32, 1, 1]
    pids = [worker for _, worker in run_tasks(leak, [Task(0, n, 60.0) for n in sizes], workers=1, stage="read")]
    assert pids[0] == pids[1] == pids[2] != pids[3] == pids[4]


def test_workers_use_one_thread_each_and_are_told_so_before_numpy_is_imported() -> None:
    names = [Task(name, name, 60.0) for name in [*ONE_THREAD, "NUMBA_CACHE_DIR"]]
    found = dict(run_tasks(environment, names, workers=1, stage="read"))
    assert Path(str(found.pop("NUMBA_CACHE_DIR"))).is_dir()
    assert found == ONE_THREAD
    code = "import etl.extract, sys; print('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_without_a_writable_home_compiled_functions_go_to_a_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    ((_, folder),) = run_tasks(environment, [Task("", "NUMBA_CACHE_DIR", 60.0)], workers=1, stage="read")
    assert not Path(str(folder)).exists()


def note_and_stay_busy(folder: str) -> None:
    Path(folder, str(os.getpid())).touch()
    busy()


def note_and_wait(folder: str) -> int:
    """Return once there is a file `go`, and say so a moment before."""
    Path(folder, str(os.getpid())).touch()
    while not Path(folder, "go").exists():
        time.sleep(0.02)
    Path(folder, f"{os.getpid()} is done").touch()
    return os.getpid()


def noted(folder: Path, pattern: str = "*", n: int = 2) -> list[str]:
    """Wait for so many files."""
    deadline = time.monotonic() + 60
    while len(found := [path.name for path in folder.glob(pattern)]) < n and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def test_workers_end_when_the_results_are_not_wanted_any_more(tmp_path: Path) -> None:
    work = [Task("", 1, 60.0), Task("", str(tmp_path), 600.0)]
    with closing(run_tasks(square_or_stay_busy, work, workers=1, stage="read")) as results:
        assert next(results) == ("", 1)
        workers = list(map(int, noted(tmp_path, n=1)))
    assert not any(map(is_alive, workers))


def square_or_stay_busy(what: int | str) -> int:
    if isinstance(what, str):
        note_and_stay_busy(what)
        return 0
    return what * what


PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
from etl.pool import Task, run_tasks
from test_etl_pool import {function}
if __name__ == "__main__":
    try:
        for _, result in run_tasks({function}, [Task(0, {folder!r}, 600.0)] * 2, workers=2, stage="read"):
            print(result, flush=True)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


@contextmanager
def program(folder: Path, function: str) -> Iterator[subprocess.Popen[str]]:
    """Run a program with two workers that note their pids in a folder; in a process group of its own, as shells do."""
    script = folder.with_suffix(".py")
    script.write_text(PROGRAM.format(tests=str(Path(__file__).parent), function=function, folder=str(folder)))
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
    ) as parent:
        try:
            yield parent
        finally:
            with suppress(ProcessLookupError):
                os.killpg(parent.pid, signal.SIGKILL)


@pytest.mark.parametrize("function", ["note_and_stay_busy", "note_and_wait"])
def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path, function: str) -> None:
    (folder := tmp_path / "pids").mkdir()
    with program(folder, function) as parent:
        workers = list(map(int, noted(folder)))
        parent.kill()
        parent.wait(60)
        assert wait_until_dead(workers)


def test_ctrl_c_ends_workers_at_once_that_are_busy_in_native_code(tmp_path: Path) -> None:
    (folder := tmp_path / "pids").mkdir()
    with program(folder, "note_and_stay_busy") as parent:
        workers = list(map(int, noted(folder)))
        os.killpg(parent.pid, signal.SIGINT)
        assert parent.communicate(timeout=10) == ("interrupted\n", "")
        assert not any(map(is_alive, workers))


def test_ctrl_c_while_a_result_is_dealt_with_loses_nothing_that_is_finished(tmp_path: Path) -> None:
    work = [Task("", 1, 60.0), Task("", 2, 60.0), Task("", str(tmp_path), 600.0), Task("", str(tmp_path), 600.0)]
    found = run_tasks(square_or_stay_busy, work, workers=2, stage="read")
    results = [next(found)]
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(1)  # the other result is on its way
    with pytest.raises(KeyboardInterrupt):
        results.extend(found)
    assert sorted(results) == [("", 1), ("", 4)]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_does_not_wait() -> None:
    with closing(run_tasks(square, [Task("", 1, 60.0)] * 9, workers=1, stage="read")) as found:
        next(found)
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_loses_nothing_that_is_finished(tmp_path: Path) -> None:
    (folder := tmp_path / "pids").mkdir()
    with program(folder, "note_and_wait") as parent:
        workers = noted(folder)
        parent.send_signal(signal.SIGSTOP)
        (folder / "go").touch()
        noted(folder, "* is done")
        time.sleep(0.3)  # now the results are on their way
        os.killpg(parent.pid, signal.SIGINT)
        parent.send_signal(signal.SIGCONT)
        assert sorted(parent.communicate(timeout=10)[0].split()) == sorted([*workers, "interrupted"])
