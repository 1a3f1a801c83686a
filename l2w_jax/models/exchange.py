"""What devices tell one another."""

import jax
import jax.numpy as jnp


def gathered(axis_name: str, x: jax.Array) -> jax.Array:
    """`x` of every device of the axis, in their order: [...] -> [devices, ...].

    It is a sum over places of their own, since compilers join sums that are made side by side, not
    gathers; and a TPU's leads a gather through all the convolutions beside it, each of which then
    is another kernel to compile.
    """
    devices = jnp.arange(jax.lax.axis_size(axis_name)).reshape(-1, *[1] * x.ndim)
    places = jnp.where(devices == jax.lax.axis_index(axis_name), x, jnp.zeros((), x.dtype))
    return jax.lax.psum(places, axis_name)
