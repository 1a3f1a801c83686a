"""Copies of a replicated state that differ are found, wherever and in whatever type they differ."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from l2w_jax.devices import device_batches

ON_FOUR_DEVICES = """
import jax
import jax.numpy as jnp
import numpy as np
from l2w_jax.devices import device_batches, diverged_devices, place_replicated

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


def test_diverged_copies_are_found_on_four_devices():
    completed = subprocess.run(
        [sys.executable, "-c", ON_FOUR_DEVICES],
        cwd=Path(__file__).parents[1],
        env=os.environ
        | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"},
        capture_output=True,
        text=True,
    )
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout.splitlines() == [
        "[]",
        "[2]",
        "[1, 3]",
        "[3]",
        "[1]",
        "[[[0, 1]], [[2, 3]], [[4, 5]], [[6, 7]]]",
    ]


def test_batches_come_in_order_and_a_fault_in_the_source_comes_through():
    def source():
        for index in range(5):
            yield {"label": np.full(4, index, np.int32)}
        raise OSError("the disk is gone")

    batches = device_batches(source())
    assert [int(next(batches)["label"][0, 0]) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)
