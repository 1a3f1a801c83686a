"""The two optimisers and the schedule, against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from l2w_jax.config import default_config
from l2w_jax.training import optimizers
from l2w_jax.training.optimizers import (
    adam,
    descend,
    learning_rate_factor,
    learning_rates,
    network_optimizer,
    sgd,
)
from l2w_jax.training.state import initial_opt_state

SGD = ConfigDict({"momentum": 0.9, "weight_decay": 0.01})


def run(optimizer, gradients, params, learning_rate):
    opt_state = optimizer.init(params)
    for gradient in gradients:
        params, opt_state = descend(optimizer, gradient, opt_state, params, learning_rate)
    return params


@pytest.mark.parametrize("optimizer", [sgd(SGD), network_optimizer(SGD, ("a",)), adam(0.01)])
def test_initial_state_is_the_optimisers_own(optimizer):
    params = {"a": jnp.ones((2, 3)), "b": jnp.ones(4)}
    ours, theirs = initial_opt_state(optimizer, params), optimizer.init(params)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_sgd_decays_every_parameter_into_its_momentum_buffer():
    gradients = np.array([[1.0, -2.0], [0.5, 0.25], [3.0, 1.0]])
    params, buffer = np.array([0.3, -0.7]), np.zeros(2)
    ours = run(sgd(SGD), jnp.asarray(gradients), jnp.asarray(params), 0.1)
    for gradient in gradients:
        buffer = 0.9 * buffer + gradient + 0.01 * params
        params = params - 0.1 * buffer
    np.testing.assert_allclose(ours, params, rtol=1e-6)


def test_frozen_parts_stay_whatever_takes_the_place_of_sgd(monkeypatch):
    monkeypatch.setattr(optimizers, "sgd", lambda config: optax.add_decayed_weights(1.0))
    params = {"a": jnp.ones(3), "b": jnp.ones(4)}
    after = run(network_optimizer(SGD, ("a",)), [params], params, 0.1)
    np.testing.assert_array_equal(after["a"], params["a"])
    np.testing.assert_allclose(after["b"], 0.8 * params["b"], rtol=1e-6)


def test_adam_decays_before_the_moments(x64):
    gradients = np.array([[1.0, -2.0], [0.5, 0.25], [3.0, 1.0]])
    params, first, second = np.array([0.3, -0.7]), np.zeros(2), np.zeros(2)
    ours = run(adam(0.5), jnp.asarray(gradients), jnp.asarray(params), 0.1)
    for t, gradient in enumerate(gradients, start=1):
        decayed = gradient + 0.5 * params
        first = 0.9 * first + 0.1 * decayed
        second = 0.999 * second + 0.001 * decayed**2
        unbiased = first / (1 - 0.9**t), second / (1 - 0.999**t)
        params = params - 0.1 * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8)
    np.testing.assert_allclose(ours, params, rtol=1e-10)


def test_cosine_falls_from_one_to_zero():
    factor = learning_rate_factor(ConfigDict({"schedule": "cosine"}), 100)
    np.testing.assert_allclose([factor(t) for t in (0, 50, 100)], [1, 0.5, 0], atol=1e-7)
    # Whoever goes on past the end trains no further.
    np.testing.assert_allclose([factor(t) for t in (101, 200)], [0, 0], atol=1e-7)
    assert factor(jnp.int32(25)) == pytest.approx((1 + np.cos(np.pi / 4)) / 2)


def test_multistep_divides_by_ten_at_each_milestone():
    config = ConfigDict({"schedule": "multistep", "milestones": (0.5, 0.75)})
    factor = learning_rate_factor(config, 8)
    rates = [float(factor(jnp.int32(t))) for t in range(8)]
    np.testing.assert_allclose(rates, [1] * 4 + [0.1] * 2 + [0.01] * 2, rtol=1e-6)


@pytest.mark.parametrize(("milestone", "total", "first"), [(0.29, 100, 29), (0.75, 9, 7)])
def test_a_milestone_is_the_iteration_nearest_to_its_fraction(milestone, total, first):
    # 0.29 · 100 is less than 29 by a rounding, and 0.75 · 9 is 6.75.
    config = ConfigDict({"schedule": "multistep", "milestones": (milestone,)})
    factor = learning_rate_factor(config, total)
    assert [float(factor(first - 1)), float(factor(first))] == pytest.approx([1, 0.1])


@pytest.mark.parametrize("schedule", ["cosine", "multistep"])
def test_warm_up_rises_evenly_to_the_schedule(schedule):
    config = ConfigDict({"schedule": schedule, "milestones": (0.5,), "epochs": 10})
    without = learning_rate_factor(config, 40)
    config.warmup_epochs = 2
    factor = learning_rate_factor(config, 40)
    for step in range(8):
        assert factor(step) == pytest.approx((step + 1) / 8 * without(step))
    assert [factor(step) for step in range(8, 40)] == [without(step) for step in range(8, 40)]


def test_rates_stay_when_the_configuration_is_changed_for_another_step():
    config = default_config()
    rates_at = learning_rates(config, 10)
    before = rates_at(0)
    config.optimizer.learning_rate, config.weighting.learning_rate = 7.0, 8.0
    assert rates_at(0) == before == (pytest.approx(0.8), pytest.approx(1e-4))
