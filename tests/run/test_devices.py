"""Copies of a replicated state that differ are found, wherever and in whatever type they differ."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from programs import ENVIRONMENT, THIS_CHECKOUT, ended

from l2w_jax.config import default_config
from l2w_jax.models.preprocessing import channel_statistics
from l2w_jax.run import devices as run_devices
from l2w_jax.run.devices import device_batches
from l2w_jax.training.step import TrainStep
from launch import processes


def run_on_devices(count, script, *arguments):
    """Lines that `script` prints in a process with `count` simulated devices."""
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"}
    completed = subprocess.run(
        [sys.executable, Path(__file__).with_name(script), *arguments],
        env=ENVIRONMENT | flags | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert completed.returncode == 0, completed.stderr
    return completed.stdout.splitlines()


def test_diverged_copies_are_found_on_four_devices():
    assert run_on_devices(4, "copies_on_devices.py") == [
        "[]",
        "[2]",
        "[1, 3]",
        "[3]",
        "[1]",
        "[[[0, 1]], [[2, 3]], [[4, 5]], [[6, 7]]]",
    ]


def test_placing_a_state_exchanges_nothing_between_processes(monkeypatch):
    for name, value in {**THIS_CHECKOUT, "JAX_PLATFORMS": "cpu"}.items():
        monkeypatch.setenv(name, value)
    command = [sys.executable, str(Path(__file__).with_name("place_unlike.py"))]
    statuses, outputs = ended(list(processes.start(2, command)))
    assert statuses == [0, 0], outputs
    # Had they compared it, they would have found that it is not the same.
    assert [output.splitlines()[-1] for output in outputs] == [
        "placed 0 on 2 devices",
        "placed 1 on 2 devices",
    ]


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("interval", [1, 2])
def test_halves_and_iterations_share_one_program(devices, interval):
    # The update, and the join of the metrics of both halves.
    lines = run_on_devices(devices, "three_iterations.py", str(interval))
    assert lines == ["2", "2", "2"]


def test_batches_come_in_order_and_a_fault_in_the_source_comes_through():
    def source():
        for index in range(5):
            yield {"label": np.full(4, index, np.int32)}
        raise OSError("the disk is gone")

    batches = device_batches(source())
    assert [int(next(batches)["label"][0, 0]) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)


def test_a_step_learns_from_both_its_batches_as_a_network_reads_them(monkeypatch):
    learnt_from = TrainStep(lambda state, batch, i: (state, batch), 1)
    monkeypatch.setattr(run_devices, "make_train_step", lambda *_, **options: learnt_from)
    config = default_config()
    config.dataset.name = "cifar10"
    stored = np.random.default_rng(0).integers(0, 256, (2, 4, 8, 8, 3)).astype(np.uint8)
    images, previous = stored
    batch = {"image": images, "previous": {"image": previous}}
    step = run_devices.step_on_stored(config, 10, jax.devices()[:1])
    _, found = step.update(None, batch, 0)
    mean, deviation = channel_statistics("cifar10")
    for of_step, as_stored in ((found, images), (found["previous"], previous)):
        np.testing.assert_allclose(
            of_step["image"], (as_stored / 255 - mean) / deviation, rtol=1e-5, atol=1e-6
        )
