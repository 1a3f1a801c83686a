"""What the devices of an axis tell one another."""

from typing import TypeVar

import jax
import jax.numpy as jnp

Tree = TypeVar("Tree")


def axis_size(axis_name: str | None) -> int:
    """Number of devices on the axis; 1 without an axis."""
    return 1 if axis_name is None else jax.lax.axis_size(axis_name)


def sum_over(axis_name: str | None, tree: Tree) -> Tree:
    """Sum of every array over the devices of the axis; without an axis the arrays themselves."""
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def gathered(axis_name: str, tree: Tree) -> Tree:
    """The arrays of every device of the axis, in their order: [...] -> [devices, ...].

    It is a sum over places of their own, since compilers join sums that are made side by side, not
    gathers; and a TPU's leads a gather through all the convolutions beside it, each of which then
    is another kernel to compile.
    """
    is_own = jnp.arange(axis_size(axis_name)) == jax.lax.axis_index(axis_name)

    def place(x: jax.Array) -> jax.Array:
        return jnp.where(is_own.reshape(-1, *[1] * x.ndim), x, jnp.zeros((), x.dtype))

    return sum_over(axis_name, jax.tree.map(place, tree))
