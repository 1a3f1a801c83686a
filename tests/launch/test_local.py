"""The scripts install once into the clone, and say what is missing. A stand-in plays Python."""

import os
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

STAND_IN = """#!/bin/sh
if [ "$1" = "-c" ]; then
    echo VERSION
    exit
fi
echo "$@" >> "$CALLS"
echo "${GLIBC_TUNABLES-}" > "$CALLS.tunables"
if [ "$1 $2" = "-m venv" ]; then
    mkdir -p "$3/bin"
    cp "$0" "$3/bin/python"
    [ -n "${INTERRUPTED-}" ] && exit 130
    cp "$0" "$3/bin/pip"
fi
case "$*" in *"-m pip"*) exit "${PIP_STATUS:-0}" ;; esac
"""


@pytest.fixture
def clone(tmp_path):
    """A clone whose PATH holds the tools of a small system, and no Python yet."""
    folder = tmp_path / "clone"
    shutil.copytree(ROOT / "launch", folder / "launch")
    shutil.copy(ROOT / "pyproject.toml", folder)
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "sh", "dirname", "cmp", "cp", "mkdir", "cat"):
        (tools / tool).symlink_to(shutil.which(tool))
    return folder


def add_python(clone, name="python3", version="3.12"):
    python = clone.parent / "bin" / name
    python.write_text(STAND_IN.replace("VERSION", version))
    python.chmod(0o755)


def launch(clone, script, *arguments, **environment):
    """The completed script, and the calls of Python that it made."""
    calls = clone.parent / "calls"
    calls.unlink(missing_ok=True)
    completed = subprocess.run(
        ["bash", f"launch/{script}", *arguments],
        cwd=clone,
        env={"PATH": str(clone.parent / "bin"), "CALLS": str(calls), **environment},
        capture_output=True,
        text=True,
    )
    return completed, calls.read_text().splitlines() if calls.exists() else []


def test_no_python_is_said(clone):
    completed, _ = launch(clone, "local.sh")
    assert completed.returncode == 2
    assert completed.stderr.count("\n") == 1
    assert "None of Python 3.11 3.12 3.13 with the venv module was found" in completed.stderr


@pytest.mark.parametrize("unsupported", ["2.7", "3.10", "3.14"])
def test_a_python_that_is_not_supported_is_passed_over(clone, unsupported):
    add_python(clone, "python3", unsupported)
    completed, calls = launch(clone, "local.sh")
    assert (completed.returncode, calls) == (2, [])
    add_python(clone, "python3.12", "3.12")
    completed, calls = launch(clone, "local.sh")
    assert completed.returncode == 0, completed.stderr
    assert calls[0] == "-m venv .venv --clear"


def test_the_supported_pythons_are_those_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    prefix = "Programming Language :: Python :: "
    told = [line.removeprefix(prefix) for line in project["classifiers"] if prefix in line]
    listed = subprocess.run(
        ["bash", "-c", 'source launch/environment.sh; echo "${supported_pythons[@]}"'],
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout.split()
    assert listed == told
    newest = int(told[-1].split(".")[1])
    assert project["requires-python"] == f">={told[0]},<3.{newest + 1}"


def test_the_first_call_installs_and_the_second_does_not(clone):
    add_python(clone)
    completed, calls = launch(clone, "local.sh", "--config=a b.py", "--mode=train")
    assert completed.returncode == 0, completed.stderr
    assert [call.split()[:2] for call in calls[-3:]] == [
        ["-m", "venv"],
        ["-m", "pip"],
        ["-m", "l2w_jax.main"],
    ]
    assert calls[-2].endswith("--editable .")
    assert calls[-1] == "-m l2w_jax.main --config=a b.py --mode=train"
    _, calls = launch(clone, "local.sh")
    assert calls == ["-m l2w_jax.main"]


def test_new_dependencies_are_installed(clone):
    add_python(clone)
    launch(clone, "local.sh")
    with open(clone / "pyproject.toml", "a") as file:
        file.write("\n")
    _, calls = launch(clone, "local.sh")
    assert [call.split()[1] for call in calls] == ["pip", "l2w_jax.main"]


def test_a_failed_installation_is_tried_again(clone):
    add_python(clone)
    completed, calls = launch(clone, "local.sh", PIP_STATUS="1")
    assert completed.returncode == 1
    assert not any("l2w_jax.main" in call for call in calls)
    _, calls = launch(clone, "local.sh")
    assert [call.split()[1] for call in calls] == ["pip", "l2w_jax.main"]


def test_an_environment_whose_making_was_interrupted_is_made_anew(clone):
    add_python(clone)
    completed, _ = launch(clone, "local.sh", INTERRUPTED="1")
    assert completed.returncode == 130
    _, calls = launch(clone, "local.sh")
    assert [call.split()[1] for call in calls] == ["venv", "pip", "l2w_jax.main"]


def test_extras_are_installed_beside(clone):
    add_python(clone)
    launch(clone, "local.sh")
    _, calls = launch(clone, "local.sh", EXTRAS="cuda")
    assert calls[0].endswith("--editable .[cuda]")
    _, calls = launch(clone, "test.sh", "-k", "one")
    assert calls[0].endswith("--editable .[test]")
    assert calls[1] == "-m pytest -k one"


def test_all_tests_run_over_the_cores_and_chosen_ones_in_one_process(clone):
    add_python(clone)
    _, calls = launch(clone, "test.sh")
    assert calls[-1] == "-m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile"
    _, calls = launch(clone, "test.sh", "-m", "slow")
    assert calls == ["-m pytest -m slow"]


def test_it_starts_in_any_folder(clone, tmp_path):
    add_python(clone)
    launch(clone, "local.sh")
    completed = subprocess.run(
        ["bash", str(clone / "launch" / "local.sh")],
        cwd=tmp_path,
        env=os.environ | {"CALLS": str(tmp_path / "calls")},
        capture_output=True,
        text=True,
    )
    assert completed.returncode == 0, completed.stderr


def test_memory_is_in_huge_pages_unless_the_user_says_otherwise(clone):
    add_python(clone)
    tunables = clone.parent / "calls.tunables"
    launch(clone, "local.sh")
    assert tunables.read_text() == "glibc.malloc.hugetlb=1\n"
    for own in ("glibc.malloc.arena_max=2", ""):
        launch(clone, "local.sh", GLIBC_TUNABLES=own)
        assert tunables.read_text() == own + "\n"
