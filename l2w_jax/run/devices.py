"""The devices: the step that runs on them, its state and batches, and whether all hold the same."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from l2w_jax.models.preprocessing import channel_statistics, normalize
from l2w_jax.training import (
    DEVICE_AXIS,
    TrainState,
    jit_train_step,
    make_train_step,
    pmap_train_step,
)
from l2w_jax.training.compiled import CompiledTrainStep
from l2w_jax.training.losses import Batch
from l2w_jax.training.step import Metrics, TrainStep

# Beside the batch of the step that runs: the next one, and one that is being made.
_BATCHES_AHEAD = 2


def step_on_devices(config: ConfigDict, total_steps: int) -> CompiledTrainStep:
    """An iteration over all devices, on batches of stored (uint8) images."""
    devices = jax.devices()
    step = step_on_stored(config, total_steps, devices)
    return jit_train_step(step) if len(devices) == 1 else pmap_train_step(step)


def step_on_stored(
    config: ConfigDict, total_steps: int, devices: Sequence[jax.Device]
) -> TrainStep:
    """An iteration of one of these devices, on its share of stored (uint8) images."""
    step = make_train_step(
        config,
        total_steps,
        axis_name=None if len(devices) == 1 else DEVICE_AXIS,
        # By a TPU's compiler, this saves memory traffic for MSDNet and adds to it for RANet.
        recompute=devices[0].platform == "tpu" and _is_msdnet(config),
    )
    mean, deviation = channel_statistics(config.dataset.name)

    def update(state: TrainState, batch: Batch, i: jax.Array) -> tuple[TrainState, Metrics]:
        return step.update(state, _normalized(batch, mean, deviation), i)

    return dataclasses.replace(step, update=update)


def _is_msdnet(config: ConfigDict) -> bool:
    return isinstance(config.model, ConfigDict) and config.model.name == "msdnet"


def place_replicated(tree: Any) -> Any:
    """A pytree on all devices of all processes, where the step leaves its results.

    With the state elsewhere before the first step, that step would be compiled a second time. All
    processes must hold the same: `jax.device_put` would have them compare every array, by a program
    of its own for each shape, which takes a full network a thousand exchanges.
    """
    sharding = NamedSharding(_mesh(), PartitionSpec())
    return jax.tree.map(
        lambda array: jax.make_array_from_process_local_data(sharding, np.asarray(array)), tree
    )


def device_batches(batches: Iterator[Mapping[str, np.ndarray]]) -> Generator[dict[str, jax.Array]]:
    """Yields the batches on the devices, made and sent by a thread while the devices compute.

    Args:
        batches: endless, arrays [n, ...] of this process, n a multiple of its devices.

    Yields:
        Arrays [devices, n per device, ...], sharded by device over all processes.
    """
    sharding = NamedSharding(_mesh(), PartitionSpec(DEVICE_AXIS))
    devices = jax.local_device_count()

    def next_placed() -> dict[str, jax.Array]:
        return {
            name: jax.make_array_from_process_local_data(
                sharding, array.reshape(devices, -1, *array.shape[1:])
            )
            for name, array in next(batches).items()
        }

    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as thread:
        ahead = collections.deque(thread.submit(next_placed) for _ in range(_BATCHES_AHEAD))
        while True:
            ahead.append(thread.submit(next_placed))
            yield ahead.popleft().result()


def with_previous(
    batches_from: Callable[[int], Generator[dict[str, jax.Array]]], first_step: int
) -> Generator[dict[str, Any]]:
    """Yields the batches after `first_step` steps, each with the one before it as "previous".

    So a run that goes on has the batch that an uninterrupted one would have kept. The very first
    batch has itself as "previous".

    Args:
        batches_from: from a number of steps done to the batches that follow, endless.
        first_step: steps done.
    """
    with contextlib.closing(batches_from(max(first_step - 1, 0))) as batches:
        previous = next(batches)
        if first_step == 0:
            yield {**previous, "previous": previous}
        for batch in batches:
            yield {**batch, "previous": previous}
            previous = batch


def diverged_devices(tree: Any) -> list[int]:
    """Positions of the devices whose copy of a replicated pytree differs from the first device's.

    JAX takes the copies of a replicated array to be equal without checking. A faulty device, or a
    forgotten average, makes them differ.
    """
    devices = np.arange(jax.local_device_count())
    checksums = np.asarray(_checksums_of_copies(tree, devices))
    return np.flatnonzero(checksums != checksums[0]).tolist()


@functools.partial(jax.pmap, axis_name=DEVICE_AXIS, in_axes=(None, 0), out_axes=None)
def _checksums_of_copies(tree: Any, device: jax.Array) -> jax.Array:
    """A checksum of each device's copy: uint32[devices of all processes]."""
    del device  # Only because pmap wants an argument that it can map.
    checksum = jnp.uint32(0)
    for array in jax.tree.leaves(tree):
        words = jnp.uint16 if array.dtype.itemsize == 2 else jnp.uint32
        bits = jax.lax.bitcast_convert_type(array, words).astype(jnp.uint32).ravel()
        # Odd multipliers, so that any one changed bit changes the sum; different ones, so that most
        # exchanged values do.
        places = 2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1
        checksum = 31 * checksum + (bits * places).sum(dtype=jnp.uint32)
    return jax.lax.all_gather(checksum, DEVICE_AXIS)


def _normalized(batch: Batch, mean: np.ndarray, deviation: np.ndarray) -> Batch:
    """The batch, and the previous one if it holds that, as a network reads it."""
    batch = {**batch, "image": normalize(batch["image"], mean, deviation)}
    if "previous" in batch:
        batch["previous"] = _normalized(batch["previous"], mean, deviation)
    return batch


def _mesh() -> Mesh:
    return Mesh(np.array(jax.devices()), (DEVICE_AXIS,))
