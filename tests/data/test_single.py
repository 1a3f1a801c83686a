"""Image files that belong to no data set."""

import threading

import numpy as np
from PIL import Image
from programs import PATIENCE

from l2w_jax.config import default_config
from l2w_jax.data import decode, single


def test_each_core_reads_an_image_and_all_come_in_order(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3)).astype(np.uint8)
    paths = [tmp_path / f"{place}.png" for place in range(len(pixels))]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    # Whoever waits alone waits in vain.
    all_at_once, crop = threading.Barrier(3, timeout=PATIENCE), decode.crop_of_perhaps_cut

    def together(*arguments):
        all_at_once.wait()
        return crop(*arguments)

    monkeypatch.setattr(single, "available_cores", lambda: 3)
    monkeypatch.setattr(decode, "crop_of_perhaps_cut", together)
    config = default_config()
    config.dataset.update({"name": "cifar10", "image_size": 32})
    np.testing.assert_array_equal(single.read_images(paths, config), pixels)
