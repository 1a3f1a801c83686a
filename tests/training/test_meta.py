"""The meta-gradient: against an identity, finite differences, and what must not flow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2w_jax.models import create_model
from l2w_jax.training import create_train_state
from l2w_jax.training.forward import training_forward
from l2w_jax.training.losses import confidences_of_logits
from l2w_jax.training.meta import every, meta_gradient, meta_objective
from l2w_jax.training.step import create_training
from l2w_jax.training.weighting import create_weighting

LEARNING_RATE = 0.1


@pytest.fixture(params=[False, True], ids=["kept", "recomputed"])
def setting(request, small_config, make_batch, x64):
    """A learner, a state with a momentum buffer, x1, and x2."""
    learner = create_training(small_config, 1, recompute=request.param).learner
    state = create_train_state(small_config, jax.random.key(0))
    training_half, meta_half = make_batch(0, 12), make_batch(1, 12)
    buffer = jax.tree.map(lambda p: 0.1 * jnp.ones_like(p), state.params)
    _, opt_state = learner.optimizer.update(buffer, state.opt_state, state.params)
    return learner, state.replace(opt_state=opt_state), training_half, meta_half


def meta_loss_of_weights(learner, state, training_half, meta_half):
    """The meta loss as a function of w [N, K], written out from the paper."""
    buffer = state.opt_state[1].trace
    weight_decay, momentum = 1e-4, 0.9

    def loss_of(weights):
        def training_loss(params):
            losses, _ = learner.network(params, state.batch_stats, training_half)
            return (weights * losses).mean(axis=0).sum()

        gradient = jax.grad(training_loss)(state.params)
        pseudo_params = jax.tree.map(
            lambda p, b, g: p - LEARNING_RATE * (momentum * b + g + weight_decay * p),
            state.params,
            buffer,
            gradient,
        )
        losses, (logits, _) = learner.network(pseudo_params, state.batch_stats, meta_half)
        return learner.objective(losses, confidences_of_logits(logits))

    return loss_of


def test_meta_gradient_equals_the_identity_and_finite_differences(setting):
    learner, state, training_half, meta_half = setting

    @jax.jit
    def ours(state, training_half, meta_half):
        forward = training_forward(learner.network, state, training_half)
        loss, gradient, _ = meta_gradient(learner, state, forward, meta_half, LEARNING_RATE)
        weights, transpose = jax.vjp(
            lambda p: learner.weigh(p, forward.losses, forward.confidences), state.wpn_params
        )
        return loss, gradient, weights, forward.losses, transpose

    loss, gradient, weights, losses, transpose = ours(state, training_half, meta_half)
    loss_of = jax.jit(meta_loss_of_weights(learner, state, training_half, meta_half))
    np.testing.assert_allclose(loss, loss_of(weights), rtol=1e-10)

    # Identity: dL/dw_ik = -(lr/N) <grad of l_ik at theta, grad of L at the pseudo-parameters>,
    # which is one forward-mode pass along the gradient of the meta loss.
    @jax.jit
    def by_identity(state, weights):
        def training_losses(params):
            return learner.network(params, state.batch_stats, training_half)[0]

        def pseudo(params):
            direction = jax.grad(lambda p: (weights * training_losses(p)).mean(axis=0).sum())(
                params
            )
            updates, _ = learner.optimizer.update(direction, state.opt_state, params)
            return jax.tree.map(lambda p, u: p - LEARNING_RATE * u, params, updates)

        def meta_loss(params):
            losses, (logits, _) = learner.network(params, state.batch_stats, meta_half)
            return learner.objective(losses, confidences_of_logits(logits))

        at_pseudo = jax.grad(meta_loss)(pseudo(state.params))
        _, along = jax.jvp(training_losses, (state.params,), (at_pseudo,))
        return -LEARNING_RATE / len(weights) * along

    (expected,) = transpose(by_identity(state, weights))
    for ours_leaf, expected_leaf in zip(
        jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True
    ):
        scale = np.abs(expected_leaf).max()
        np.testing.assert_allclose(ours_leaf, expected_leaf, rtol=0, atol=1e-9 * scale)

    direction = jax.tree.map(jnp.ones_like, gradient)
    slope = sum(
        jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True)
    )
    epsilon = 1e-5
    inputs = (losses, jnp.zeros_like(losses))

    def shifted(sign):
        wpn_params = jax.tree.map(lambda p, d: p + sign * epsilon * d, state.wpn_params, direction)
        return loss_of(learner.weigh(wpn_params, *inputs))

    difference = (shifted(1) - shifted(-1)) / (2 * epsilon)
    assert float(slope) == pytest.approx(float(difference), rel=1e-5)


def test_no_gradient_reaches_the_predictor_through_its_input(small_config, x64):
    weigh = create_weighting(small_config.weighting, create_model(small_config.model), None)
    wpn_params = create_train_state(small_config, jax.random.key(0)).wpn_params
    losses = jnp.array([[0.3, 1.2], [2.0, 0.1]])
    through_input = jax.grad(lambda x: (weigh(wpn_params, x, x) ** 2).sum())(losses)
    assert not through_input.any()
    assert jax.grad(lambda p: (weigh(p, losses, losses) ** 2).sum())(wpn_params)["output"][
        "bias"
    ].any()


def test_no_gradient_reaches_the_meta_loss_through_the_allocation(small_config):
    objective = meta_objective(small_config.weighting, 2, None)
    losses = jnp.ones((4, 2))
    gradient = jax.grad(lambda c: objective(losses, c))(jnp.linspace(0.1, 0.9, 8).reshape(4, 2))
    assert not gradient.any()


def test_update_is_made_every_interval_and_not_between():
    def update(state):
        return state + 1, jnp.float32(5)

    for step in range(6):
        state, loss = every(3, jnp.int32(step), update, jnp.int32(0))
        assert (state == 1) == (step % 3 == 0)
        assert np.isnan(loss) == (step % 3 != 0)
