"""Sums, means and rows over a device axis, or of a single device where there is no axis."""

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

    It is a sum in which each device has a place of its own, since compilers join sums that are made
    side by side, but not gathers; and a TPU's compiler leads a gather through all the convolutions
    beside it, each of which is then another kernel to compile.
    """
    is_own = jnp.arange(axis_size(axis_name)) == jax.lax.axis_index(axis_name)

    def place(x: jax.Array) -> jax.Array:
        return jnp.where(is_own.reshape(-1, *[1] * x.ndim), x, jnp.zeros((), x.dtype))

    return sum_over(axis_name, jax.tree.map(place, tree))


def mean_over(axis_name: str | None, tree: Tree) -> Tree:
    """Mean of every array over the devices of the axis.

    Each device divides its own, in the kernel that makes it: dividing the sum takes a kernel for
    each array.
    """
    if axis_name is None:
        return tree
    return sum_over(axis_name, jax.tree.map(lambda x: x / axis_size(axis_name), tree))


def gather_rows(axis_name: str | None, x: jax.Array) -> jax.Array:
    """Rows of all devices, in their order: [n, ...] -> [devices · n, ...]."""
    return x if axis_name is None else gathered(axis_name, x).reshape(-1, *x.shape[1:])


def own_rows(axis_name: str | None, x: jax.Array) -> jax.Array:
    """The rows of this device, the inverse of `gather_rows`: [devices · n, ...] -> [n, ...]."""
    if axis_name is None:
        return x
    count = x.shape[0] // axis_size(axis_name)
    start = jax.lax.axis_index(axis_name) * count
    return jax.lax.dynamic_slice_in_dim(x, start, count)
