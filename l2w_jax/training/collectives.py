"""Means and rows over a device axis, or of the one device where there is no axis."""

from typing import TypeVar

import jax

from l2w_jax.models.exchange import axis_size, gathered, sum_over

Tree = TypeVar("Tree")


def mean_over(axis_name: str | None, tree: Tree) -> Tree:
    """Mean of every array over the devices of the axis.

    Each divides its own, in the kernel that makes it: to divide the sum takes a kernel an array.
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
