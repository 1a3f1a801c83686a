"""Configurations for tests of training: a network that compiles in seconds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_networks import ConvNetwork

from l2w_jax.config import default_config


@pytest.fixture
def x64():
    """Float64 for the length of a test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def small_config():
    """A 2-exit network on 8x8 images of 10 classes, in float64."""
    config = default_config(model=ConvNetwork(dtype=jnp.float64))
    config.dataset.image_size = 8
    config.weighting.hidden = 8
    config.weighting.learning_rate = 1e-2
    config.optimizer.learning_rate = 0.1
    return config


@pytest.fixture
def make_batch():
    """A function of a seed and a number of samples: standard-normal images with labels."""

    def make(seed, count, size=8, num_classes=10):
        generator = np.random.default_rng(seed)
        return {
            "image": generator.standard_normal((count, size, size, 3)),
            "label": generator.integers(0, num_classes, count),
        }

    return make
