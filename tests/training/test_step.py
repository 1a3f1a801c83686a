"""An iteration takes its learning rates from its own place in the schedule."""

import jax
import numpy as np
from compiled_step import compiled_step

from l2w_jax.training import create_train_state


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


def assert_equal(ours, theirs):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), ours, theirs)
