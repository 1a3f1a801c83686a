"""In how many parts a device must take its images for a step to fit into its memory."""

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from l2w_jax.config.choices import updates_per_iteration
from l2w_jax.errors import UserError, is_of_memory
from l2w_jax.run.devices import device_batches, place_replicated, step_on_devices
from l2w_jax.run.log import say
from l2w_jax.run.processes import of_all
from l2w_jax.training.state import untrained_state
from l2w_jax.training.weighting import is_pipelined


def with_parts_that_fit(config: ConfigDict, total_steps: int) -> ConfigDict:
    """The configuration with a number of parts in place of `optimizer.accumulation = 0`.

    The step of the run is compiled with 1, 2, 4 ... parts until it fits; it is then in the cache of
    compiled programs. Where JAX knows no limit, as on a CPU, it takes one part.

    Args:
        config: a run's configuration, checked.
        total_steps: iterations of the run.

    Raises:
        UserError: no number of parts fits.
    """
    if config.optimizer.accumulation:
        return config
    limit = memory_of_device()
    if limit is None:
        say("optimizer.accumulation=1: JAX knows no limit of this device's memory, as of a CPU's")
    else:
        say("optimizer.accumulation=0: compiles the step to see in how many parts it fits")
    for parts in numbers_of_parts(config, jax.device_count(), first=1):
        tried = with_parts(config, parts)
        if limit is None or _needs(tried, total_steps) <= limit:
            break
    else:
        raise UserError(
            f"config.optimizer.accumulation: 0 is not allowed: in {parts} parts, the most that "
            f"dataset.batch_size={config.dataset.batch_size} has, a step still needs more than a "
            f"device's {limit / 1e9:.1f} GB; try --config.model.dtype=bfloat16 or more devices"
        )
    if parts > 1:
        say(
            f"optimizer.accumulation={parts}: in fewer parts a step needs more than a device's "
            f"{limit / 1e9:.1f} GB; batch norm sees one part at a time"
        )
    elif limit is not None:
        say(f"optimizer.accumulation=1: a step fits into a device's {limit / 1e9:.1f} GB")
    return tried


def with_parts(config: ConfigDict, parts: int) -> ConfigDict:
    """The configuration with this `optimizer.accumulation`."""
    config = config.copy_and_resolve_references()
    config.optimizer.accumulation = parts
    return config


def numbers_of_parts(config: ConfigDict, num_devices: int, first: int) -> Iterator[int]:
    """`first` and its doubles, as long as they divide what a device trains on in an update."""
    halves = updates_per_iteration(config.weighting.kind)
    samples = config.dataset.batch_size // (halves * num_devices)
    parts = first
    while samples % parts == 0:
        yield parts
        parts *= 2


def memory_of_device() -> float | None:
    """Bytes of memory that JAX may take of the smallest device; None where it knows no limit."""
    statistics = [device.memory_stats() or {} for device in jax.local_devices()]
    limits = [of_device.get("bytes_limit") for of_device in statistics]
    return None if None in limits else min(of_all(min(limits)))


def _needs(config: ConfigDict, total_steps: int) -> float:
    """Bytes of a device's memory that a step takes; infinitely many where it does not compile."""
    step = step_on_devices(config, total_steps)
    state = place_replicated(untrained_state(config, jax.random.key(config.seed)))
    lowered = step.update.lower(state, _black_batch(config), np.int32(0))
    try:
        memory = lowered.compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if not is_of_memory(error):
            raise
        return max(of_all(float("inf")))
    # The state is donated, and what comes back takes its place.
    return max(of_all(memory.argument_size_in_bytes + memory.temp_size_in_bytes))


def _black_batch(config: ConfigDict) -> dict[str, Any]:
    """A batch without images, placed as the run's are, so that one program takes both."""
    count, size = config.dataset.batch_size // jax.process_count(), config.dataset.image_size
    arrays = {
        "image": np.zeros((count, size, size, 3), np.uint8),
        "label": np.zeros(count, np.int32),
    }
    with contextlib.closing(device_batches(itertools.repeat(arrays))) as batches:
        batch = next(batches)
    return {**batch, "previous": batch} if is_pipelined(config.weighting) else batch
