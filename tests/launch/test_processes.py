"""One run on several processes is the run on one, and none of them waits for a dead one."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

ROOT = Path(__file__).parents[2]
TINY = (
    f"--config={ROOT}/configs/digits_msdnet.py",
    "--config.model.num_exits=2",
    "--config.model.channels=4",
    "--config.model.growth_rate=2",
    # A sign flip of one activation moves a float32 run visibly.
    "--config.model.dtype=float64",
    "--config.weighting.hidden=8",
    "--config.checkpoint.every_epochs=1",
    "--config.log.every_steps=1",
)


def launch(processes, devices, workdir, cache, *arguments):
    return subprocess.Popen(
        [
            sys.executable,
            str(ROOT / "launch" / "processes.py"),
            str(processes),
            *TINY,
            f"--workdir={workdir}",
            *arguments,
        ],
        cwd=ROOT,
        env=os.environ
        | {
            "JAX_PLATFORMS": "cpu",
            "JAX_ENABLE_X64": "1",
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process, seconds=600):
    output, _ = process.communicate(timeout=seconds)
    return output


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def one_process(tmp_path_factory, cache):
    """A run of two epochs on one process with four devices."""
    workdir = tmp_path_factory.mktemp("layouts") / "1x4"
    process = launch(1, 4, workdir, cache, "--config.optimizer.epochs=2")
    output = finish(process)
    assert process.returncode == 0, output
    return workdir


def newest_arrays(workdir):
    step = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    with ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore(workdir.absolute() / "checkpoints" / str(step) / "state")
    return jax.tree.map(np.asarray, state)


def assert_same_run(workdir, reference):
    for name in ("anytime.csv", "budgeted.csv"):
        ours = np.genfromtxt(workdir / name, delimiter=",", skip_header=1)
        theirs = np.genfromtxt(reference / name, delimiter=",", skip_header=1)
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-9),
        newest_arrays(workdir),
        newest_arrays(reference),
    )


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices"), [(2, 2), (4, 1)])
def test_any_layout_gives_the_same_parameters_and_curves(
    processes, devices, one_process, cache, tmp_path
):
    workdir = tmp_path / "run"
    process = launch(processes, devices, workdir, cache, "--config.optimizer.epochs=2")
    output = finish(process)
    assert process.returncode == 0, output
    assert len(re.findall("written to", output)) == 1, "only the first process writes"
    assert_same_run(workdir, one_process)


@pytest.mark.slow
def test_a_stopped_run_goes_on_in_another_layout(one_process, cache, tmp_path):
    workdir = tmp_path / "run"
    process = launch(2, 2, workdir, cache, "--config.optimizer.epochs=2")
    for line in process.stdout:
        if " step 3/" in line:
            process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    process = launch(1, 4, workdir, cache, "--config.optimizer.epochs=2")
    output = finish(process)
    assert process.returncode == 0, output
    assert "goes on after step" in output
    assert_same_run(workdir, one_process)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_dead_process_takes_the_others_with_it_and_the_run_goes_on(
    victim, one_process, cache, tmp_path
):
    workdir = tmp_path / "run"
    process = launch(2, 2, workdir, cache, "--config.optimizer.epochs=2")
    killed_at = None
    output = []
    for line in process.stdout:
        output.append(line)
        if " step 12/" in line and killed_at is None:
            os.kill(child_of(process.pid, victim), signal.SIGKILL)
            killed_at = time.monotonic()
    assert process.wait() != 0
    assert time.monotonic() - killed_at < 60
    assert f"process {victim} ended with status 137; the others are ended too" in "".join(output)
    process = launch(2, 2, workdir, cache, "--config.optimizer.epochs=2")
    output = finish(process)
    assert process.returncode == 0, output
    assert "goes on after step 9/18" in output
    assert_same_run(workdir, one_process)


def child_of(parent, process_id):
    """The process of a launcher that has a given number."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                status = (entry / "stat").read_text()
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            if int(status.rpartition(")")[2].split()[1]) == parent and (
                f"JAX_PROCESS_ID={process_id}\0".encode() in environment
            ):
                return int(entry.name)
    raise AssertionError("no such process")


def test_a_wrong_number_is_refused():
    completed = subprocess.run(
        [sys.executable, str(ROOT / "launch" / "processes.py"), "two"],
        capture_output=True,
        text=True,
    )
    assert completed.returncode == 2
    assert completed.stderr.startswith("usage: ")


def test_a_mistake_ends_all_processes_with_its_line(cache, tmp_path):
    process = launch(2, 1, tmp_path / "run", cache, "--config.weighting.q=-1")
    output = finish(process)
    assert process.returncode == 2
    assert "weighting.q: -1" in output
    assert not (tmp_path / "run").exists()
