"""Temperatures that make confidences mean what they say, and how far from it they were."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from small_networks import OneLayer

from l2w_jax.early_exit import EarlyExitPredictor
from l2w_jax.early_exit.calibration import (
    adaptive_calibration_error,
    calibrated,
    calibration_error,
    calibration_table,
    fit_temperature,
)

TEMPERATURES = [0.5, 2.0, 3.0]


def labels_drawn_from(logits, rng):
    """One label a row, as probable as the logits say."""
    return (logits + rng.gumbel(size=logits.shape)).argmax(axis=-1)


@pytest.mark.parametrize("temperature", [0.1, 0.4, 1, 3, 10])
def test_the_temperature_is_found_that_logits_were_heated_by(temperature):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, 5))
    labels = labels_drawn_from(logits, rng)
    found = fit_temperature((temperature * logits).astype(np.float32), labels)
    assert found == pytest.approx(temperature, rel=0.03)


@pytest.mark.parametrize("scale", [1, 5, 1e4])
@pytest.mark.parametrize("wrong", [0, 1])
def test_an_exit_that_is_always_right_or_wrong_stays_as_sure_as_it_is(scale, wrong):
    """By a few images, it may be as sure as it should be."""
    logits = np.eye(4) * scale
    assert fit_temperature(logits, np.roll(np.arange(4), wrong)) == 1


def test_calibration_removes_what_is_measured():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, 5))
    labels = labels_drawn_from(logits, rng)
    errors = {}
    for temperature in (1, 1 / 3):
        probs = np.asarray(jax.nn.softmax(logits / temperature))
        correct = probs.argmax(-1) == labels
        (row,) = calibration_table(probs.max(-1)[None], correct[None])
        errors[temperature] = row
    assert errors[1]["ece"] < 0.015 and errors[1]["adaptive_ece"] < 0.015
    assert errors[1 / 3]["ece"] > 0.1 and errors[1 / 3]["adaptive_ece"] > 0.1


def test_errors_are_those_of_a_count_by_hand():
    confidences = np.float32([0.55, 0.65, 0.95, 0.95])
    correct = np.array([True, False, True, False])
    # Two bins of [0, 1] hold none and all; two of equally many hold two each.
    assert calibration_error(confidences, correct, 2) == pytest.approx(1.1 / 4)
    assert adaptive_calibration_error(confidences, correct, 2) == pytest.approx(1.1 / 4)
    assert calibration_error(confidences, correct, 10) == pytest.approx((0.45 + 0.65 + 0.9) / 4)
    assert adaptive_calibration_error(confidences, correct, 4) == pytest.approx(2.1 / 4)
    assert calibration_error(np.float32([0, 1]), np.array([False, True])) == 0
    # Whatever their order is.
    order = [2, 0, 3, 1]
    for error, bins in ((calibration_error, 10), (adaptive_calibration_error, 2)):
        found = error(confidences[order], correct[order], bins)
        assert found == pytest.approx(error(confidences, correct, bins))


def test_a_bin_ends_with_its_upper_edge():
    confidences, correct = np.float32([0.5, 0.9]), np.array([True, False])
    assert calibration_error(confidences, correct, 2) == pytest.approx((0.5 + 0.9) / 2)
    assert calibration_error(confidences, ~correct, 2) == pytest.approx((0.5 + 0.1) / 2)


def test_a_calibrated_network_has_the_same_variables_and_cooler_logits(tiny_network):
    model, variables = tiny_network
    images = np.random.default_rng(0).normal(0, 1, (64, 8, 8, 3)).astype(np.float32)
    cooler = calibrated(model, TEMPERATURES)
    assert cooler.num_exits == 3
    logits = np.asarray(model.apply(variables, images, train=False))
    found = np.asarray(cooler.apply(variables, images, train=False))
    np.testing.assert_allclose(found, logits / np.reshape(TEMPERATURES, (3, 1, 1)), rtol=1e-5)
    assert hash(cooler) == hash(calibrated(model, TEMPERATURES))

    plain = EarlyExitPredictor(model, variables, [-1e8] * 3, batch_sizes=[64])(images)
    decisions = EarlyExitPredictor(cooler, variables, [-1e8] * 3, batch_sizes=[64])(images)
    np.testing.assert_array_equal(decisions.labels, plain.labels)
    expected = jax.nn.softmax(logits[0] / TEMPERATURES[0]).max(axis=-1)
    np.testing.assert_allclose(decisions.confidences, expected, rtol=1e-5)


class OneLayerOfItsType(OneLayer):
    def setup(self):
        self.head = nn.Dense(10, dtype=self.dtype)


def test_a_calibrated_network_computes_in_its_own_type_and_divides_in_float32():
    model = OneLayerOfItsType(dtype=jnp.bfloat16)
    images = jax.random.normal(jax.random.key(1), (4, 8, 8, 3), jnp.bfloat16)
    variables = model.init(jax.random.key(0), images, train=False)
    logits, found = (
        network.apply(variables, images, train=False)
        for network in (model, calibrated(model, [3.0]))
    )
    assert (logits.dtype, found.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_array_equal(found, logits.astype(jnp.float32) / 3)


def test_without_temperatures_a_network_is_left_alone(tiny_network):
    assert calibrated(tiny_network[0], None) is tiny_network[0]
