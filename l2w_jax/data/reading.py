"""Batches of encoded images, which tf.data reads, decodes and crops before they are asked for."""

import atexit
import itertools
import weakref
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from l2w_jax.data import decode
from l2w_jax.data.augment import CENTRE_SHARE
from l2w_jax.data.bad_images import BadImages
from l2w_jax.data.cores import available_cores
from l2w_jax.data.encoded import EncodedImages
from l2w_jax.data.formats import BadImage
from l2w_jax.data.resize import resize
from l2w_jax.data.tensorflow_import import explain, tf

# Images that are decoded together at most, see `decode`.
_GROUP_SIZE = 16

# Batches that are read before they are asked for.
_BATCHES_AHEAD = 2

# What `_stop_reading` has to stop.
_being_read: weakref.WeakSet[Generator] = weakref.WeakSet()


class Choice(NamedTuple):
    """What a batch is to consist of: one row for each image."""

    positions: np.ndarray  # int[b], in the split
    mirrored: np.ndarray  # bool[b]
    arguments: tuple[np.ndarray, ...]  # of `decode.ChooseBoxes`, with b rows

    def row(self, row: int) -> "Choice":
        """Returns the choice for one image, as that for a batch of one."""
        rows = slice(row, row + 1)
        arguments = tuple(argument[rows] for argument in self.arguments)
        return Choice(self.positions[rows], self.mirrored[rows], arguments)


class ReadBatch(NamedTuple):
    """A batch as far as it has been read."""

    choice: Choice
    pixels: np.ndarray  # uint8[b, size, size, 3]
    labels: np.ndarray  # int32[b]
    is_read: np.ndarray  # bool[b]; where false, pixels and label mean nothing


def read_evaluation_batches(
    images: EncodedImages,
    rows: Sequence[tuple[np.ndarray, np.ndarray]],
    size: int,
    max_pixels: int,
    bad: BadImages,
    share: float = CENTRE_SHARE,
) -> Iterator[ReadBatch]:
    """Yields the centres of images; those that `order.evaluation_rows` masks count as not read.

    Args:
        images: where to read from.
        rows: positions int[b] and mask bool[b] of each batch.
        size: pixels of an image's side.
        max_pixels: the most that a stored image may have.
        bad: records images that cannot be read, which `is_read` leaves out too.
        share: of the shorter side of an image, see `decode.centre_boxes`.
    """
    choices = [
        Choice(positions, np.zeros(len(positions), bool), (np.full(len(positions), share, "f"),))
        for positions, _ in rows
    ]
    batches = read_batches(images, choices, len(choices), size, max_pixels, decode.centre_boxes)
    for (_, mask), batch in zip(rows, batches, strict=True):
        for row in np.flatnonzero(~batch.is_read):
            alone = None
            if mask[row]:
                alone = read_one(
                    images, batch.choice.row(row), size, max_pixels, decode.centre_boxes, bad
                )
            batch.is_read[row] = alone is not None
            batch.pixels[row], batch.labels[row] = alone or (0, 0)
        yield batch._replace(is_read=batch.is_read & mask)


def read_batches(
    images: EncodedImages,
    choices: Iterable[Choice],
    num_batches: int,
    size: int,
    max_pixels: int,
    choose_boxes: decode.ChooseBoxes,
) -> Generator[ReadBatch]:
    """Yields a batch for each choice, all of one size. With an image that fails, its group fails.

    tf.data reads and decodes groups of images; the squares that the network sees are put straight
    into their places in the batch: passing them on through tf.data would copy them twice.

    Args:
        images: where to read from.
        choices: iterated in another thread, some batches ahead.
        num_batches: how many choices there are.
        size: pixels of an image's side.
        max_pixels: the most that a stored image may have.
        choose_boxes: of the crops, see `decode.crops`.
    """
    batches = _read_batches(images, choices, num_batches, size, max_pixels, choose_boxes)
    _being_read.add(batches)
    return batches


def _read_batches(
    images: EncodedImages,
    choices: Iterable[Choice],
    num_batches: int,
    size: int,
    max_pixels: int,
    choose_boxes: decode.ChooseBoxes,
) -> Generator[ReadBatch]:
    if num_batches == 0:
        return
    key = next(_keys)
    reading = _readings[key] = _Reading(images, choices, size)
    try:
        ends = _ends_of_batches(key, num_batches, max_pixels, choose_boxes)
        for number, _ in zip(range(num_batches), ends, strict=False):
            if reading.error:
                raise reading.error
            yield reading.batches.pop(number)
    finally:
        # First of all, since threads that are still at work would find no reading.
        ends = None
        del _readings[key]


class _Reading:
    """Batches that TensorFlow's threads are filling.

    Args:
        images: where to read from.
        choices: one for each batch, all of one size.
        size: pixels of an image's side.
    """

    def __init__(self, images: EncodedImages, choices: Iterable[Choice], size: int):
        choices = iter(choices)
        self.first_choice = next(choices)
        self.images = images
        self.batches: dict[int, ReadBatch] = {}
        self.error: Exception | None = None
        self._choices = itertools.chain([self.first_choice], choices)
        self._size = size

    def columns(self, number: int, choice: Choice) -> list[np.ndarray]:
        """Returns columns that describe each group and, in the last row, the batch's end.

        They are: whether it is the end, the batch, the rows in it, the references of the images and
        the arguments of the choice.
        """
        batch_size = len(choice.positions)
        group_size = max(n for n in range(1, _GROUP_SIZE + 1) if batch_size % n == 0)
        of_images = (
            np.arange(batch_size),
            *self.images.references(choice.positions),
            *choice.arguments,
        )
        of_groups = [column.reshape(-1, group_size, *column.shape[1:]) for column in of_images]
        num_groups = batch_size // group_size
        return [
            np.arange(num_groups + 1) == num_groups,
            np.full(num_groups + 1, number),
            *(np.concatenate([column, column[-1:]]) for column in of_groups),
        ]

    def begin(self, number: int) -> list[np.ndarray]:
        """Begins the next batch and returns its `columns`; after an `error`, all are ends."""
        try:
            choice = next(self._choices)
            self.batches[number] = ReadBatch(
                choice,
                pixels=np.empty((len(choice.positions), self._size, self._size, 3), np.uint8),
                labels=np.empty(len(choice.positions), np.int32),
                is_read=np.zeros(len(choice.positions), bool),
            )
            return self.columns(number, choice)
        # Raised here, it would be dropped, as images that cannot be read are.
        except Exception as error:
            self.error = self.error or error
            is_end, *others = self.columns(number, self.first_choice)
            return [np.ones_like(is_end), *others]

    def put(
        self, number: int, rows: np.ndarray, labels: np.ndarray, crops: Sequence[np.ndarray]
    ) -> None:
        """Puts a group into its place."""
        batch = self.batches[number]
        for row, crop in zip(rows, crops, strict=True):
            resize(crop, batch.pixels[row], batch.choice.mirrored[row])
        batch.labels[rows] = labels
        batch.is_read[rows] = True


# TensorFlow never lets go of a Python function that a graph calls, nor of what that refers to. So
# it calls these two, with the key of the reading to work for.
_keys = itertools.count()
_readings: dict[int, _Reading] = {}


def _begin(key: np.int64, number: np.int64) -> list[np.ndarray]:
    return _readings[int(key)].begin(int(number))


def _put(
    key: np.int64, number: np.int64, rows: np.ndarray, labels: np.ndarray, *crops: np.ndarray
) -> np.bool_:
    _readings[int(key)].put(int(number), rows, labels, crops)
    return np.False_


def _ends_of_batches(
    key: int, num_batches: int, max_pixels: int, choose_boxes: decode.ChooseBoxes
) -> Iterator[tf.Tensor]:
    """Yields whenever a batch of the reading `key` has been filled as far as possible."""
    reading = _readings[key]
    examples = reading.columns(0, reading.first_choice)
    first_argument = len(examples) - len(reading.first_choice.arguments)

    def begin(number: tf.Tensor) -> tuple[tf.Tensor, ...]:
        columns = tf.numpy_function(_begin, [key, number], [column.dtype for column in examples])
        return tuple(
            tf.ensure_shape(column, example.shape)
            for column, example in zip(columns, examples, strict=True)
        )

    def load(*columns: tf.Tensor) -> tf.Tensor:
        is_end, number, rows = columns[:3]

        def load_group() -> tf.Tensor:
            encoded, labels = reading.images.read(*columns[3:first_argument])
            arguments = columns[first_argument:]
            crops = decode.crops(encoded, max_pixels, choose_boxes, *arguments)
            return tf.numpy_function(_put, [key, number, rows, labels, *crops], tf.bool)

        return tf.cond(is_end, lambda: True, load_group)

    # A graph cannot catch an error, but a data set can drop what failed: its rows stay unread. Not
    # `from_generator`, which undoes what `tensorflow_import` does for memory.
    return iter(
        tf.data.Dataset.range(num_batches)
        .map(begin)
        .unbatch()
        .map(load, num_parallel_calls=available_cores(), deterministic=True)
        .ignore_errors()
        .filter(lambda is_end: tf.ensure_shape(is_end, []))
        .prefetch(_BATCHES_AHEAD)
    )


@atexit.register
def _stop_reading() -> None:
    """Ends all reading while the interpreter is still whole.

    TensorFlow's threads call Python. A thread that finds Python gone never comes back, and the
    program, which waits for it, would never end.
    """
    for batches in list(_being_read):
        batches.close()


def read_one(
    images: EncodedImages,
    choice: Choice,
    size: int,
    max_pixels: int,
    choose_boxes: decode.ChooseBoxes,
    bad: BadImages,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Reads a batch of one image outside of any pipeline, so that its error can be seen.

    Returns:
        Its pixels and label; None if it cannot be read, which `bad` records.
    """
    name = images.name(choice.positions[0])
    try:
        encoded, labels = images.read(*map(tf.constant, images.references(choice.positions)))
        crop, is_cut = decode.crop_of_perhaps_cut(
            encoded[0].numpy(), max_pixels, choose_boxes, *choice.arguments
        )
    except UnicodeDecodeError:
        bad.add(name, images.fault(choice.positions[0]))
        return None
    except (BadImage, tf.errors.OpError, OSError) as error:
        bad.add(name, explain(error))
        return None
    if is_cut:
        bad.add_cut(name)
    square = np.empty((size, size, 3), np.uint8)
    resize(crop, square, choice.mirrored[0])
    return square, labels.numpy()[0]
