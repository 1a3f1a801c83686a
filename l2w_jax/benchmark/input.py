"""How fast training images come, compared with decoding alone on the same cores."""

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from l2w_jax.config import default_config
from l2w_jax.data import augment, order
from l2w_jax.data.cores import available_cores
from l2w_jax.data.decode import decode_crop, drawn_boxes
from l2w_jax.data.encoded import ImageFiles
from l2w_jax.data.image_folder import complete_splits, list_images
from l2w_jax.data.streaming import StreamingSource
from l2w_jax.data.tensorflow_import import tf
from l2w_jax.files import temporary_folder

# ImageNet's training images have 500 x 375 pixels in the median, in files of about 110 kB.
_IMAGE_SIZE = (500, 375)
_QUALITY = 90
_NUM_CLASSES = 4
_BATCH_SIZE = 64

# Batches before a round. Threads start, functions compile, and several batches are begun in advance
# that would later seem to have cost nothing.
_WARM_UP = 16


def benchmark_input(num_batches: int, rounds: int = 9, num_images: int = 256) -> dict[str, Any]:
    """Makes a folder of JPEGs and times both ways of reading random crops of them.

    The two take turns, so that whatever else the machine does slows both. Decoding alone reads the
    same files and decodes the same crops, from which the network's input would still have to be
    resized, mirrored and put together.

    Args:
        num_batches: batches of 64 images in a round, which are timed after 16 others.
        rounds: how often each way is timed; the median counts.
        num_images: JPEGs to make.

    Returns:
        cores; kilobytes_per_image of a file; images_per_second of the "pipeline" and of "decoding";
        share_of_decoding, the first over the second.

    Raises:
        UserError: there is no room for the folder.
    """
    with temporary_folder() as folder:
        kilobytes = _make_images(folder, num_images)
        config = default_config()
        config.dataset.update(
            name="image_folder",
            data_dir=str(folder),
            image_size=224,
            num_classes=_NUM_CLASSES,
            holdout=_NUM_CLASSES,
            batch_size=_BATCH_SIZE,
            augmentation="resized_crop",
        )
        found = list_images(folder)
        splits = complete_splits(config, found).images
        source = StreamingSource(config, splits, found.class_names)
        ways: dict[str, Callable[[], Iterator[Any]]] = {
            "pipeline": lambda: source.train_batches(0),
            "decoding": lambda: _decoded_crops(
                splits["train"], config.seed, _WARM_UP + num_batches
            ),
        }
        rates = {name: [] for name in ways}
        for _ in range(rounds):
            for name, open_batches in ways.items():
                rates[name].append(_images_per_second(open_batches(), num_batches))
    medians = {name: float(np.median(rate)) for name, rate in rates.items()}
    return {
        "cores": available_cores(),
        "kilobytes_per_image": kilobytes,
        "images_per_second": medians,
        "share_of_decoding": medians["pipeline"] / medians["decoding"],
    }


def _make_images(folder: Path, num_images: int) -> float:
    """Writes train|test/CLASS/*.jpg of noise as in photographs; returns their mean size in kB."""
    generator = np.random.default_rng(0)
    width, height = _IMAGE_SIZE
    # A photograph's spectrum falls as one over frequency.
    frequencies = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    frequencies[0, 0] = 1 / width
    sizes = []
    for index in range(num_images):
        spectrum = np.fft.fft2(generator.standard_normal((height, width, 3)), axes=(0, 1))
        noise = np.fft.ifft2(spectrum / frequencies[..., None], axes=(0, 1)).real
        pixels = np.clip(128 + 50 * noise / noise.std(), 0, 255).astype(np.uint8)
        split = "test" if index < _NUM_CLASSES else "train"
        path = folder / split / str(index % _NUM_CLASSES) / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=_QUALITY)
        sizes.append(path.stat().st_size / 1000)
    return float(np.mean(sizes))


def _decoded_crops(images: ImageFiles, seed: int, num_batches: int) -> Iterator[np.ndarray]:
    """Decodes the crops of `StreamingSource.train_batches`; yields a pixel of each, by batches."""
    steps = range(num_batches)
    batches = itertools.islice(order.training_rows(seed, 0, len(images), _BATCH_SIZE), num_batches)
    generators = (order.augmentation_generator(seed, step) for step in steps)
    draws = [augment.draw_resized_crops(_BATCH_SIZE, generator).crops for generator in generators]

    def decode(path: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        encoded = tf.io.read_file(path)
        shape = tf.io.extract_jpeg_shape(encoded)
        boxes = drawn_boxes(shape[:1], shape[1:2], draws[None])
        return decode_crop(encoded, boxes[0])[0, 0]

    paths = images.paths[np.concatenate(list(batches))]
    return (
        tf.data.Dataset.from_tensor_slices((paths, np.concatenate(draws)))
        .map(decode, num_parallel_calls=available_cores())
        .batch(_BATCH_SIZE)
        .as_numpy_iterator()
    )


def _images_per_second(batches: Iterator[Any], num_batches: int) -> float:
    """The rate of `num_batches` batches after `_WARM_UP` others."""
    for _ in range(_WARM_UP):
        next(batches)
    start = time.monotonic()
    for _ in range(num_batches):
        next(batches)
    return num_batches * _BATCH_SIZE / (time.monotonic() - start)
