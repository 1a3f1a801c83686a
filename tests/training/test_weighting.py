"""Weights: what their constraints promise, on one device and on several."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from l2w_jax.training.weighting import centre, predictor_inputs

MATRICES = hnp.arrays(np.float32, (6, 3), elements=st.floats(-1, 1, width=32))
CONSTRAINTS = {"row": 0, "col": 1, "mat": None}


@given(u=MATRICES, constraint=st.sampled_from(sorted(CONSTRAINTS)))
def test_the_mean_that_a_constraint_names_is_zero(u, constraint):
    centred = centre(jnp.asarray(u), constraint)
    np.testing.assert_allclose(centred.mean(axis=CONSTRAINTS[constraint]), 0, atol=1e-6)


@pytest.mark.parametrize("constraint", sorted(CONSTRAINTS))
def test_constraint_holds_over_the_samples_of_all_devices(constraint):
    u = jax.random.normal(jax.random.key(0), (4, 6, 3))
    over_devices = jax.vmap(lambda u: centre(u, constraint, "device"), axis_name="device")(u)
    expected = centre(u.reshape(24, 3), constraint)
    np.testing.assert_allclose(over_devices.reshape(24, 3), expected, atol=1e-6)


def test_both_inputs_are_side_by_side_losses_first():
    losses, confidences = jnp.zeros((4, 2)), jnp.ones((4, 2))
    both = predictor_inputs("both", losses, confidences)
    np.testing.assert_array_equal(both[0], [0, 0, 1, 1])
