"""What devices tell one another."""

from typing import TypeVar

import jax
import jax.numpy as jnp

Tree = TypeVar("Tree")


def gathered(axis_name: str, tree: Tree) -> Tree:
    """The arrays of every device of the axis, in their order: [...] -> [devices, ...].

    It is a sum over places of their own, since compilers join sums that are made side by side, not
    gathers; and a TPU's leads a gather through all the convolutions beside it, each of which then
    is another kernel to compile.
    """
    is_own = jnp.arange(jax.lax.axis_size(axis_name)) == jax.lax.axis_index(axis_name)

    def place(x: jax.Array) -> jax.Array:
        return jnp.where(is_own.reshape(-1, *[1] * x.ndim), x, jnp.zeros((), x.dtype))

    return jax.lax.psum(jax.tree.map(place, tree), axis_name)
