"""Means, sums and gathers over a device axis, or over nothing where there is none."""

from typing import TypeVar

import jax

from l2w_jax.models.exchange import gathered

Tree = TypeVar("Tree")


def axis_size(axis_name: str | None) -> int:
    """Number of devices on the axis; 1 without an axis."""
    return 1 if axis_name is None else jax.lax.axis_size(axis_name)


def mean_over(axis_name: str | None, tree: Tree) -> Tree:
    """Mean of every array over the devices of the axis.

    Each divides its own, in the kernel that makes it: to divide the sum takes a kernel an array.
    """
    if axis_name is None:
        return tree
    return sum_over(axis_name, jax.tree.map(lambda x: x / axis_size(axis_name), tree))


def sum_over(axis_name: str | None, tree: Tree) -> Tree:
    """Sum of every array over the devices of the axis."""
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


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
