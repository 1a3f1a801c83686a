"""One run on several processes is the run on one, and none of them waits for a dead one."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from programs import ended
from tiny_restore import make_state
from unreadable_files import let_reads_fail

from l2w_jax.run.checkpoints import CheckpointWriter
from launch import processes

pytestmark = pytest.mark.usefixtures("this_checkout")

ROOT = Path(__file__).parents[2]


def launch(processes, devices, workdir, **environment):
    """Starts a tiny run on some processes with some devices each."""
    return subprocess.Popen(
        [sys.executable, Path(__file__).with_name("launch_tiny.py"), str(processes), str(workdir)],
        cwd=ROOT,
        env=os.environ
        | {
            "JAX_PLATFORMS": "cpu",
            "JAX_ENABLE_X64": "1",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        }
        | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    """The output of a launched run, which must end well."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def disturbed(process, disturb):
    """The output of a launched run to its end; `disturb` is called when it tells of step 15."""
    output = []
    for line in process.stdout:
        output.append(line)
        if " step 15/" in line:
            disturb()
    return "".join(output)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """The folder of a run on one process with four devices."""
    workdir = tmp_path_factory.mktemp("layouts") / "1x4"
    finish(launch(1, 4, workdir))
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
def test_any_layout_gives_the_same_parameters_and_curves(processes, devices, one_process, tmp_path):
    output = finish(launch(processes, devices, tmp_path / "run"))
    assert output.count("evaluated") == 1
    assert output.count("step 60/60") == 1, "only the first process writes"
    assert_same_run(tmp_path / "run", one_process)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_goes_on_in_another_layout(number, one_process, tmp_path):
    process = launch(2, 2, tmp_path / "run", TINY_DELAY="0.2")
    output = disturbed(process, lambda: process.send_signal(number))
    assert process.wait(60) == 75, output
    stopped_after = int(re.search(r"stopped by SIGTERM after step (\d+)", output)[1])
    output = finish(launch(1, 4, tmp_path / "run"))
    assert f"goes on after step {stopped_after}/60" in output
    assert_same_run(tmp_path / "run", one_process)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_joined_process_that_is_alone_saves_when_it_is_stopped(number, tmp_path):
    process = launch(1, 1, tmp_path / "run", TINY_DELAY="0.2")
    output = disturbed(process, lambda: process.send_signal(number))
    assert process.wait(60) == 75, output
    assert re.search(rf"stopped by {number.name} after step \d+, which is saved", output)


@pytest.mark.slow
@pytest.mark.usefixtures("default_heartbeat_timeout")
@pytest.mark.parametrize("victim", [0, 1])
def test_a_dead_process_takes_the_others_with_it_and_the_run_goes_on(victim, one_process, tmp_path):
    process = launch(2, 2, tmp_path / "run", TINY_DELAY="0.2")
    killed_at = []

    def kill():
        os.kill(child_of(process.pid, victim), signal.SIGKILL)
        killed_at.append(time.monotonic())

    output = disturbed(process, kill)
    assert process.wait() == 128 + signal.SIGKILL
    assert time.monotonic() - killed_at[0] < 60
    assert f"process {victim} ended with status 137; the others are ended too" in output
    output = finish(launch(2, 2, tmp_path / "run"))
    assert re.search(r"goes on after step 1[2-9]/60", output)
    assert_same_run(tmp_path / "run", one_process)


@pytest.mark.slow
@pytest.mark.usefixtures("default_heartbeat_timeout")
def test_a_process_that_freezes_is_not_waited_for_and_the_run_goes_on(tmp_path):
    """As when a host's network is gone: nobody hears that the connection is."""
    process = launch(2, 1, tmp_path / "run", TINY_DELAY="0.2")
    frozen_at = []

    def freeze():
        os.kill(child_of(process.pid, 1), signal.SIGSTOP)
        frozen_at.append(time.monotonic())

    output = disturbed(process, freeze)
    assert process.wait() == 128 + signal.SIGABRT
    assert time.monotonic() - frozen_at[0] < 120
    assert "another task died" in output
    assert "process 0 ended with status 134; the others are ended too" in output
    output = finish(launch(2, 1, tmp_path / "run"))
    assert re.search(r"goes on after step 1[2-9]/60", output)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "told"),
    [
        ("TINY_POORER", "has 47 training, 24 held-out and 43 test images, and not all"),
        ("TINY_STRANGER", "would not begin with the network that process 0 begins with"),
    ],
)
def test_processes_with_other_images_or_another_network_do_not_begin(variable, told, tmp_path):
    process = launch(2, 1, tmp_path / "run", **{variable: "1"})
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2, output
    assert f"process 1 {told}" in output
    assert "step " not in output


@pytest.mark.slow
def test_processes_with_another_config_do_not_begin(tmp_path):
    command = [sys.executable, "-m", "l2w_jax.main", f"--workdir={tmp_path}"]
    config = f"--config={ROOT / 'configs' / 'digits_msdnet.py'}"
    own_seed = 'exec "$@" --config.seed=$JAX_PROCESS_ID'
    statuses, outputs = ended(
        list(processes.start(2, ["sh", "-c", own_seed, "sh", *command, config]))
    )
    assert statuses == [2, 2], outputs
    for output in outputs:
        assert "process 1 was given another config than process 0" in output
        assert "seed: 0 -> 1" in output


@pytest.fixture
def folders(tmp_path):
    """A folder with the run folders of two processes, alike, with checkpoints of two steps."""
    writer = CheckpointWriter(tmp_path / "0", keep=2)
    for step in (10, 20):
        writer.save(make_state(step), score=step)
    writer.close()
    shutil.copytree(tmp_path / "0", tmp_path / "1")
    return tmp_path


def start_to_restore(folders):
    command = [sys.executable, str(ROOT / "tests" / "tiny_restore.py"), str(folders)]
    return list(processes.start(2, command))


def steps_in(folder):
    return sorted(int(path.name) for path in folder.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_what_one_process_cannot_read_ends_all_with_its_name_and_is_not_taken_for_damaged(
    victim, folders
):
    record = folders / str(victim) / "checkpoints" / "20" / "record" / "metadata"
    record.unlink()
    record.mkdir()
    statuses, outputs = ended(start_to_restore(folders))
    assert statuses == [1, 1], outputs
    for output in outputs:
        assert f"checkpoints/20: process {victim} cannot use it: its record cannot be" in output
        assert "IsADirectoryError" in output
        assert "damaged" not in output
        assert "is not used" not in output
    for process in ("0", "1"):
        assert steps_in(folders / process / "checkpoints") == [10, 20]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_what_no_process_can_use_is_not_taken_for_damaged_where_one_cannot_read_it_now(
    victim, folders
):
    damaged = folders / str(1 - victim) / "checkpoints" / "20" / "state"
    shutil.rmtree(damaged)
    let_reads_fail(folders / str(victim) / "checkpoints" / "20" / "record" / "metadata")
    statuses, outputs = ended(start_to_restore(folders))
    assert statuses == [1, 1], outputs
    for output in outputs:
        assert "record/metadata cannot be read now (Input/output error)" in output
        assert "nothing was moved" in output
        assert "is not used" not in output
    for process in ("0", "1"):
        assert steps_in(folders / process / "checkpoints") == [10, 20]


@pytest.mark.slow
def test_damage_that_all_processes_see_costs_them_its_step_only(folders):
    for process in ("0", "1"):
        shutil.rmtree(folders / process / "checkpoints" / "20" / "state")
    statuses, outputs = ended(start_to_restore(folders))
    assert statuses == [0, 0], outputs
    for output in outputs:
        assert "The checkpoint of step 20 is not used: its state cannot be read" in output
        assert "goes on from 10, the best is 10" in output
    assert steps_in(folders / "0" / "checkpoints") == [10]
    assert steps_in(folders / "0" / "damaged_checkpoints") == [20]


@pytest.mark.slow
@pytest.mark.usefixtures("default_heartbeat_timeout")
def test_a_process_that_dies_while_it_reads_is_told_as_gone_and_nothing_as_damaged(folders):
    record = folders / "1" / "checkpoints" / "20" / "record" / "metadata"
    record.unlink()
    os.mkfifo(record)
    both = start_to_restore(folders)
    # To open it waits for the one that reads.
    with record.open("w"):
        both[1].kill()
    statuses, outputs = ended(both)
    assert statuses == [1, -signal.SIGKILL], outputs
    assert "process 0: another process is gone, or a device failed" in outputs[0]
    assert "damaged" not in outputs[0]
    assert "is not used" not in outputs[0]


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
