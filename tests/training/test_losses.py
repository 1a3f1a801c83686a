"""Losses of the exits: against their formulas, and never in less than float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2w_jax.training.losses import confidences_of_logits, cross_entropy, weighted_loss

LOGITS = jax.random.normal(jax.random.key(0), (3, 5, 4))
LABELS = jnp.array([0, 3, 1, 1, 2])


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_cross_entropy_is_that_of_soft_labels(smoothing):
    soft = (1 - smoothing) * np.eye(4)[LABELS] + smoothing / 4
    probabilities = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=-1, keepdims=True)
    expected = -(soft * np.log(probabilities)).sum(axis=-1).T
    np.testing.assert_allclose(cross_entropy(LOGITS, LABELS, smoothing), expected, rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_logits_in_bfloat16_have_the_losses_and_confidences_of_the_same_numbers(smoothing):
    half = LOGITS.astype(jnp.bfloat16)
    same = half.astype(jnp.float32)
    losses, confidences = cross_entropy(half, LABELS, smoothing), confidences_of_logits(half)
    assert losses.dtype == confidences.dtype == jnp.float32
    np.testing.assert_array_equal(losses, cross_entropy(same, LABELS, smoothing))
    np.testing.assert_array_equal(confidences, confidences_of_logits(same))


def test_weighted_loss_is_a_mean_over_samples_and_a_sum_over_exits():
    weights = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    losses = jnp.array([[0.5, 1.0], [1.5, 2.0]])
    assert weighted_loss(weights, losses) == (0.5 + 4.5) / 2 + (2 + 8) / 2
