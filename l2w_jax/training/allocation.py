"""Which exit each sample is meant for at run time (Han et al., ECCV 2022, section 3.3)."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from l2w_jax.models.collectives import axis_size, gather_rows, own_rows, sum_over


def allocate(confidences: jax.Array, shares: np.ndarray) -> jax.Array:
    """Which exit each sample of the meta half is meant for at run time (section 3.3).

    Exit 1 takes the floor(N·p_1) samples that it is most confident in; exit k < K the floor(N·p_k)
    most confident of those that are left; exit K the rest. In a tie the lower index goes first.

    Args:
        confidences: [N, K], without NaN: a network that gives one has failed, and its loss says so.
        shares: p, float32 [K].

    Returns:
        Boolean [N, K], with one True in each row.
    """
    num_samples = len(confidences)
    counts = [math.floor(np.float32(num_samples) * np.float32(p)) for p in shares[:-1]]
    left = jnp.ones(num_samples, bool)
    taken = []
    for k, count in enumerate(counts):
        order = jnp.argsort(jnp.where(left, -confidences[:, k], jnp.inf), stable=True)
        takes = jnp.zeros(num_samples, bool).at[order[:count]].set(True)
        taken.append(takes)
        left &= ~takes
    return jnp.stack([*taken, left], axis=1)


def allocate_globally(
    confidences: jax.Array, shares: np.ndarray, axis_name: str | None
) -> jax.Array:
    """This device's rows [n, K] of `allocate` over the samples of all devices of the axis."""
    return own_rows(axis_name, allocate(gather_rows(axis_name, confidences), shares))


def allocated_mean(
    losses: jax.Array, allocation: jax.Array, axis_name: str | None = None
) -> jax.Array:
    """Σ_k mean of l over the samples that are allocated to exit k; an exit without any adds 0.

    Args:
        losses: [n, K], of this device.
        allocation: boolean [n, K], of this device.
        axis_name: device axis over which the samples of an exit are counted.

    Returns:
        A number whose mean over the devices is the value for all their samples: each device's sum
        is divided by the count over all of them, and multiplied by the number of devices.
    """
    counts = sum_over(axis_name, allocation.sum(axis=0))
    sums = jnp.where(allocation, losses, 0).sum(axis=0)
    return axis_size(axis_name) * (sums / jnp.maximum(counts, 1)).sum()
