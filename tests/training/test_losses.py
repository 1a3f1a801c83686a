"""Losses of the exits: against their formulas, and never in less than float32."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_step import compiled_step

from l2w_jax.models import create_network
from l2w_jax.training import create_train_state
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
def test_a_label_that_is_no_class_has_no_loss(smoothing):
    losses = cross_entropy(LOGITS, jnp.array([-1, 0, 3, 4, -4]), smoothing)
    np.testing.assert_array_equal(np.isnan(losses), np.array([[1, 0, 0, 1, 1]] * 3).T)


@pytest.mark.parametrize(
    ("labels", "given"),
    [
        (np.float32(LABELS), "float32[5]"),
        (np.eye(4, dtype=np.int32)[LABELS], "int32[5, 4]"),
        (LABELS[:, None], "int32[5, 1]"),
        (LABELS[:3], "int32[3]"),
        (LABELS > 1, "bool[5]"),
    ],
)
def test_labels_that_are_not_an_integer_of_each_image_are_refused(labels, given):
    message = f"labels are {given}; integers [N] are expected, for the N = 5 images of a pass"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        cross_entropy(LOGITS, labels)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_refuses_fewer_labels_than_images(small_config, make_batch, accumulation, x64):
    small_config.optimizer.accumulation = accumulation
    state, batch = create_train_state(small_config, jax.random.key(0)), make_batch(0, 16)
    # One of either half is missing.
    message = "labels are int64[7]; integers [N] are expected, for the N = 8 images of a pass"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        compiled_step(small_config, 100)(state, {**batch, "label": batch["label"][:14]})


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


def test_a_step_trains_and_judges_by_smoothed_losses(small_config, make_batch, x64):
    smoothing = 0.2
    small_config.optimizer.label_smoothing = smoothing
    small_config.weighting.objective = "vanilla"
    # θ stays where it is, so that the losses of both halves and the meta loss are at the same one.
    small_config.optimizer.learning_rate = 1e-30
    state = create_train_state(small_config, jax.random.key(0))
    batch = make_batch(0, 12)
    _, metrics = compiled_step(small_config, 100)(state, batch)

    @jax.jit
    def losses_of(images, labels):
        logits, _ = create_network(small_config).apply(
            state.variables, images, train=True, mutable=["batch_stats"]
        )
        return cross_entropy(logits, labels, smoothing)

    halves = (slice(6), slice(6, 12))
    losses = np.concatenate([losses_of(batch["image"][h], batch["label"][h]) for h in halves])
    np.testing.assert_allclose(metrics["losses"], losses, rtol=1e-10)
    np.testing.assert_allclose(metrics["loss"], losses.mean(axis=0), rtol=1e-10)
    np.testing.assert_allclose(metrics["meta_loss"], losses.mean(axis=0).sum(), rtol=1e-10)
