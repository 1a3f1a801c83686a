"""Configurations for tests of training: a network that compiles in seconds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_networks import ConvNetwork

from l2w_jax.config import default_config
from l2w_jax.training import create_train_state, make_train_step


@pytest.fixture(autouse=True, scope="package")
def optimized_programs():
    """Programs as users have them: these tests compute more than they compile."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


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


@pytest.fixture
def temporary_bytes():
    """XLA's temporary memory of an update on 512 images of 32x32 pixels, of overridden fields."""
    images = {
        "image": jax.ShapeDtypeStruct((512, 32, 32, 3), jnp.float32),
        "label": jax.ShapeDtypeStruct((512,), jnp.int32),
    }

    def measure(recompute=False, **fields):
        config = default_config(model=ConvNetwork())
        config.dataset.image_size = 32
        config.weighting.hidden = 8
        config.update_from_flattened_dict(fields)
        state = create_train_state(config, jax.random.key(0))
        update = jax.jit(make_train_step(config, 100, recompute=recompute).update)
        compiled = update.lower(state, {**images, "previous": images}, jnp.int32(0)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    return measure
