"""Types of numbers."""

import jax
import jax.numpy as jnp


def parameter_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """Type of the parameters of a network that computes in `dtype`: never less than float32."""
    return jnp.promote_types(dtype, jnp.float32)


def at_least_float32(x: jax.Array) -> jax.Array:
    """`x` in float32, or as it is where it is wider."""
    return x.astype(parameter_dtype(x.dtype))
