"""Moving state and batches onto the devices, ahead of the step that needs them."""

import collections
import concurrent.futures
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from l2w_jax.training import DEVICE_AXIS

# The step that runs, the batch it will be followed by, and one that is being made.
_BATCHES_AHEAD = 2


def place_replicated(tree: Any) -> Any:
    """A pytree on all devices of all processes, where the pmapped step leaves its results.

    With the state elsewhere before the first step, that step would be compiled a second time.
    """
    return jax.device_put(tree, NamedSharding(_mesh(), PartitionSpec()))


def device_batches(batches: Iterator[Mapping[str, np.ndarray]]) -> Iterator[dict[str, jax.Array]]:
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


def _mesh() -> Mesh:
    return Mesh(np.array(jax.devices()), (DEVICE_AXIS,))
