"""The arrays of a tree by their names: their types, and whether they match those of another."""

import hashlib
from typing import Any

import jax
import numpy as np

PyTree = Any


def named_arrays(tree: PyTree) -> dict[str, Any]:
    """The arrays of a tree by paths such as "params/head/kernel", in the order of its leaves."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): array
        for path, array in jax.tree_util.tree_leaves_with_path(tree)
    }


def array_types(tree: PyTree) -> dict[str, str]:
    """The element type and the shape of every array of a tree, by its path."""
    return {name: array_type(array) for name, array in named_arrays(tree).items()}


def first_difference(found: dict[str, str], wanted: dict[str, str]) -> str:
    """Names the first array in which two results of `array_types`, which must differ, do so."""
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            return (
                f"{name} is {found.get(name, 'missing')} there and "
                f"{wanted.get(name, 'missing')} in this run"
            )
    raise ValueError("no difference")


def array_type(array: Any) -> str:
    """The element type and the shape of an array."""
    return f"{np.dtype(array.dtype).name}{list(array.shape)}"


def tree_checksum(tree: PyTree) -> str:
    """The SHA-256 of the names, types, shapes and bytes of all arrays of a tree."""
    digest = hashlib.sha256()
    for name, array in named_arrays(jax.device_get(tree)).items():
        digest.update(f"{name} {array_type(array)} {array_checksum(array)}\n".encode())
    return digest.hexdigest()


def array_checksum(array: np.ndarray) -> str:
    """The SHA-256 of the bytes of an array, whatever their layout in memory."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
