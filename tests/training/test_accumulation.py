"""A batch taken in parts gives what it gives as a whole, as far as batch norm allows."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_step import compiled_step
from flax import linen as nn
from jax.flatten_util import ravel_pytree

from l2w_jax import main
from l2w_jax.data.digits import open_digits
from l2w_jax.models import MultiExitNetwork, create_network
from l2w_jax.models.preprocessing import channel_statistics, normalize
from l2w_jax.training import create_train_state
from l2w_jax.training.losses import LossesInParts, TrainingLosses, create_losses

PARTS = 4


class NetworkWithoutNorm(MultiExitNetwork):
    """Two exits, no batch norm."""

    def setup(self):
        types = {"dtype": jnp.float64, "param_dtype": jnp.float64}
        self.blocks = [nn.Dense(12, **types) for _ in range(2)]
        self.heads = [nn.Dense(10, **types) for _ in range(2)]

    @property
    def num_exits(self):
        return 2

    def init_carry(self, images, train):
        return images.reshape(len(images), -1)

    def stage_with_features(self, k, carry, train):
        carry = nn.relu(self.blocks[k](carry))
        return carry, self.heads[k](carry), carry


def iterations(config, num_parts, batches):
    """The state and the metrics after an iteration on each batch."""
    config = config.copy_and_resolve_references()
    config.optimizer.accumulation = num_parts
    state = create_train_state(config, jax.random.key(0))
    step = compiled_step(config, 100)
    for batch in batches:
        state, metrics = step(state, {**batch, "previous": batches[0]})
    return state, metrics


@pytest.mark.parametrize(
    "weighting",
    [{"kind": "none"}, {"constraint": "mat", "input": "both"}, {"schedule": "pipelined"}],
)
def test_without_batch_norm_parts_learn_what_the_whole_does(
    small_config, make_batch, x64, weighting
):
    with small_config.ignore_type():
        small_config.model = NetworkWithoutNorm(dtype=jnp.float64)
    small_config.weighting.update(weighting)
    small_config.optimizer.label_smoothing = 0.1
    batches = [make_batch(seed, 16) for seed in range(2)]
    whole, in_parts = (iterations(small_config, n, batches) for n in (1, PARTS))
    start = create_train_state(small_config, jax.random.key(0))
    for name in ("params", "wpn_params"):
        trios = zip(
            *(jax.tree.leaves(getattr(s, name)) for s in (in_parts[0], whole[0], start)),
            strict=True,
        )
        for ours, theirs, at_start in trios:
            change = np.abs(theirs - at_start).max()
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9 * change)
    for name, value in whole[1].items():
        np.testing.assert_allclose(in_parts[1][name], value, rtol=1e-9, atol=1e-12)


@pytest.fixture
def networks(small_config, make_batch, x64):
    """Losses of a network with batch norm, as a whole and in parts, with arguments for both."""
    model = small_config.model
    state = create_train_state(small_config, jax.random.key(0))
    whole, in_parts = TrainingLosses(model, 0.0), LossesInParts(model, 0.0, num_parts=PARTS)
    return whole, in_parts, state, make_batch(0, 16)


def test_with_batch_norm_each_part_is_a_batch_of_its_own(networks):
    whole, in_parts, state, batch = networks
    losses, (logits, _) = in_parts(state.params, state.batch_stats, batch)
    for i in range(PARTS):
        rows = slice(4 * i, 4 * (i + 1))
        part = jax.tree.map(lambda x, rows=rows: x[rows], batch)
        expected, (expected_logits, _) = whole(state.params, state.batch_stats, part)
        np.testing.assert_allclose(losses[rows], expected, rtol=1e-12)
        np.testing.assert_allclose(logits[:, rows], expected_logits, rtol=1e-10, atol=1e-12)
    assert np.abs(losses - whole(state.params, state.batch_stats, batch)[0]).max() > 1e-3


def test_what_the_teacher_says_of_a_batch_is_the_mean_over_its_parts(small_config, make_batch, x64):
    small_config.imta.update(collaboration=True, distillation=0.3)
    state, batch = create_train_state(small_config, jax.random.key(0)), make_batch(0, 16)
    model = create_network(small_config)
    whole, _ = create_losses(small_config, model)
    small_config.optimizer.accumulation = PARTS
    in_parts, _ = create_losses(small_config, model)

    def distilled(losses, batch):
        return losses.with_distilled(state.params, state.batch_stats, batch)[0][1]

    parts = [jax.tree.map(lambda x, i=i: x[4 * i : 4 * (i + 1)], batch) for i in range(PARTS)]
    expected = np.mean([distilled(whole, part) for part in parts])
    assert float(distilled(in_parts, batch)) == pytest.approx(expected, rel=1e-10)


def test_running_means_are_those_of_the_whole_and_variances_are_smaller(networks):
    whole, in_parts, state, batch = networks
    _, (_, moved) = in_parts(state.params, state.batch_stats, batch)
    _, (_, expected) = whole(state.params, state.batch_stats, batch)
    # The first batch norm: what later ones read is normalised by then.
    ours, theirs = (tree["convolutions_0"]["bn"] for tree in (moved, expected))
    np.testing.assert_allclose(ours["mean"], theirs["mean"], rtol=1e-12)
    assert (ours["var"] < theirs["var"]).all()
    np.testing.assert_allclose(ours["var"], theirs["var"], rtol=0.02)


@pytest.mark.parametrize("kind", ["none", "meta"])
def test_memory_is_that_of_a_part(temporary_bytes, kind):
    # The halves' images themselves, cut out of the batch, are there in any case.
    of_images = 0 if kind == "none" else 512 * 32 * 32 * 3 * 4
    whole, in_parts = (
        temporary_bytes(**{"weighting.kind": kind, "optimizer.accumulation": n}) - of_images
        for n in (1, 8)
    )
    assert in_parts < 0.2 * whole


def test_samples_that_do_not_divide_are_refused(networks, make_batch):
    _, in_parts, state, _ = networks
    with pytest.raises(ValueError, match=r"config\.optimizer\.accumulation: 4 is not allowed"):
        in_parts(state.params, state.batch_stats, make_batch(0, 6))


def test_that_nobody_looked_how_many_parts_fit_is_told(small_config):
    config = small_config.copy_and_resolve_references()
    config.optimizer.accumulation = 0
    with pytest.raises(ValueError, match=r"config\.optimizer\.accumulation: 0 is not allowed"):
        create_losses(config, create_network(config))


@pytest.mark.slow
def test_the_gradient_in_parts_nears_that_of_the_whole_as_parts_grow():
    """On digits, with the network of that recipe as it begins; prints how far it is."""
    path = Path(__file__).parents[2] / "configs" / "digits_msdnet.py"
    config = main.parse(["main", f"--config={path}", "--config.dataset.batch_size=512"]).config
    model = create_network(config)
    state = create_train_state(config, jax.random.key(0))
    stored = next(open_digits(config).train_batches(0))
    images = normalize(stored["image"], *channel_statistics("digits"))

    def gradient(num_parts, num_images):
        losses = TrainingLosses(model, 0.0)
        if num_parts > 1:
            losses = LossesInParts(model, 0.0, num_parts=num_parts)
        batch = {"image": images[:num_images], "label": stored["label"][:num_images]}
        of_params = jax.grad(lambda params: losses(params, state.batch_stats, batch)[0].mean())
        return ravel_pytree(jax.jit(of_params)(state.params))[0]

    distances = {}
    for num_images, num_parts in [(32, 4), (32, 2), (128, 2), (512, 2)]:
        whole, in_parts = gradient(1, num_images), gradient(num_parts, num_images)
        distance = float(jnp.linalg.norm(in_parts - whole) / jnp.linalg.norm(whole))
        cosine = float(whole @ in_parts / jnp.linalg.norm(whole) / jnp.linalg.norm(in_parts))
        print(f"{num_images} images in {num_parts} parts: {distance:.3f}, cosine {cosine:.4f}")
        distances[num_images // num_parts] = distance
    assert sorted(distances, key=distances.get) == [256, 64, 16, 8]
