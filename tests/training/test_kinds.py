"""Every kind of weighting trains on real digits, and learns what it is meant to and no more."""

import jax
import numpy as np
import pytest
from compiled_step import compiled_step
from sklearn.datasets import load_digits
from small_networks import ConvNetwork

from l2w_jax.config import default_config
from l2w_jax.training import create_train_state

STEPS = 20


@pytest.fixture(scope="module")
def batches():
    """Two epochs of 640 digits in batches of 64."""
    digits = load_digits()
    images = np.repeat(digits.images[..., None] / 8 - 1, 3, axis=-1).astype(np.float32)
    rows = np.random.default_rng(0).permutation(640).reshape(10, 64)
    return [{"image": images[r], "label": digits.target[r]} for r in (*rows, *rows)]


SETTINGS = {
    "none": {"kind": "none"},
    "allocation": {"kind": "allocation"},
    "fixed": {"kind": "fixed"},
    "frozen": {"kind": "frozen"},
    "vanilla": {"objective": "vanilla", "input": "both", "constraint": "mat"},
    "pipelined": {"schedule": "pipelined"},
    "interval": {"interval": 10, "input": "confidence", "constraint": "row"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_two_epochs_lower_the_loss_of_every_exit(name, batches):
    config = default_config(model=ConvNetwork())
    config.dataset.image_size = 8
    config.weighting.update(SETTINGS[name], hidden=16)
    config.optimizer.learning_rate = 0.2
    start = create_train_state(config, jax.random.key(0))
    step = compiled_step(config, STEPS)
    state, losses = start, []
    for batch, previous in zip(batches, [batches[0], *batches], strict=False):
        state, metrics = step(state, {**batch, "previous": previous})
        losses.append(metrics["loss"])
    assert int(state.step) == STEPS
    assert (np.mean(losses[-5:], axis=0) < np.mean(losses[:2], axis=0)).all()

    changed = [
        not np.array_equal(before, after)
        for before, after in zip(
            jax.tree.leaves(start.wpn_params), jax.tree.leaves(state.wpn_params), strict=True
        )
    ]
    learns = config.weighting.kind == "meta"
    assert changed == [learns] * (4 if config.weighting.kind in ("meta", "frozen") else 0)
