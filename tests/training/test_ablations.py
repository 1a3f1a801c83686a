"""Weights and a meta loss without a predictor: what each promises, on one device and on several."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from l2w_jax.models.exit_shares import exit_shares
from l2w_jax.training.ablations import AllocatedWeights, HandSetWeights
from l2w_jax.training.losses import weighted_loss

LOSSES = hnp.arrays(np.float32, (12, 3), elements=st.floats(0, 5, width=32))


@given(losses=LOSSES)
def test_allocated_weights_make_the_loss_a_mean_over_the_samples_of_each_exit(losses):
    confidences = np.exp(-losses)
    weights = AllocatedWeights(exit_shares(0.75, 3))({}, jnp.asarray(losses), confidences)
    assert ((np.asarray(weights) > 0).sum(axis=1) == 1).all()
    means = [losses[np.asarray(weights)[:, k] > 0, k].mean() for k in range(3)]
    np.testing.assert_allclose(weighted_loss(weights, losses), sum(means), rtol=1e-5, atol=1e-6)


@given(losses=LOSSES)
def test_hand_set_weights_average_one_over_samples_and_over_exits(losses):
    weights = HandSetWeights(0.8)({}, jnp.asarray(losses), None)
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=1e-6)
    np.testing.assert_allclose(weights.mean(axis=1), 1, atol=1e-6)
    assert np.abs(weights - 1).max() <= 0.8 + 1e-6


def test_hand_set_weights_move_hard_samples_to_late_exits():
    losses = jnp.array([[0.1, 0.1], [3.0, 3.0], [1.0, 1.0]])
    weights = HandSetWeights(0.5)({}, losses, None)
    np.testing.assert_allclose(weights, [[1.5, 0.5], [0.5, 1.5], [1, 1]])
    # What counts is the mean over the exits: here the first exit orders the samples the other way.
    losses = jnp.array([[0.3, 0.1], [0.1, 4.0], [0.2, 1.0]])
    weights = HandSetWeights(0.5)({}, losses, None)
    np.testing.assert_allclose(weights, [[1.5, 0.5], [0.5, 1.5], [1, 1]])


@pytest.mark.parametrize(
    "weigh",
    [
        lambda axis: AllocatedWeights(exit_shares(0.75, 3), axis),
        lambda axis: HandSetWeights(0.8, axis),
    ],
)
def test_weights_without_a_predictor_are_those_of_the_whole_batch(weigh):
    losses = jax.random.uniform(jax.random.key(0), (4, 6, 3))
    on_device = jax.vmap(lambda x: weigh("device")({}, x, -x), axis_name="device")
    over_devices = jax.jit(on_device)(losses)
    whole = losses.reshape(24, 3)
    expected = jax.jit(lambda x: weigh(None)({}, x, -x))(whole)
    np.testing.assert_allclose(over_devices.reshape(24, 3), expected, rtol=1e-6)
