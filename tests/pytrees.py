"""When two pytrees hold one result."""

import jax
import numpy as np


def assert_close(ours, theirs):
    """Of float64, computed in two ways."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), ours, theirs)


def assert_bit_identical(state, other):
    assert jax.tree.structure(state) == jax.tree.structure(other)
    for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True):
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()
