"""Image files by themselves, seen as evaluation sees the images of a data set."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from l2w_jax.data import decode
from l2w_jax.data.augment import evaluated_share
from l2w_jax.data.cores import available_cores
from l2w_jax.data.formats import BadImage
from l2w_jax.data.resize import resize
from l2w_jax.data.tensorflow_import import silent


class UnreadableImage(Exception):
    """A file that is missing or not an image; the message says which and why in one line."""


def read_images(paths: Sequence[Path], config: ConfigDict) -> list[np.ndarray | UnreadableImage]:
    """What `read_image` returns or raises for each file; each core reads one at a time."""

    def read(path: Path) -> np.ndarray | UnreadableImage:
        try:
            return read_image(path, config)
        except UnreadableImage as error:
            return error

    with silent(), ThreadPoolExecutor(available_cores()) as threads:
        return list(threads.map(read, paths))


def read_image(path: Path, config: ConfigDict) -> np.ndarray:
    """The image as uint8[size, size, 3], size being `config.dataset.image_size`.

    Decoders may write to standard error what is wrong with it.

    Raises:
        UnreadableImage: the file cannot be read or decoded.
    """
    share = np.array([evaluated_share(config)], np.float32)
    try:
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
