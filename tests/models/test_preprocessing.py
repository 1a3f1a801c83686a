"""Normalisation happens once, on the device, and leaves what is normalised alone."""

import jax.numpy as jnp
import numpy as np
import pytest

from l2w_jax.config import default_config
from l2w_jax.data.digits import open_digits
from l2w_jax.models.preprocessing import channel_statistics, normalize

# Mean and deviation as the authors of MSDNet and, of ImageNet, PyTorch's examples state them.
PUBLISHED = {
    "cifar10": ([0.4914, 0.4824, 0.4467], [0.2471, 0.2435, 0.2616]),
    "cifar100": ([0.5071, 0.4867, 0.4408], [0.2675, 0.2565, 0.2761]),
    "imagenet2012": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "image_folder": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_statistics_of_each_channel_are_the_published_ones(name):
    for found, published in zip(channel_statistics(name), PUBLISHED[name], strict=True):
        np.testing.assert_array_equal(found, np.float32(published))


@pytest.mark.parametrize("name", ["digits", "cifar10", "cifar100", "imagenet2012", "image_folder"])
def test_black_and_white_end_up_at_the_ends_of_the_scale(name):
    mean, deviation = channel_statistics(name)
    images = np.stack([np.zeros((2, 2, 3)), np.full((2, 2, 3), 255)]).astype(np.uint8)
    black, white = normalize(jnp.asarray(images), mean, deviation)
    np.testing.assert_allclose(black[0, 0], -mean / deviation, rtol=1e-6)
    np.testing.assert_allclose(white[0, 0], (1 - mean) / deviation, rtol=1e-6)
    assert black.dtype == jnp.float32


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_normalised_images_pass_through(dtype):
    images = jnp.linspace(-3, 3, 12, dtype=dtype).reshape(1, 2, 2, 3)
    same = normalize(images, *channel_statistics("cifar10"))
    assert same.dtype == dtype
    np.testing.assert_array_equal(same, images)


def test_the_digits_have_mean_zero_and_deviation_one():
    config = default_config()
    config.dataset.update(
        name="digits", image_size=16, holdout=0, batch_size=64, augmentation="none"
    )
    (batch,) = open_digits(config).evaluation_batches("train", 1437)
    images = np.asarray(normalize(jnp.asarray(batch["image"]), *channel_statistics("digits")))
    assert abs(images.mean()) < 2e-3
    assert abs(images.std() - 1) < 2e-3
