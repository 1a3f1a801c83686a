"""Images, and what exported networks answer to them."""

import numpy as np

from l2w_jax.interop.exported_folder import ImageFormat, load_program
from l2w_jax.models.preprocessing import normalize


def image_format(size, centre_share=1.0):
    return ImageFormat(size, centre_share, [0.4, 0.5, 0.6], [0.2, 0.25, 0.3])


def preprocess(images):
    of_all = image_format(0)
    return normalize(images, np.float32(of_all.mean), np.float32(of_all.deviation))


def stored_images(count, size):
    """Of all brightnesses and contrasts, so that a network's answers vary."""
    generator = np.random.default_rng(7)
    images = generator.integers(0, 200, (count, 1, 1, 3)) + generator.integers(
        0, 56, (count, size, size, 3)
    )
    return images.astype(np.uint8)


def load(folder, loader):
    return load_program(folder, loader).ExportedNetwork(folder)


def check_same(exported, decisions):
    np.testing.assert_array_equal(exported[0], decisions.labels)
    np.testing.assert_array_equal(exported[1], decisions.exits)
    np.testing.assert_allclose(exported[2], decisions.confidences, rtol=1e-5)
