"""Layers compute what their simplest formulation does."""

import jax
import numpy as np
import pytest
from jax import lax

from l2w_jax.models.layers import convolve

OPTIONS = {
    "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
    "lhs_dilation": (1, 1),
    "rhs_dilation": (1, 1),
    "feature_group_count": 1,
    "precision": lax.Precision.HIGHEST,
}


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_and_its_gradients_are_those_of_lax(size, stride):
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (2, 7, 6, 5))
    kernel = jax.random.normal(keys[1], (size, size, 5, 4))
    padding = [((size - 1) // 2,) * 2] * 2

    def value_and_gradients(function):
        y, pull_back = jax.vjp(
            lambda x, kernel: function(x, kernel, (stride, stride), padding, **OPTIONS), x, kernel
        )
        return y, pull_back(y)

    ours, theirs = (value_and_gradients(f) for f in (convolve, lax.conv_general_dilated))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, theirs)
