"""An iteration: its own place in the schedule, and what cannot be trained on."""

import jax
import numpy as np
import pytest
from compiled_step import compiled_step
from flax import linen as nn
from small_networks import ConvNetwork

from l2w_jax.config import default_config
from l2w_jax.training import create_train_state, make_train_step


def test_pseudo_update_and_both_optimisers_are_at_the_rates_of_the_iteration(
    small_config, make_batch, x64
):
    start, batch = create_train_state(small_config, jax.random.key(0)), make_batch(0, 16)
    # The cosine is one half at half the run.
    found, metrics = compiled_step(small_config, 8)(start.replace(step=np.int32(4)), batch)
    small_config.optimizer.learning_rate /= 2
    small_config.weighting.learning_rate /= 2
    expected, at_start = compiled_step(small_config, 8)(start, batch)
    assert int(found.step) == 5
    assert_equal(found.replace(step=expected.step), expected)
    assert_equal(metrics, at_start)


class NetworkWithDropout(ConvNetwork):
    def setup(self):
        super().setup()
        self.dropout = nn.Dropout(0.1)

    def stage(self, k, carry, train):
        return super().stage(k, self.dropout(carry, deterministic=not train), train)


@pytest.mark.parametrize("kind", ["none", "meta"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_network_that_draws_random_numbers_is_refused(make_batch, kind, accumulation):
    config = default_config(model=NetworkWithDropout())
    config.dataset.image_size = 8
    config.weighting.kind = kind
    config.optimizer.accumulation = accumulation
    state = create_train_state(config, jax.random.key(0))
    with pytest.raises(ValueError, match=r"^NetworkWithDropout draws random numbers in training"):
        compiled_step(config, 100)(state, make_batch(0, 8))


@pytest.mark.parametrize("kind", ["none", "meta"])
def test_images_that_nobody_has_normalised_are_refused(small_config, make_batch, kind, x64):
    small_config.weighting.kind = kind
    state, batch = create_train_state(small_config, jax.random.key(0)), make_batch(0, 8)
    batch["image"] = batch["image"].astype(np.uint8)
    with pytest.raises(ValueError, match=r"^images are uint8; training takes normalised floating"):
        compiled_step(small_config, 100)(state, batch)


@pytest.mark.parametrize("kind", ["none", "meta"])
def test_arrays_of_numpy_are_taken_without_compiling_the_step(small_config, make_batch, kind, x64):
    small_config.weighting.kind = kind
    state, batch = create_train_state(small_config, jax.random.key(0)), make_batch(0, 8)
    found = make_train_step(small_config, 100)(state, batch)
    assert_equal(found, compiled_step(small_config, 100)(state, batch))


@pytest.mark.parametrize("total_steps", [0, -5, 2.5, float("inf")])
def test_a_run_without_a_whole_number_of_iterations_is_refused(small_config, total_steps):
    message = f"^total_steps: {total_steps} is not allowed: must be a whole number >= 1$"
    with pytest.raises(ValueError, match=message):
        make_train_step(small_config, total_steps)


def assert_equal(ours, theirs):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), ours, theirs)
