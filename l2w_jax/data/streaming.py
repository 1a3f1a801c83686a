"""Data sets that stay on disk: tf.data reads, decodes and crops ahead of the training step."""

import atexit
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
from ml_collections import ConfigDict

from l2w_jax.data import augment, decode, order
from l2w_jax.data.bad_images import BadImages
from l2w_jax.data.source import Batch, Source, check_batch
from l2w_jax.data.stored import StoredImages
from l2w_jax.data.tensorflow_import import explain, tf
from l2w_jax.errors import UserError

# Batches that are being read at once: with one alone the cores would idle as it ends.
_BATCHES_IN_FLIGHT = 2

# What `_stop_reading` has to stop.
_being_read: weakref.WeakSet[Iterator] = weakref.WeakSet()

# Turns the bytes of an image and its further arguments into uint8[size, size, 3].
Transform = Callable[..., tf.Tensor]


class StreamingSource(Source):
    """A data set of encoded images: ImageNet, or a folder of large images.

    Args:
        config: the run's configuration.
        splits: "train" (without the held-out images), "holdout" and "test".
        class_names: one name for each class.
    """

    def __init__(
        self,
        config: ConfigDict,
        splits: Mapping[str, StoredImages],
        class_names: tuple[str, ...],
    ):
        check_batch(config, len(splits["train"]))
        self._splits = splits
        self._seed = config.seed
        self._batch_size = config.dataset.batch_size
        self._size = config.dataset.image_size
        self._bad = BadImages(sum(map(len, splits.values())), config.dataset.max_bad_share)
        self.num_train = len(splits["train"])
        self.num_holdout = len(splits["holdout"])
        self.num_test = len(splits["test"])
        self.num_classes = config.dataset.num_classes
        self.class_names = class_names

    @property
    def num_bad(self) -> int:
        """Images that could not be read so far, each of which was replaced."""
        return len(self._bad)

    @property
    def train_class_counts(self) -> np.ndarray:
        """How many training images each class has, int64[C]; reads all labels from the disk."""
        images = self._splits["train"]
        labels = (
            tf.data.Dataset.from_tensor_slices(images.references(np.arange(len(images))))
            .map(lambda *reference: images.read(*reference)[1], tf.data.AUTOTUNE)
            .batch(1024)
        )
        return sum(
            np.bincount(batch, minlength=self.num_classes) for batch in labels.as_numpy_iterator()
        )

    def train_batches(
        self, first_step: int, process_index: int = 0, process_count: int = 1
    ) -> Iterator[Batch]:
        """See `Source.train_batches`.

        An image that cannot be read is replaced by the next one of the split that can, under the
        same crop: still a function of seed and step.
        """
        images = self._splits["train"]
        part = order.part_of_batch(self._batch_size, process_index, process_count)

        def choices() -> Iterator[tuple[np.ndarray, tuple[np.ndarray, ...]]]:
            batches = order.training_rows(self._seed, first_step, len(images), self._batch_size)
            for step, rows in enumerate(batches, first_step):
                generator = order.augmentation_generator(self._seed, step)
                draws = augment.draw_resized_crops(self._batch_size, generator).rows(part)
                yield rows[part], tuple(draws)

        rows_per_batch = part.stop - part.start
        decoded = read_batches(images, choices, rows_per_batch, self._size, self._training_image)
        for (positions, draws), (pixels, labels, is_read) in zip(choices(), decoded, strict=True):
            for row in np.flatnonzero(~is_read):
                pixels[row], labels[row] = self._replacement(
                    images, positions[row], tuple(draw[row] for draw in draws)
                )
            self._check_labels(images, positions, labels)
            yield {"image": pixels, "label": labels}

    def evaluation_batches(
        self, split: str, batch_size: int, process_index: int = 0, process_count: int = 1
    ) -> Iterator[Batch]:
        """See `Source.evaluation_batches`. An image that cannot be read has a false mask."""
        images = self._splits[split]

        def choices() -> Iterator[tuple[np.ndarray, tuple[np.ndarray, ...]]]:
            for rows, _ in order.evaluation_rows(
                len(images), batch_size, process_index, process_count
            ):
                yield rows, ()

        decoded = read_batches(images, choices, batch_size, self._size, self._evaluation_image)
        masks = order.evaluation_rows(len(images), batch_size, process_index, process_count)
        for (positions, mask), (pixels, labels, is_read) in zip(masks, decoded, strict=True):
            for row in np.flatnonzero(~is_read & mask):
                reason = reason_of_failure(images, positions[row], self._evaluation_image, ())
                self._bad.add(images.name(positions[row]), reason)
            self._check_labels(images, positions, labels)
            yield {"image": pixels, "label": labels, "mask": mask & is_read, "index": positions}

    def _training_image(
        self, encoded: tf.Tensor, draws: tf.Tensor, mirrored: tf.Tensor
    ) -> tf.Tensor:
        return decode.training_image(encoded, draws, mirrored, self._size)

    def _evaluation_image(self, encoded: tf.Tensor) -> tf.Tensor:
        return decode.evaluation_image(encoded, self._size)

    def _replacement(
        self, images: StoredImages, bad_position: int, draws: tuple[np.ndarray, ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns pixels and label of the first readable image from `bad_position` on."""
        for further in range(len(images)):
            position = (int(bad_position) + further) % len(images)
            try:
                return _read_one(images, position, self._training_image, draws)
            except (tf.errors.OpError, OSError) as error:
                self._bad.add(images.name(position), explain(error))
        raise UserError(f"data set: none of the {len(images)} images of split 'train' can be read")

    def _check_labels(
        self, images: StoredImages, positions: np.ndarray, labels: np.ndarray
    ) -> None:
        for row in np.flatnonzero((labels < 0) | (labels >= self.num_classes)):
            raise UserError(
                f"{images.name(positions[row])}: label {labels[row]} is not allowed: must be from "
                f"0 to {self.num_classes - 1} (config.dataset.num_classes is {self.num_classes})"
            )


def read_batches(
    images: StoredImages,
    choices: Callable[[], Iterable[tuple[np.ndarray, tuple[np.ndarray, ...]]]],
    batch_size: int,
    size: int,
    transform: Transform,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields (pixels uint8[b, size, size, 3], labels int32[b], is_read bool[b]) for each choice.

    Args:
        images: where to read from.
        choices: returns, for each batch, positions int[b] and the transform's arguments, each
            with b rows. It is called in another thread.
        batch_size: b.
        size: pixels of an image's side.
        transform: a graph function from an image's bytes and arguments to its pixels.
    """
    positions, arguments = next(iter(choices()), (np.zeros(0, int), ()))
    columns = (*images.references(positions), *arguments)
    num_references = len(columns) - len(arguments)
    signature = tuple(
        tf.TensorSpec([batch_size, *column.shape[1:]], tf.as_dtype(column.dtype))
        for column in columns
    )

    def tables() -> Iterator[tuple[np.ndarray, ...]]:
        for positions, arguments in choices():
            yield (*images.references(positions), *arguments)

    def load(row: tf.Tensor, columns: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, ...]:
        encoded, label = images.read(*columns[:num_references])
        return row, transform(encoded, *columns[num_references:]), label

    nothing = tf.data.Dataset.from_tensors(
        (tf.zeros([0], tf.int64), tf.zeros([0, size, size, 3], tf.uint8), tf.zeros([0], tf.int32))
    )

    def load_batch(*columns: tf.Tensor) -> tf.data.Dataset:
        # A graph cannot catch an error, but a data set can leave out what failed.
        loaded = (
            tf.data.Dataset.from_tensor_slices(columns)
            .enumerate()
            .map(load, num_parallel_calls=os.cpu_count(), deterministic=True)
            .ignore_errors()
            .batch(batch_size)
        )
        return loaded.concatenate(nothing).take(1)

    dataset = (
        tf.data.Dataset.from_generator(tables, output_signature=signature)
        .interleave(
            load_batch,
            cycle_length=_BATCHES_IN_FLIGHT,
            num_parallel_calls=_BATCHES_IN_FLIGHT,
            deterministic=True,
        )
        .prefetch(1)
    )
    batches = _with_gaps(dataset, batch_size)
    _being_read.add(batches)
    return batches


@atexit.register
def _stop_reading() -> None:
    """Ends all reading while the interpreter is still whole.

    TensorFlow's threads call Python. One that finds it gone never comes back, and the program,
    which waits for it, would never end.
    """
    for batches in list(_being_read):
        batches.close()


def _with_gaps(
    dataset: tf.data.Dataset, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields batches of `batch_size` rows from batches that lack the images that failed."""
    for rows, pixels, labels in dataset.as_numpy_iterator():
        is_read = np.zeros(batch_size, bool)
        is_read[rows] = True
        if not is_read.all():
            pixels, labels = _spread(pixels, rows, batch_size), _spread(labels, rows, batch_size)
        yield pixels, labels, is_read


def _spread(values: np.ndarray, rows: np.ndarray, batch_size: int) -> np.ndarray:
    """Returns an array of `batch_size` rows that has `values` at `rows` and is 0 elsewhere."""
    spread = np.zeros((batch_size, *values.shape[1:]), values.dtype)
    spread[rows] = values
    return spread


def _read_one(
    images: StoredImages, position: int, transform: Transform, arguments: tuple[np.ndarray, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Reads one image outside of any pipeline, so that its error can be seen."""
    columns = images.references(np.array([position]))
    encoded, label = images.read(*(tf.constant(column[0]) for column in columns))
    pixels = transform(encoded, *map(tf.constant, arguments))
    return pixels.numpy(), label.numpy()


def reason_of_failure(
    images: StoredImages, position: int, transform: Transform, arguments: tuple[np.ndarray, ...]
) -> str:
    """Reads one image again and returns why that fails."""
    try:
        _read_one(images, position, transform, arguments)
    except (tf.errors.OpError, OSError) as error:
        return explain(error)
    return "could not be read at first, but could later"
