"""Configurations for tests of training: a network that compiles in seconds."""

import jax
import numpy as np
import pytest

from l2w_jax.config import default_config


@pytest.fixture
def x64():
    """Float64 for the length of a test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def small_config():
    """A 2-exit, 2-scale MSDNet on 16x16 images of 10 classes, in float64."""
    config = default_config()
    config.dataset.image_size = 16
    config.model.update(
        {"num_exits": 2, "channels": 4, "growth_rate": 4, "dtype": "float64"},
        growth_factors=(1, 2),
        bottleneck_factors=(1, 2),
    )
    config.weighting.hidden = 8
    config.weighting.learning_rate = 1e-2
    config.optimizer.learning_rate = 0.1
    return config


@pytest.fixture
def make_batch():
    """A function of a seed and a number of samples: standard-normal images with labels."""

    def make(seed, count, size=16, num_classes=10):
        generator = np.random.default_rng(seed)
        return {
            "image": generator.standard_normal((count, size, size, 3)),
            "label": generator.integers(0, num_classes, count),
        }

    return make
