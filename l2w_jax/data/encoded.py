"""Encoded images on disk, each readable by itself: files, or records of TFDS."""

import os
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from l2w_jax.data.tensorflow_import import tf
from l2w_jax.errors import UserError


class EncodedImages(Protocol):
    """A split of a data set whose images stay on disk."""

    def __len__(self) -> int: ...

    def rows(self, positions: np.ndarray) -> "EncodedImages":
        """Returns the images at `positions`."""

    def references(self, positions: np.ndarray) -> tuple[np.ndarray, ...]:
        """Returns what `read` needs of the images at `positions`, arrays with one row for each."""

    def read(self, *references: tf.Tensor) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Returns the bytes of n images and their labels, int32[n]; a graph function."""

    def name(self, position: int) -> str:
        """Returns what to call an image in a message."""

    def fault(self, position: int) -> str:
        """Returns why an image cannot be read, where TensorFlow's own error cannot be told.

        It quotes a file's name or a record, whose bytes need not be text.
        """


class ImageFiles(NamedTuple):
    """One file for each image."""

    paths: np.ndarray  # of bytes: a name need not be UTF-8, and a million of them take less memory
    labels: np.ndarray  # int32

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, positions: np.ndarray) -> "ImageFiles":
        """See `EncodedImages.rows`."""
        return ImageFiles(self.paths[positions], self.labels[positions])

    def references(self, positions: np.ndarray) -> tuple[np.ndarray, ...]:
        """See `EncodedImages.references`."""
        return self.paths[positions], self.labels[positions]

    def read(self, *references: tf.Tensor) -> tuple[list[tf.Tensor], tf.Tensor]:
        """See `EncodedImages.read`."""
        paths, labels = references
        return [tf.io.read_file(path) for path in tf.unstack(paths)], labels

    def name(self, position: int) -> str:
        """See `EncodedImages.name`."""
        return self.paths[position].decode(errors="replace")

    def fault(self, position: int) -> str:
        """See `EncodedImages.fault`."""
        try:
            Path(os.fsdecode(self.paths[position])).read_bytes()
        except OSError as error:
            return f"cannot be read: {error.strerror}"
        return "cannot be read"


class ImageRecords(NamedTuple):
    """TFDS's TFRecord files and the place of every record in them, for random access.

    A TFRecord file alone can only be read from its start. Knowing where each record begins, a run
    shuffles the whole data set anew every epoch and resumes anywhere at no cost.
    """

    paths: tuple[str, ...]
    places: np.ndarray  # int64[n, 3]: file, first byte, number of bytes

    def __len__(self) -> int:
        return len(self.places)

    def rows(self, positions: np.ndarray) -> "ImageRecords":
        """See `EncodedImages.rows`."""
        return ImageRecords(self.paths, self.places[positions])

    def references(self, positions: np.ndarray) -> tuple[np.ndarray, ...]:
        """See `EncodedImages.references`."""
        return (self.places[positions],)

    def read(self, *references: tf.Tensor) -> tuple[list[tf.Tensor], tf.Tensor]:
        """See `EncodedImages.read`."""
        (places,) = references
        records = tf.numpy_function(self._read_records, [places], tf.string, stateful=False)
        features = {
            "image": tf.io.FixedLenFeature([], tf.string),
            "label": tf.io.FixedLenFeature([], tf.int64),
        }
        examples = tf.io.parse_example(tf.ensure_shape(records, places.shape[:1]), features)
        return tf.unstack(examples["image"]), tf.cast(examples["label"], tf.int32)

    def name(self, position: int) -> str:
        """See `EncodedImages.name`."""
        file, first, _ = self.places[position]
        return f"{self.paths[file]}, record at byte {first}"

    def fault(self, position: int) -> str:
        """See `EncodedImages.fault`."""
        return "is no record that can be parsed"

    def _read_records(self, places: np.ndarray) -> np.ndarray:
        return np.array([self._read_record(*map(int, place)) for place in places], object)

    def _read_record(self, file: int, first: int, length: int) -> bytes:
        with open(self.paths[file], "rb", buffering=0) as records:
            record = os.pread(records.fileno(), length, first)
        if len(record) < length:
            raise OSError("ends before its record does")
        return record


# A TFRecord is a length, its checksum, the data and their checksum.
_LENGTH = struct.Struct("<Q")
_HEADER_BYTES = _LENGTH.size + 4
_FOOTER_BYTES = 4


def index_records(paths: Sequence[str]) -> ImageRecords:
    """Finds every record of TFRecord files, in order, reading 8 bytes of each.

    Raises:
        UserError: a file ends within a record.
    """
    with ThreadPoolExecutor() as pool:
        of_files = list(pool.map(_record_places, paths))
    places = [np.insert(of_file, 0, file, axis=1) for file, of_file in enumerate(of_files)]
    return ImageRecords(tuple(paths), np.concatenate(places))


def _record_places(path: str) -> np.ndarray:
    """Returns int64[n, 2]: first byte and number of bytes of the data of each record."""
    places = []
    position, end = 0, Path(path).stat().st_size
    with open(path, "rb", buffering=0) as records:
        while position < end:
            header = os.pread(records.fileno(), _LENGTH.size, position)
            length = _LENGTH.unpack(header)[0] if len(header) == _LENGTH.size else end
            first = position + _HEADER_BYTES
            position = first + length + _FOOTER_BYTES
            if position > end:
                raise UserError(
                    f"{path}: truncated at byte {end}: delete this folder and run the same command "
                    "again to prepare it anew"
                )
            places.append((first, length))
    return np.array(places, np.int64).reshape(-1, 2)
