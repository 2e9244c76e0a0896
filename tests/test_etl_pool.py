from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path

import pytest

from core.errors import AudioError, MurmurError
from etl.pool import ONE_THREAD, Task, Trouble, run_tasks


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
        case "audio":
            raise AudioError("the file is empty", stage="read", advice="copy it again")
        case "bug":
            raise ValueError("could not\nbroadcast")
    return what


def environment(name: str) -> str:
    return os.environ[name]


def imported(module: str) -> bool:
    return module in sys.modules


def die() -> None:
    os._exit(1)


def tasks(arguments: Iterable[str], seconds: float = 60.0) -> list[Task[str, str]]:
    return [Task(f"file of {argument}", argument, seconds) for argument in arguments]


def test_every_task_comes_back_with_its_result() -> None:
    numbers = [Task(number, number, 60.0) for number in range(50)]
    assert dict(run_tasks(square, numbers, workers=2, stage="read")) == {number: number**2 for number in range(50)}


def test_without_tasks_no_worker_starts() -> None:
    assert list(run_tasks(square, [], workers=2, stage="read", prepare=die)) == []


def test_what_kills_or_breaks_a_worker_is_blamed_on_its_task_and_the_others_go_on() -> None:
    good = [f"good {number}" for number in range(8)]
    bad = ["segfault", "audio", "killed", "bug", "exit"]
    arguments = [argument for pair in zip(good, [*bad, "last"], strict=False) for argument in pair] + good[6:]
    results = dict(run_tasks(misbehave, tasks(arguments), workers=2, stage="describe"))
    convert = "play it to check; if it plays, convert it to WAV or FLAC"
    assert results == {f"file of {name}": name for name in [*good, "last"]} | {
        "file of audio": Trouble("read", "AudioError", "the file is empty", "copy it again"),
        "file of bug": Trouble("describe", "ValueError", "could not broadcast", convert),
        "file of segfault": Trouble(
            "describe", "ProcessExpired", "its worker process died: Segmentation fault", convert
        ),
        "file of killed": Trouble(
            "describe",
            "ProcessExpired",
            "its worker process died: Killed",
            "set `workers` lower if memory was short",
        ),
        "file of exit": Trouble("describe", "ProcessExpired", "its worker process died: exit code 3", convert),
    }


def test_a_task_that_never_ends_is_ended_and_blamed() -> None:
    results = dict(run_tasks(misbehave, [*tasks(["hang"], 1.0), *tasks(["good"])], workers=1, stage="describe"))
    assert results["file of good"] == "good"
    trouble = results["file of hang"]
    assert isinstance(trouble, Trouble)
    assert (trouble.error, trouble.message) == ("TimeoutError", "took longer than 1 s")


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


def test_workers_that_cannot_start_are_one_error_and_no_file_is_blamed() -> None:
    with pytest.raises(MurmurError, match="worker processes do not stay alive; set `workers: 1`"):
        list(run_tasks(misbehave, tasks(["good"]), workers=1, stage="read", prepare=die))


CHILD = """
import sys
sys.path.insert(0, {tests!r})
from etl.pool import Task, run_tasks
from test_etl_pool import pid_then_wait
if __name__ == "__main__":
    for _, pid in run_tasks(pid_then_wait, (Task(n, n, 60.0) for n in range(1000)), workers=2, stage="read"):
        print(pid, flush=True)
"""


def pid_then_wait(_: int) -> int:
    time.sleep(0.05)
    return os.getpid()


def is_alive(pid: int) -> bool:
    with suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_parent(tmp_path: Path, number: int) -> None:
    script = tmp_path / "child.py"
    script.write_text(CHILD.format(tests=str(Path(__file__).parent)))
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout
        workers = {int(child.stdout.readline()) for _ in range(10)}
        child.send_signal(number)
        child.wait(60)
    deadline = time.monotonic() + 60
    while any(map(is_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, workers))
