"""A single image file, seen as evaluation sees the images of a data set."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from l2w_jax.data import decode
from l2w_jax.data.augment import evaluated_share
from l2w_jax.data.formats import BadImage
from l2w_jax.data.resize import resize
from l2w_jax.data.tensorflow_import import silent


class UnreadableImage(Exception):
    """A file that is missing or not an image; the message says which and why in one line."""


def read_image(path: Path, config: ConfigDict) -> np.ndarray:
    """Returns the image as uint8[size, size, 3], size being `config.dataset.image_size`.

    Raises:
        UnreadableImage: the file cannot be read or decoded.
    """
    share = np.array([evaluated_share(config)], np.float32)
    try:
        with silent():
            crop, _ = decode.crop_of_perhaps_cut(
                path.read_bytes(), config.dataset.max_pixels, decode.centre_boxes, share
            )
    except OSError as error:
        raise UnreadableImage(f"{path}: cannot be read: {error.strerror}") from error
    except BadImage as error:
        raise UnreadableImage(f"{path}: {error}") from error
    size = config.dataset.image_size
    square = np.empty((size, size, 3), np.uint8)
    resize(crop, square)
    return square
