"""Prints which copies of a replicated state differ, and the parts of a batch, device by device."""

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
