"""The pipelined schedule: against a transcription that shares nothing between half-steps.

Losses, weights, the meta objective and Adam are the package's, which other tests are of; SGD, the
order of the half-steps, what is differentiated and what devices share are written out.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_step import compiled_step

from l2w_jax.models import create_network
from l2w_jax.training import create_train_state, make_train_step
from l2w_jax.training.compiled import CompiledTrainStep
from l2w_jax.training.losses import TrainingLosses, confidences_of_logits
from l2w_jax.training.meta import meta_objective
from l2w_jax.training.optimizers import adam
from l2w_jax.training.weighting import create_weighting

TOTAL_STEPS = 8
MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4


@pytest.fixture
def config(small_config):
    # Of the predictor another weight decay than of the network.
    small_config.weighting.update(schedule="pipelined", weight_decay=1e-2)
    return small_config


def run(config, batches, steps, step=None):
    """States after each of `steps` iterations, the initial one first, and the last metrics."""
    step = step or compiled_step(config, TOTAL_STEPS)
    states, previous = [create_train_state(config, jax.random.key(0))], batches[0]
    for s in range(steps):
        state, metrics = step(states[-1], {**batches[s], "previous": previous})
        states.append(state)
        previous = batches[s]
    return states, metrics


def step_of_devices(config, num_devices):
    """An iteration on devices with a share of the batch each, after which they must agree."""
    step = make_train_step(config, TOTAL_STEPS, "device")
    over_devices = jax.vmap(step.update, in_axes=(None, 0, None), out_axes=None, axis_name="device")

    @jax.jit
    def update(state, batch, i):
        shares = jax.tree.map(lambda x: x.reshape(num_devices, -1, *x.shape[1:]), batch)
        return over_devices(state, shares, i)

    return CompiledTrainStep(update, step.num_updates)


def transcription(config, batches, start, num_devices=1):
    """θ, Θ and the meta losses after half-steps taken one after the other, as the text has them.

    The meta-gradient is `jax.grad` of the loss at θ_{t+1} as a function of Θ_t, forward passes and
    all, with nothing shared between half-steps. Losses, weights and the meta objective are each
    device's own; θ, Θ and both losses that are differentiated are of all of them.
    """
    model = create_network(config)
    network = TrainingLosses(model, 0.0)
    weigh = create_weighting(config.weighting, model, None)
    objective = meta_objective(config.weighting, model.num_exits, None)
    meta_optimizer = adam(config.weighting.weight_decay)
    params, wpn_params, wpn_opt_state = start.params, start.wpn_params, start.wpn_opt_state
    buffer = jax.tree.map(jnp.zeros_like, params)

    def losses_of(params, half):
        """Of each device, [D, n, K]."""
        losses, (logits, _) = jax.vmap(lambda x: network(params, start.batch_stats, x))(half)
        return losses, jax.vmap(confidences_of_logits)(logits)

    def sgd(params, buffer, wpn_params, half, learning_rate):
        of_device = functools.partial(weigh, wpn_params)
        weights = jax.vmap(of_device)(*losses_of(params, half))

        def training_loss(params):
            return (weights * losses_of(params, half)[0]).mean(axis=(0, 1)).sum()

        gradient = jax.grad(training_loss)(params)
        buffer = jax.tree.map(
            lambda b, g, p: MOMENTUM * b + g + WEIGHT_DECAY * p, buffer, gradient, params
        )
        return jax.tree.map(lambda p, b: p - learning_rate * b, params, buffer), buffer

    @jax.jit
    def meta_gradient(wpn_params, before, half):
        def loss_of(wpn_params):
            params, _ = sgd(before[0], before[1], wpn_params, before[2], before[3])
            return jax.vmap(objective)(*losses_of(params, half)).mean()

        return jax.value_and_grad(loss_of)(wpn_params)

    before, meta_losses = None, []
    for s, batch in enumerate(batches):
        factor = (1 + math.cos(math.pi * s / TOTAL_STEPS)) / 2
        shares = jax.tree.map(lambda x: x.reshape(num_devices, 2, -1, *x.shape[1:]), batch)
        for i in range(2):
            half = {name: jnp.asarray(array[:, i]) for name, array in shares.items()}
            if before is not None:
                meta_loss, gradient = meta_gradient(wpn_params, before, half)
                update, wpn_opt_state = meta_optimizer.update(gradient, wpn_opt_state, wpn_params)
                rate = config.weighting.learning_rate * factor
                wpn_params = jax.tree.map(lambda p, u, rate=rate: p - rate * u, wpn_params, update)
                meta_losses.append(meta_loss)
            before = (params, buffer, half, config.optimizer.learning_rate * factor)
            params, buffer = jax.jit(sgd)(before[0], before[1], wpn_params, half, before[3])
    return params, wpn_params, meta_losses


@pytest.mark.parametrize(
    "weighting",
    [{}, {"constraint": "mat", "input": "both"}, {"objective": "vanilla", "constraint": "row"}],
)
def test_learns_what_the_transcription_learns(config, make_batch, x64, weighting):
    config.weighting.update(weighting)
    batches = [make_batch(s, 16) for s in range(3)]
    states, metrics = run(config, batches, 3)
    assert_learned(states, metrics, transcription(config, batches, states[0]))


def test_devices_by_themselves_learn_through_the_step_that_all_have_made(config, make_batch, x64):
    config.weighting.update(scope="device", constraint="mat")
    batches = [make_batch(s, 16) for s in range(2)]
    states, metrics = run(config, batches, 2, step_of_devices(config, 2))
    assert_learned(states, metrics, transcription(config, batches, states[0], num_devices=2))


def assert_learned(states, metrics, expected):
    params, wpn_params, meta_losses = expected
    np.testing.assert_allclose(metrics["meta_loss"], np.mean(meta_losses[-2:]), rtol=1e-10)
    for ours, theirs, start in (
        (states[-1].params, params, states[0].params),
        (states[-1].wpn_params, wpn_params, states[0].wpn_params),
    ):
        trios = zip(*map(jax.tree.leaves, (ours, theirs, start)), strict=True)
        for a, b, at_start in trios:
            change = np.abs(b - at_start).max()
            assert change > 0
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-8 * change)


def test_first_half_step_leaves_the_predictor_alone_whatever_came_before(config, make_batch, x64):
    start = create_train_state(config, jax.random.key(0))
    step = make_train_step(config, TOTAL_STEPS)
    batch = make_batch(0, 16)
    state, _ = jax.jit(step.update)(start, {**batch, "previous": make_batch(1, 16)}, 0)
    for name in ("wpn_params", "wpn_opt_state"):
        pairs = zip(
            jax.tree.leaves(getattr(state, name)),
            jax.tree.leaves(getattr(start, name)),
            strict=True,
        )
        assert all(np.array_equal(after, before) for after, before in pairs)
    assert not np.array_equal(jax.tree.leaves(state.params)[0], jax.tree.leaves(start.params)[0])


def test_keeps_the_parameters_of_one_half_step_before(config, make_batch, x64):
    start = create_train_state(config, jax.random.key(0))
    update = jax.jit(make_train_step(config, TOTAL_STEPS).update)
    batch = {**make_batch(0, 16), "previous": make_batch(1, 16)}
    middle, _ = update(start, batch, 0)
    end, _ = update(middle, batch, 1)
    jax.tree.map(np.testing.assert_array_equal, end.previous_params, middle.params)


def test_predictor_learns_at_the_interval_only(config, make_batch, x64):
    config.weighting.interval = 2
    batches = [make_batch(s, 16) for s in range(4)]
    states, _ = run(config, batches, 4)
    biases = [np.asarray(state.wpn_params["output"]["bias"]) for state in states]
    learned = [not np.array_equal(a, b) for a, b in itertools.pairwise(biases)]
    assert learned == [True, False, True, False]


def test_memory_is_that_of_one_forward_pass(temporary_bytes):
    pipelined, exact = (
        temporary_bytes(**{"weighting.schedule": schedule}) for schedule in ("pipelined", "exact")
    )
    assert pipelined < 0.8 * exact


def test_batch_without_the_one_before_is_refused(config, make_batch, x64):
    state = create_train_state(config, jax.random.key(0))
    with pytest.raises(ValueError, match=r"needs batch\['previous'\]"):
        make_train_step(config, TOTAL_STEPS)(state, make_batch(0, 16))


def test_gradient_equilibrium_is_refused(config):
    config.imta.gradient_equilibrium = True
    with pytest.raises(ValueError, match="must be 'exact' with imta"):
        make_train_step(config, TOTAL_STEPS)
