"""A data set of four classes whose brightness a tiny network tells apart, more or less."""

import jax
import numpy as np

from l2w_jax.config import default_config
from l2w_jax.data.source import LabelledImages, MemorySource
from l2w_jax.models.preprocessing import channel_statistics, normalize


def make_config():
    config = default_config()
    config.dataset.update(
        {"name": "digits", "image_size": 8, "num_classes": 4, "holdout": 30, "batch_size": 8}
    )
    config.dataset.augmentation = "none"
    config.dataset.eval_batch_size = 16
    return config


def images_of(seed, count):
    rng = np.random.default_rng(seed)
    shades = rng.integers(0, 200, (count, 1, 1, 3))
    images = shades + rng.integers(0, 56, (count, 8, 8, 3))
    return LabelledImages(images.astype(np.uint8), rng.integers(0, 4, count).astype(np.int32))


TEST = images_of(1, 37)


def open_tiny_source(config, num_holdout=30):
    splits = {"train": images_of(0, 40), "holdout": images_of(2, num_holdout), "test": TEST}
    return MemorySource(config, splits, class_names=("a", "b", "c", "d"))


def all_log_probs(network, images):
    """Of a model and its variables, by hand: [K, N, C]."""
    model, variables = network
    inputs = normalize(images, *channel_statistics("digits"))
    return np.array(jax.nn.log_softmax(model.apply(variables, inputs, train=False)))
