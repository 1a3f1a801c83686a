"""Types of numbers."""

import jax
import jax.numpy as jnp
from numpy.typing import ArrayLike


def parameter_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """Type of the parameters of a network that computes in `dtype`: never less than float32."""
    return jnp.promote_types(dtype, jnp.float32)


def at_least_float32(x: ArrayLike) -> jax.Array:
    """`x` in float32, or as it is where it is wider and JAX takes the wider type."""
    # Else NumPy's float64 would be computed in float32, but with constants of float64.
    x = jnp.asarray(x)
    return x.astype(parameter_dtype(x.dtype))
