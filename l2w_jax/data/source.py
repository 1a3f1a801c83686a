"""What training and evaluation see of a data set, and its form for images that fit into memory."""

import abc
from collections.abc import Iterable, Iterator, Mapping, Sized
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from l2w_jax.data import augment, order, splits
from l2w_jax.errors import UserError

Batch = dict[str, np.ndarray]


class Origin(NamedTuple):
    """Where the images of a split come from; as a text, for a person.

    Attributes:
        place: a folder, or what the data set calls its part.
        is_cut: whether they were drawn from among all images there. If the images there change,
            some of one split may have been in another.
        num_images: how many there are.
    """

    place: str
    is_cut: bool = False
    num_images: int = 0

    def __str__(self) -> str:
        if not self.num_images:
            return "none"
        return f"{'cut from ' if self.is_cut else ''}{self.place} ({self.num_images:,} images)"


# Where a data set that has training and test images takes its splits from.
ORIGINS = {
    "train": Origin("train"),
    "holdout": Origin("train", is_cut=True),
    "test": Origin("test"),
}


class Source(abc.ABC):
    """A data set split into training, held-out and test images.

    Args:
        config: the run's configuration.
        splits: "train" (without the held-out images), "holdout" and "test".
        class_names: one name for each class.
        origins: where the images of each split come from; they are counted here.

    Attributes:
        num_train, num_holdout, num_test: images in each split; held-out images are not in "train".
        num_classes: C.
        class_names: one name for each class.
        origins: where the images of each split come from.
        digests: for each split, a digest by which its images are known, by their names; empty for a
            data set that is always the same.
        num_bad: images that could not be read so far. A source that reads from disk trains on
            others in their place and leaves them out of evaluation; a `MemorySource` has them in no
            split.
    """

    digests: Mapping[str, str] = MappingProxyType({})
    num_bad: int = 0

    def __init__(
        self,
        config: ConfigDict,
        splits: Mapping[str, Sized],
        class_names: tuple[str, ...],
        origins: Mapping[str, Origin] = ORIGINS,
    ):
        counts = {split: len(splits[split]) for split in ("train", "holdout", "test")}
        self.num_train, self.num_holdout, self.num_test = counts.values()
        _check_batch(config, self.num_train)
        self._splits = splits
        self._seed = config.seed
        self._batch_size = config.dataset.batch_size
        self.num_classes = config.dataset.num_classes
        self.class_names = class_names
        self.origins = {
            split: origins[split]._replace(num_images=count) for split, count in counts.items()
        }

    @property
    def train_class_counts(self) -> np.ndarray:
        """How many training images each class has, int64[C].

        Not for ImageNet, whose labels lie inside its records: no long tail is cut from it.
        """
        return np.bincount(self._splits["train"].labels, minlength=self.num_classes)

    @abc.abstractmethod
    def train_batches(
        self, first_step: int, process_index: int = 0, process_count: int = 1
    ) -> Iterator[Batch]:
        """Yields augmented {"image": uint8[b, H, W, 3], "label": int32[b]} from `first_step` on.

        Endless. The global batch of a step depends on (config.seed, step) only, and this process
        gets its rows [p*b, (p+1)*b) with b = batch_size / process_count. An epoch is
        num_train // batch_size steps, each in a new order.
        """

    def evaluation_batches(
        self, split: str, batch_size: int, process_index: int = 0, process_count: int = 1
    ) -> Iterator[Batch]:
        """Yields every image of "train", "holdout" or "test" once, un-augmented, in a fixed order.

        Each batch is {"image": uint8[b, H, W, 3], "label": int32[b], "mask": bool[b],
        "index": int32[b]} with b = `batch_size`, the rows of this process alone. Rows with a false
        mask fill up the last batches, so that all processes get equally many. An image that cannot
        be read has a false mask too.
        """
        num_images = len(self._splits[split])
        rows = order.evaluation_rows(num_images, batch_size, process_index, process_count)
        return self._unaugmented(split, rows)

    def images_at(self, split: str, positions: np.ndarray, batch_size: int) -> Iterator[Batch]:
        """Yields images of a split by their positions [n], as `evaluation_batches` yields all."""
        return self._unaugmented(split, order.rows_at(positions, batch_size))

    @abc.abstractmethod
    def _unaugmented(
        self, split: str, rows: Iterable[tuple[np.ndarray, np.ndarray]]
    ) -> Iterator[Batch]:
        """Yields an evaluation batch for positions int32[b] and mask bool[b] of each."""

    def spread_images(self, split: str, count: int) -> Iterator[Batch]:
        """Yields at most `count` images of a split, evenly spaced, as `evaluation_batches` of one.

        Where images lie class by class, as in a folder, the first ones would be all of one class.
        Images that cannot be read are left out.
        """
        positions = np.arange(0, len(self._splits[split]), self.spacing(split, count))
        for batch in self.images_at(split, positions, batch_size=1):
            if batch["mask"].all():
                yield batch

    def spacing(self, split: str, count: int) -> int:
        """How far an image of `spread_images` is from the one before it, in positions."""
        num_images = {"train": self.num_train, "holdout": self.num_holdout, "test": self.num_test}
        return max(1, -(-num_images[split] // count))


class LabelledImages(NamedTuple):
    """Images in memory: uint8[n, H, W, 3] and their labels, int32[n]."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, positions: np.ndarray) -> "LabelledImages":
        """Returns the images at `positions`."""
        return LabelledImages(self.images[positions], self.labels[positions])


class MemorySource(Source):
    """A data set that is read once and lies in memory: digits, CIFAR, folders of small images."""

    def __init__(
        self,
        config: ConfigDict,
        splits: Mapping[str, LabelledImages],
        class_names: tuple[str, ...],
        origins: Mapping[str, Origin] = ORIGINS,
    ):
        for split, images in splits.items():
            _check_labels(images.labels, config.dataset.num_classes, split)
        super().__init__(config, splits, class_names, origins)
        self._shift = augment.shift_of(config.dataset.augmentation, config.dataset.image_size)

    def train_batches(
        self, first_step: int, process_index: int = 0, process_count: int = 1
    ) -> Iterator[Batch]:
        """See `Source.train_batches`."""
        part = order.part_of_batch(self._batch_size, process_index, process_count)
        images, labels = self._splits["train"]
        steps = order.training_rows(self._seed, first_step, self.num_train, self._batch_size)
        for step, global_rows in enumerate(steps, first_step):
            rows = global_rows[part]
            generator = order.augmentation_generator(self._seed, step)
            draws = augment.draw_shifts(self._shift, self._batch_size, generator).rows(part)
            augmented = augment.apply_shifts(self._shift, images[rows], draws)
            yield {"image": augmented, "label": labels[rows]}

    def _unaugmented(
        self, split: str, rows: Iterable[tuple[np.ndarray, np.ndarray]]
    ) -> Iterator[Batch]:
        """See `Source._unaugmented`."""
        images, labels = self._splits[split]
        for positions, mask in rows:
            yield {
                "image": images[positions],
                "label": labels[positions],
                "mask": mask,
                "index": positions,
            }


def choose_training_images(
    config: ConfigDict, labels: np.ndarray, num_holdout: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the positions in `labels` to train on and those to hold out, both ascending.

    A long tail is cut first, and the held-out images are then taken from it, so that both together
    are the images that a long-tailed benchmark allows a method to see.

    Raises:
        UserError: nothing would be left to train on.
    """
    kept = np.arange(len(labels))
    if config.dataset.imbalance_factor:
        kept = splits.long_tailed_choice(labels, config.dataset.imbalance_factor)
        _check_tail(config.dataset.imbalance_factor, labels, kept)
    most = splits.most_to_cut(labels[kept])
    if num_holdout and not most:
        raise UserError(
            f"config.dataset.holdout: {num_holdout} is not allowed: must be 0, with "
            "dataset.thresholds_from 'train', since no class has a second training image to hold "
            "out"
        )
    check_holdout(num_holdout, most + 1)
    held_out = splits.stratified_choice(labels[kept], num_holdout)
    return kept[splits.without(len(kept), held_out)], kept[held_out]


def _check_tail(imbalance_factor: float, labels: np.ndarray, kept: np.ndarray) -> None:
    """Raises UserError where a long tail leaves a class without an image."""
    if len(np.unique(labels[kept])) < len(np.unique(labels)):
        raise UserError(
            f"config.dataset.imbalance_factor: {imbalance_factor} is not allowed: must be less "
            f"than {np.bincount(labels).max()}, the images of the largest class, to leave each one"
        )


def check_holdout(num_holdout: int, too_many: int) -> None:
    """Raises UserError if so many training images are to be held out that too few are left."""
    if num_holdout >= too_many:
        raise UserError(
            f"config.dataset.holdout: {num_holdout} is not allowed: must be less than {too_many}, "
            "to leave training images of every class"
        )


def _check_batch(config: ConfigDict, num_train: int) -> None:
    """Raises UserError if there are training images, but not enough to fill one batch."""
    if 0 < num_train < config.dataset.batch_size:
        raise UserError(
            f"config.dataset.batch_size: {config.dataset.batch_size} is not allowed: must be at "
            f"most {num_train}, the training images without the held-out ones"
        )


def _check_labels(labels: np.ndarray, num_classes: int, split: str) -> None:
    """Raises UserError if a label is not a class of the configuration."""
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise UserError(
            f"data set: split {split!r}, image {wrong[0]}: label {labels[wrong[0]]} is not allowed:"
            f" must be from 0 to {num_classes - 1} (config.dataset.num_classes is {num_classes})"
        )
