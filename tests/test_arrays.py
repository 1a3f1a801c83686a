"""Arrays are told from others by name, type, shape and bytes, and by nothing else."""

import jax.numpy as jnp
import numpy as np
import pytest

from l2w_jax import arrays


def test_the_first_array_that_differs_is_named_with_what_both_have():
    here = arrays.array_types({"head": {"bias": jnp.zeros(3), "kernel": jnp.zeros((2, 3))}})
    there = arrays.array_types({"head": {"bias": jnp.zeros(3, jnp.bfloat16)}})
    assert arrays.first_difference(there, here) == (
        "head/bias is bfloat16[3] there and float32[3] in this run"
    )
    del there["head/bias"], here["head/bias"]
    assert arrays.first_difference(there, here) == (
        "head/kernel is missing there and float32[2, 3] in this run"
    )
    with pytest.raises(ValueError, match="no difference"):
        arrays.first_difference(here, here)


def test_a_checksum_is_of_the_numbers_whatever_their_layout_in_memory():
    array = np.arange(6.0).reshape(2, 3)
    assert arrays.array_checksum(array) == arrays.array_checksum(np.asfortranarray(array))
    assert arrays.array_checksum(array) != arrays.array_checksum(-array)


def test_the_checksum_of_a_tree_tells_one_number_and_the_arrays_places():
    tree = {"bias": jnp.zeros(3), "kernel": jnp.ones(3)}
    same = {"kernel": np.ones(3, np.float32), "bias": np.zeros(3, np.float32)}
    assert arrays.tree_checksum(tree) == arrays.tree_checksum(same)
    others = [
        {"bias": jnp.ones(3), "kernel": jnp.zeros(3)},
        {"bias": jnp.zeros(3), "kernel": jnp.array([1.0, 1.0, 1.0 + 1e-6])},
        {"bias": jnp.zeros((3, 1)), "kernel": jnp.ones(3)},
        {"bias": jnp.zeros(3, jnp.int32), "kernel": jnp.ones(3)},
    ]
    assert len({arrays.tree_checksum(other) for other in [tree, *others]}) == 5
