"""Copies of a replicated state that differ are found, wherever and in whatever type they differ."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from l2w_jax.run.devices import device_batches

ON_FOUR_DEVICES = """
import jax
import jax.numpy as jnp
import numpy as np
from l2w_jax.run.devices import device_batches, diverged_devices, place_replicated

state = {
    "step": np.int32(3),
    "kernel": np.arange(12, dtype=np.float32).reshape(3, 4),
    "half": np.ones(5, jnp.bfloat16),
    "double": np.ones(2, np.float64),
}
with jax.enable_x64(True):
    placed = place_replicated(state)
    print(diverged_devices(placed))

    def with_copies(name, changes):
        copies = []
        for shard in placed[name].addressable_shards:
            copy = np.array(shard.data)
            if shard.device.id in changes:
                copy.reshape(-1)[changes[shard.device.id]] *= 2
            copies.append(jax.device_put(copy, shard.device))
        sharding, shape = placed[name].sharding, placed[name].shape
        changed = jax.make_array_from_single_device_arrays(shape, sharding, copies)
        return placed | {name: changed}

    print(diverged_devices(with_copies("kernel", {2: 11})))
    print(diverged_devices(with_copies("half", {1: 0, 3: 4})))
    print(diverged_devices(with_copies("double", {3: 1})))
    print(diverged_devices(with_copies("step", {1: 0})))

batch = next(device_batches(iter([{"image": np.arange(8)}] * 9)))["image"]
print([shard.data.tolist() for shard in batch.addressable_shards])
"""

COMPILED_IN_THREE_ITERATIONS = """
import logging
import sys
import jax
import numpy as np
from small_networks import ConvNetwork
from l2w_jax.config import default_config
from l2w_jax.run.devices import device_batches, place_replicated, step_on_devices
from l2w_jax.training import create_train_state

config = default_config(model=ConvNetwork())
config.dataset.image_size = 8
config.weighting.hidden = 8
config.weighting.interval = int(sys.argv[1])
state = place_replicated(create_train_state(config, jax.random.key(0)))
batch = {"image": np.ones((8, 8, 8, 3), np.uint8), "label": np.arange(8, dtype=np.int32)}
batches = device_batches(iter([batch] * 6))
step = step_on_devices(config, 10)
compiled = []
handler = logging.Handler()
handler.emit = lambda record: compiled.append(record.getMessage())
logging.getLogger("jax").addHandler(handler)
with jax.log_compiles():
    for _ in range(3):
        state, metrics = step(state, next(batches))
        jax.block_until_ready(metrics)
        print(sum(line.startswith("Finished XLA compilation") for line in compiled))
"""


def run_on_devices(count, script, *arguments):
    """Lines that `script` prints in a process with `count` simulated devices."""
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"}
    paths = {"PYTHONPATH": str(Path(__file__).parents[1])}
    completed = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=Path(__file__).parents[2],
        env=os.environ | flags | paths | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert completed.returncode == 0, completed.stderr
    return completed.stdout.splitlines()


def test_diverged_copies_are_found_on_four_devices():
    assert run_on_devices(4, ON_FOUR_DEVICES) == [
        "[]",
        "[2]",
        "[1, 3]",
        "[3]",
        "[1]",
        "[[[0, 1]], [[2, 3]], [[4, 5]], [[6, 7]]]",
    ]


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("interval", [1, 2])
def test_halves_and_iterations_share_one_program(devices, interval):
    # The update, and the join of the metrics of both halves.
    lines = run_on_devices(devices, COMPILED_IN_THREE_ITERATIONS, str(interval))
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
