from __future__ import annotations

from pathlib import Path

import pytest

from core.config import Config, parse_config
from etl.memory import available_memory, memory_budget

MACHINE = available_memory(Path("/nowhere"))
NONE_V1 = "9223372036854771712"


def system(root: Path, groups: str, limits: dict[str, str]) -> Path:
    """Write what Linux shows of control groups below a folder."""
    for name, text in {"proc/self/cgroup": groups, **limits}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


V1 = "12:cpu,cpuacct:/docker/abc\n5:memory:/docker/abc\n1:name=systemd:/docker/abc"


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("0::/", {}, MACHINE),
        ("0::/", {"sys/fs/cgroup/memory.max": "1000000"}, 1_000_000),
        ("0::/", {"sys/fs/cgroup/memory.max": "max"}, MACHINE),
        ("0::/", {"sys/fs/cgroup/memory.max": str(2**60)}, MACHINE),
        ("0::/a/b", {"sys/fs/cgroup/a/b/memory.max": "max", "sys/fs/cgroup/a/memory.max": "3000000"}, 3_000_000),
        ("0::/a", {"sys/fs/cgroup/a/memory.max": "3000000", "sys/fs/cgroup/a/memory.high": "2000000"}, 2_000_000),
        (V1, {"sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": "4000000"}, 4_000_000),
        (V1, {"sys/fs/cgroup/memory/memory.limit_in_bytes": "5000000"}, 5_000_000),
        (V1, {"sys/fs/cgroup/memory/memory.limit_in_bytes": NONE_V1}, MACHINE),
        (V1, {"sys/fs/cgroup/cpu/docker/abc/memory.limit_in_bytes": "6000000"}, MACHINE),
        (f"{V1}\n0::/docker/abc", {"sys/fs/cgroup/memory/docker/memory.limit_in_bytes": "7000000"}, 7_000_000),
    ],
)
def test_the_least_of_the_machine_and_all_control_groups_counts(
    tmp_path: Path, groups: str, limits: dict[str, str], expected: int
) -> None:
    assert available_memory(system(tmp_path, groups, limits)) == expected


def test_the_machine_has_some_memory() -> None:
    assert 2**28 < MACHINE < 2**50


def test_the_budget_is_the_configs_else_most_of_what_there_is() -> None:
    assert memory_budget(parse_config({"memory": "2GiB"})) == 2**31
    assert memory_budget(Config()) == pytest.approx(0.8 * available_memory(), abs=1)
