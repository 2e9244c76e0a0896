"""The bash scripts, run with stand-ins for Python, pip and Java, so that nothing is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = [*sorted(path for path in (ROOT / "scripts").iterdir() if not path.suffix), ROOT / ".ci" / "run"]
TOOLS = ("bash", "cat", "cp", "dirname", "env", "flock", "mkdir", "sed", "sha256sum")
PYTHON = r"""#!/usr/bin/env bash
case "$1 $2" in
    "--version ") echo "Python $(cat "$ROOT/version")" ;;
    "-m venv")
        mkdir -p .venv/bin
        cp "$ROOT/bin/python3" .venv/bin/python
        cp "$ROOT/bin/pip" "$ROOT/bin/murmur" "$ROOT/bin/pytest" .venv/bin
        ;;
    *synthesise.py\ *) mkdir -p "$2" ;;
esac
"""
PIP = """#!/usr/bin/env bash
echo "$@" >>"$ROOT/pip.log"
[[ $* != */dev/stdin ]] || cat >/dev/null
[[ ! -e $ROOT/offline ]]
"""
SHOW_CALL = '#!/usr/bin/env bash\necho "${MURMUR_FULL:-}[$0 $*]"\n'
JAVA = '#!/usr/bin/env bash\necho "openjdk version \\"17.0.15\\" 2025-04-15" >&2\n'


class Checkout:
    """A checkout with the scripts alone, on a machine with nothing but `TOOLS` and the stand-ins."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "checkout"
        shutil.copytree(ROOT / "scripts", self.folder / "scripts")
        (self.folder / "requirements.lock").write_text("setuptools==1 \\\n    --hash=sha256:0\nother==1\n")
        (self.folder / "setup.cfg").touch()
        (root / "version").write_text("3.12.1")
        (root / "bin").mkdir()
        for tool in TOOLS:
            (root / "bin" / tool).symlink_to(str(shutil.which(tool)))
        for name, text in {
            "python3": PYTHON,
            "pip": PIP,
            "murmur": SHOW_CALL,
            "pytest": SHOW_CALL,
            "java": JAVA,
        }.items():
            (root / "bin" / name).write_text(text)
            (root / "bin" / name).chmod(0o755)

    def call(self, script: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a script as a user would."""
        return subprocess.run(
            [self.folder / "scripts" / script, *arguments],
            cwd=cwd or self.folder,
            env={"PATH": str(self.root / "bin"), "ROOT": str(self.root)},
            capture_output=True,
            text=True,
            check=False,
        )

    def installs(self) -> int:
        """Return how often pip was called."""
        log = self.root / "pip.log"
        return len(log.read_text().splitlines()) if log.exists() else 0


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_is_valid_bash_and_executable(script: Path) -> None:
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    assert script.stat().st_mode & 0o111


def test_a_finished_set_up_is_not_redone(checkout: Checkout) -> None:
    first = checkout.call("setup")
    assert first.returncode == 0
    assert "Setting up .venv with Python 3.12.1" in first.stderr
    installs = checkout.installs()
    second = checkout.call("setup")
    assert (second.returncode, second.stderr, checkout.installs()) == (0, "", installs)


def test_an_unfinished_set_up_fails_and_is_redone(checkout: Checkout) -> None:
    (checkout.root / "offline").touch()
    assert checkout.call("setup").returncode != 0
    (checkout.root / "offline").unlink()
    before = checkout.installs()
    assert checkout.call("setup").returncode == 0
    assert checkout.installs() > before


@pytest.mark.parametrize("changed", ["checkout/requirements.lock", "checkout/setup.cfg", "version"])
def test_another_lock_configuration_or_python_needs_another_environment(checkout: Checkout, changed: str) -> None:
    checkout.call("setup")
    before = checkout.installs()
    with (checkout.root / changed).open("a") as file:
        file.write("9")
    assert checkout.call("setup").returncode == 0
    assert checkout.installs() > before


def test_a_moved_checkout_needs_another_environment(checkout: Checkout) -> None:
    checkout.call("setup")
    before = checkout.installs()
    checkout.folder = checkout.folder.rename(checkout.root / "moved")
    assert checkout.call("setup").returncode == 0
    assert checkout.installs() > before


def test_a_missing_python_and_java_are_named_with_what_to_type(checkout: Checkout) -> None:
    for program in ("java", "python3"):
        (checkout.root / "bin" / program).unlink()
    call = checkout.call("setup")
    assert call.returncode == 1
    assert "type: sudo apt-get install python3-venv default-jre-headless\n" in call.stderr
    assert "No Python 3.11, 3.12 or 3.13" in call.stderr


def test_run_takes_the_synthesised_library_and_is_called_as_can_be_typed(checkout: Checkout) -> None:
    for cwd, shortest in ((checkout.folder, ""), (checkout.root / "bin", f"{checkout.folder}/")):
        call = checkout.call("run", cwd=cwd)
        options = (
            f"--config {shortest}library/config.yaml run {shortest}library --metadata {shortest}library/metadata.csv"
        )
        assert call.stdout == f"[{shortest}.venv/bin/murmur {options}]\n"


def test_run_hands_a_folder_and_its_options_on(checkout: Checkout) -> None:
    call = checkout.call("run", "My Music", "--metadata", "tracks.csv")
    assert call.stdout == "[.venv/bin/murmur run My Music --metadata tracks.csv]\n"


def test_run_without_java_says_so_and_takes_scikit_learn(checkout: Checkout) -> None:
    (checkout.root / "bin" / "java").unlink()
    call = checkout.call("run", "Music")
    assert call.stdout == "[.venv/bin/murmur run Music --engine sklearn]\n"
    assert "No Java 17 or later" in call.stderr


def test_test_without_servers_still_runs_and_hands_its_arguments_on(checkout: Checkout) -> None:
    shutil.copytree(ROOT / "tests" / "servers", checkout.folder / "tests" / "servers")
    call = checkout.call("test", "--full", "-k", "some test")
    assert call.stdout.endswith(f"1[{checkout.folder}/.venv/bin/pytest -n 3 --dist loadfile -k some test]\n")
    assert "type: sudo apt-get install default-jdk-headless maven\n" in call.stderr
