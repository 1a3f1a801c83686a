"""Iterations that train over a frozen network, with a teacher, and with sample weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_step import compiled_step

from l2w_jax.models import create_network
from l2w_jax.training import create_train_state, make_train_step
from l2w_jax.training.forward import training_forward
from l2w_jax.training.losses import Distillation, TrainingLosses, create_distillation
from l2w_jax.training.meta import meta_gradient
from l2w_jax.training.optimizers import descend
from l2w_jax.training.pipelined import gradient_through_last_step
from l2w_jax.training.step import create_training

BACKBONE = "net"


@pytest.fixture
def second_stage(small_config, x64):
    """Collaboration and distillation with learned weights."""
    small_config.imta.update(collaboration=True, distillation=0.3, temperature=2.0)
    return small_config


def run(config, state, batches):
    step = compiled_step(config, 100)
    for batch in batches:
        state, metrics = step(state, batch)
    return state, metrics


def assert_trees_equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_backbone_stays_as_it_is_while_its_statistics_move_and_weights_matter(
    second_stage, make_batch
):
    start = create_train_state(second_stage, jax.random.key(0))
    batches = [make_batch(seed, 12) for seed in range(2)]
    end, metrics = run(second_stage, start, batches)
    assert np.ptp(metrics["weights"]) > 0.01
    assert_trees_equal(end.params[BACKBONE], start.params[BACKBONE])
    for before, after in zip(
        jax.tree.leaves(start.batch_stats), jax.tree.leaves(end.batch_stats), strict=True
    ):
        assert (np.asarray(before) != after).all()
    for name in ("classifiers_0", "classifiers_1"):
        for before, after in zip(
            *(jax.tree.leaves(state.params[name]) for state in (start, end)), strict=True
        ):
            assert (np.asarray(before) != after).any()

    second_stage.weighting.kind = "none"
    plain, _ = run(second_stage, start, batches)
    kernels = (state.params["classifiers_0"]["linear"]["kernel"] for state in (plain, end))
    assert np.abs(np.subtract(*kernels)).max() > 1e-4


def test_frozen_parameters_have_no_momentum(second_stage):
    state = create_train_state(second_stage, jax.random.key(0))
    trained = [state.params["classifiers_0"], state.params["classifiers_1"]]
    assert sum(leaf.size for leaf in jax.tree.leaves(state.opt_state)) == sum(
        leaf.size for leaf in jax.tree.leaves(trained)
    )


def test_weights_count_at_the_cross_entropies_and_not_at_the_distillation(second_stage, make_batch):
    state = create_train_state(second_stage, jax.random.key(0))
    network = TrainingLosses(create_network(second_stage), 0.0, create_distillation(second_stage))
    weights = jax.random.uniform(jax.random.key(1), (12, 2))

    @jax.jit
    def compute(state, batch, weights):
        forward = training_forward(network, state, batch)

        def written_out(params):
            (losses, distilled), _ = network.with_distilled(params, state.batch_stats, batch)
            first, last = (weights * losses).mean(axis=0)
            return 0.7 * first + last + distilled

        return (
            (forward.weighted_loss(weights), forward.weighted_gradient(weights)),
            jax.value_and_grad(written_out)(state.params),
            forward.distilled,
        )

    (loss, gradient), (expected_loss, expected), distilled = compute(
        state, make_batch(0, 12), weights
    )
    assert distilled > 0
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-12)
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradient.pop(BACKBONE)))
    assert any(leaf.any() for leaf in jax.tree.leaves(expected.pop(BACKBONE)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), gradient, expected)


def test_the_gradient_of_all_devices_is_the_mean_of_theirs(second_stage, make_batch):
    state = create_train_state(second_stage, jax.random.key(0))
    network = TrainingLosses(create_network(second_stage), 0.0, create_distillation(second_stage))
    shards = jax.tree.map(lambda x: x.reshape(3, 4, *x.shape[1:]), make_batch(0, 12))
    weights = jax.random.uniform(jax.random.key(1), (3, 4, 2))

    def gradient_of(axis_name):
        def on_device(weights, shard):
            forward = training_forward(network, state, shard)
            return forward.weighted_gradient(weights, axis_name)

        return jax.jit(jax.vmap(on_device, axis_name="devices"))(weights, shards)

    jax.tree.map(
        lambda of_all, of_each: np.testing.assert_allclose(
            of_all[1], of_each.mean(axis=0), rtol=1e-4, atol=1e-7
        ),
        gradient_of("devices"),
        gradient_of(None),
    )


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("collaboration", [False, True])
def test_meta_gradient_equals_finite_differences(
    small_config, make_batch, x64, collaboration, recompute
):
    imta = {"collaboration": True, "distillation": 0.3} if collaboration else {}
    small_config.imta.update(imta or {"gradient_equilibrium": True})
    training = create_training(small_config, 1, recompute=recompute)
    network, learner = training.network, training.learner
    state = create_train_state(small_config, jax.random.key(0))

    @jax.jit
    def loss_and_gradient(wpn_params):
        shifted = state.replace(wpn_params=wpn_params)
        forward = training_forward(network, shifted, make_batch(0, 12))
        return meta_gradient(learner, shifted, forward, make_batch(1, 12), 0.1)[:2]

    def loss_at(distance):
        moved = jax.tree.map(lambda p: p + distance, state.wpn_params)
        return float(loss_and_gradient(moved)[0])

    _, gradient = loss_and_gradient(state.wpn_params)
    slope = sum(float(leaf.sum()) for leaf in jax.tree.leaves(gradient))
    difference = (loss_at(1e-5) - loss_at(-1e-5)) / 2e-5
    assert abs(slope) > 1e-6
    assert slope == pytest.approx(difference, rel=1e-4)


def test_pipelined_meta_gradient_is_the_exact_one_of_the_step_before(second_stage, make_batch):
    training = create_training(second_stage, 1)
    network, learner = training.network, training.learner
    state = create_train_state(second_stage, jax.random.key(0))
    half, next_half, learning_rate = make_batch(0, 12), make_batch(1, 12), 0.1

    @jax.jit
    def both(state):
        forward = training_forward(network, state, half)
        exact = meta_gradient(learner, state, forward, next_half, learning_rate)[:2]
        weights = learner.weigh(state.wpn_params, forward.losses, forward.confidences)
        gradient = forward.weighted_gradient(weights)
        params, _ = descend(
            learner.optimizer, gradient, state.opt_state, state.params, learning_rate
        )
        after = state.replace(params=params, previous_params=state.params)
        forward = training_forward(network, after, next_half)
        return exact, gradient_through_last_step(learner, after, forward, half, learning_rate)

    (exact_loss, exact), (loss, gradient) = both(state)
    assert float(loss) == pytest.approx(float(exact_loss), rel=1e-12)
    for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(exact), strict=True):
        scale = np.abs(theirs).max()
        assert scale > 0
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10 * scale)


def test_distillation_of_the_teachers_own_logits_is_zero_and_never_teaches_the_teacher():
    logits = jax.random.normal(jax.random.key(0), (3, 5, 4))
    distillation = Distillation(share=0.1, temperature=2.0)
    same = jnp.broadcast_to(logits[-1], logits.shape)
    assert abs(distillation.loss(same, logits[-1])) < 1e-7
    assert distillation.loss(logits, logits[-1]) > 0
    of_logits, of_teacher = jax.grad(distillation.loss, argnums=(0, 1))(logits, logits[-1])
    assert of_logits[:-1].any() and not of_logits[-1].any()
    assert not of_teacher.any()


def test_two_devices_train_as_one_does(second_stage, make_batch):
    second_stage.weighting.kind = "none"
    start = create_train_state(second_stage, jax.random.key(0))
    batch = make_batch(0, 12)
    one, metrics_of_one = run(second_stage, start, [batch])
    step = make_train_step(second_stage, 100, "device")
    shards = jax.tree.map(lambda x: x.reshape(2, 6, *x.shape[1:]), batch)
    two, metrics = jax.jit(jax.vmap(step, in_axes=(None, 0), axis_name="device"))(start, shards)
    for ours, theirs in zip(jax.tree.leaves(two), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(ours[1], theirs, rtol=0, atol=1e-12)
    np.testing.assert_allclose(metrics["weighted_loss"][0], metrics_of_one["weighted_loss"])


def test_configuration_without_the_section_trains_as_with_all_of_it_off(
    small_config, make_batch, x64
):
    small_config.weighting.kind = "none"  # compiles in half the time
    state = create_train_state(small_config, jax.random.key(0))
    batches = [make_batch(0, 12)]
    expected = run(small_config, state, batches)
    del small_config["imta"]
    assert_trees_equal(run(small_config, state, batches), expected)
