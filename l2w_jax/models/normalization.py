"""Batch norm's arithmetic, over the batch of all devices.

Maps are [..., C]; means, variances, scales and shifts are [C], in at least float32.
"""

import functools

import jax
import jax.numpy as jnp

from l2w_jax.models.collectives import axis_size, gathered, sum_over
from l2w_jax.models.precision import at_least_float32

EPSILON = 1e-5


def normalize_with(
    x: jax.Array, mean: jax.Array, variance: jax.Array, scale: jax.Array, bias: jax.Array
) -> jax.Array:
    """γ·(x - mean) / sqrt(variance + ε) + β, in the type of x."""
    factor = jax.lax.rsqrt(variance + EPSILON) * scale
    return ((x - mean) * factor + bias).astype(x.dtype)


# Jitted so that layers of the same shape are traced, differentiated and lowered once.
@functools.partial(jax.jit, static_argnums=3)
@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def batch_normalize(
    x: jax.Array, scale: jax.Array, bias: jax.Array, axis_name: str | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x normalised by its own mean and variance over all but the last axis, and those two."""
    is_rounded = x.dtype == jnp.bfloat16
    statistics = _statistics_in_one_pass if is_rounded else _statistics_in_two_passes
    mean, variance = statistics(at_least_float32(x), axis_name)
    return normalize_with(x, mean, variance, scale, bias), mean, variance


@batch_normalize.__wrapped__.defjvp
def _tangents_of_normalized(axis_name, primals, tangents):
    """dy = γr·dx + (x - m)·r·(dγ - γr²·mean((x - m)·dx)) + (dβ - γr·mean(dx)).

    m is the mean and r = 1 / sqrt(variance + ε). It takes two sums over the batch, and as many in
    the transposed map, which is the gradient: half of what differentiating each operation takes,
    and sums are most of a network's kernels.
    """
    x, scale, _ = primals
    dx, dscale, dbias = tangents
    y, mean, variance = batch_normalize(*primals, axis_name)
    inverse = jax.lax.rsqrt(variance + EPSILON)
    deviations = at_least_float32(x) - mean
    dx = at_least_float32(dx)
    factor = inverse * scale
    count = x.size // x.shape[-1] * axis_size(axis_name)
    sums = sum_over(axis_name, (_sum_per_channel(dx), _sum_per_channel(deviations * dx)))
    dmean, half_dvariance = (per_channel / count for per_channel in sums)
    slope = inverse * (dscale - factor * inverse * half_dvariance)
    shift = dbias - factor * dmean
    dy = (factor * dx + deviations * slope + shift).astype(y.dtype)
    return (y, mean, variance), (dy, dmean, 2 * half_dvariance)


def _statistics_in_two_passes(x: jax.Array, axis_name: str | None) -> tuple[jax.Array, jax.Array]:
    """Mean and variance of every channel over the batch of all devices, [..., C] -> [C] each.

    The variance is the mean squared deviation rather than E[x²] - E[x]²: the latter cancels in
    float32, and the meta-gradient amplifies what is lost. Devices, which have equally many images,
    send one another their statistics in one exchange; the variance is the mean of their variances
    plus the variance of their means (Chan et al., 1979).
    """
    count = x.size // x.shape[-1]
    total = _sum_per_channel(x)
    mean = total / count
    deviations = x - mean
    squares = _sum_per_channel(jnp.square(deviations))
    if axis_name is None:
        return mean, squares / count
    # What rounding took from a large mean would be missing in its deviation from the others.
    remainder = _sum_per_channel(deviations)
    sums, remainders, squares = gathered(axis_name, (total, remainder, squares))
    means = sums / count
    offsets = (means - means[0]) + remainders / count
    offset = offsets.mean(axis=0)
    # Offsets are small and one of them is 0: this loses a bit for each doubling of the devices.
    spread = jnp.square(offsets).mean(axis=0) - jnp.square(offset)
    return means[0] + offset, squares.mean(axis=0) / count + spread


def _statistics_in_one_pass(x: jax.Array, axis_name: str | None) -> tuple[jax.Array, jax.Array]:
    """As `_statistics_in_two_passes`, for x that was rounded to bfloat16.

    The variance is E[x²] - E[x]²: what its cancelling loses is less than the error from the
    rounding of x, by up to 2⁻⁹·|x|.
    """
    count = x.size // x.shape[-1] * axis_size(axis_name)
    sums = _sum_per_channel(x), _sum_per_channel(jnp.square(x))
    if axis_name is not None:
        # Else one of the sums may wait for what reads x next, and be an exchange of its own.
        sums = sum_over(axis_name, jax.lax.optimization_barrier(sums))
    mean, square = (per_channel / count for per_channel in sums)
    return mean, jnp.maximum(square - jnp.square(mean), 0)


def _sum_per_channel(x: jax.Array) -> jax.Array:
    """Sum of every channel over the batch of this device, [..., C] -> [C]."""
    return x.sum(axis=tuple(range(x.ndim - 1)))
