"""What training and evaluation see of a data set, and its form for images that fit into memory."""

import abc
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from l2w_jax.data import augment, order, splits
from l2w_jax.errors import UserError

Batch = dict[str, np.ndarray]


class Source(abc.ABC):
    """A data set split into training, held-out and test images.

    Attributes:
        num_train, num_holdout, num_test: images in each split; held-out images are not in "train".
        num_classes: C.
        class_names: one name for each class.
        num_bad: images that could not be read so far, each of which was replaced.
    """

    num_train: int
    num_holdout: int
    num_test: int
    num_classes: int
    class_names: tuple[str, ...]
    num_bad: int = 0

    @property
    @abc.abstractmethod
    def train_class_counts(self) -> np.ndarray:
        """How many training images each class has, int64[C]."""

    @abc.abstractmethod
    def train_batches(
        self, first_step: int, process_index: int = 0, process_count: int = 1
    ) -> Iterator[Batch]:
        """Yields augmented {"image": uint8[b, H, W, 3], "label": int32[b]} from `first_step` on.

        Endless. The global batch of a step depends on (config.seed, step) only, and this process
        gets its rows [p*b, (p+1)*b) with b = batch_size / process_count. An epoch is
        num_train // batch_size steps, each in a new order.
        """

    @abc.abstractmethod
    def evaluation_batches(
        self, split: str, batch_size: int, process_index: int = 0, process_count: int = 1
    ) -> Iterator[Batch]:
        """Yields every image of "train", "holdout" or "test" once, un-augmented, in a fixed order.

        Each batch is {"image": uint8[b, H, W, 3], "label": int32[b], "mask": bool[b],
        "index": int32[b]} with b = `batch_size`, the rows of this process alone. Rows with a false
        mask fill up the last batches, so that all processes get equally many.
        """


class LabelledImages(NamedTuple):
    """Images in memory: uint8[n, H, W, 3] and their labels, int32[n]."""

    images: np.ndarray
    labels: np.ndarray

    def rows(self, positions: np.ndarray) -> "LabelledImages":
        """Returns the images at `positions`."""
        return LabelledImages(self.images[positions], self.labels[positions])


class MemorySource(Source):
    """A data set that is read once and then lies in memory: digits, CIFAR, folders of small images.

    Args:
        config: the run's configuration.
        train: training images, those to hold out included.
        test: test images.
        class_names: one name for each class.
        holdout: held-out images where the data set brings its own; otherwise `config.dataset.
            holdout` of the training images, each class in proportion.
    """

    def __init__(
        self,
        config: ConfigDict,
        train: LabelledImages,
        test: LabelledImages,
        class_names: tuple[str, ...],
        holdout: LabelledImages | None = None,
    ):
        dataset = config.dataset
        for split, labelled in {"train": train, "test": test, "holdout": holdout}.items():
            if labelled is not None:
                check_labels(labelled.labels, dataset.num_classes, split)
        if dataset.imbalance_factor:
            train = train.rows(splits.long_tailed_choice(train.labels, dataset.imbalance_factor))
        if holdout is None:
            check_holdout(config, len(train.labels))
            held_out = splits.stratified_choice(train.labels, dataset.holdout)
            holdout = train.rows(held_out)
            train = train.rows(splits.without(len(train.labels), held_out))
        check_batch(config, len(train.labels))
        self._splits: Mapping[str, LabelledImages] = {
            "train": train,
            "holdout": holdout,
            "test": test,
        }
        self._seed = config.seed
        self._batch_size = dataset.batch_size
        self._shift = augment.SHIFTS[dataset.augmentation]
        self.num_train = len(train.labels)
        self.num_holdout = len(holdout.labels)
        self.num_test = len(test.labels)
        self.num_classes = dataset.num_classes
        self.class_names = class_names

    @property
    def train_class_counts(self) -> np.ndarray:
        """How many training images each class has, int64[C]."""
        return np.bincount(self._splits["train"].labels, minlength=self.num_classes)

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
            draws = augment.draw(self._shift, self._batch_size, generator).rows(part)
            augmented = augment.apply(self._shift, images[rows], draws)
            yield {"image": augmented, "label": labels[rows]}

    def evaluation_batches(
        self, split: str, batch_size: int, process_index: int = 0, process_count: int = 1
    ) -> Iterator[Batch]:
        """See `Source.evaluation_batches`."""
        images, labels = self._splits[split]
        batches = order.evaluation_rows(len(labels), batch_size, process_index, process_count)
        for rows, mask in batches:
            yield {"image": images[rows], "label": labels[rows], "mask": mask, "index": rows}


def check_labels(labels: np.ndarray, num_classes: int, split: str) -> None:
    """Raises UserError if a split is empty or a label is not a class of the configuration."""
    if len(labels) == 0:
        raise UserError(f"data set: split {split!r} holds no image")
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise UserError(
            f"data set: split {split!r}, image {wrong[0]}: label {labels[wrong[0]]} is not allowed:"
            f" must be from 0 to {num_classes - 1} (config.dataset.num_classes is {num_classes})"
        )


def check_holdout(config: ConfigDict, num_images: int) -> None:
    """Raises UserError if more images are to be held out than there are to train on."""
    if config.dataset.holdout >= num_images:
        raise UserError(
            f"config.dataset.holdout: {config.dataset.holdout} is not allowed: must be less than "
            f"the {num_images} training images"
        )


def check_batch(config: ConfigDict, num_train: int) -> None:
    """Raises UserError if the training images do not fill one batch."""
    if config.dataset.batch_size > num_train:
        raise UserError(
            f"config.dataset.batch_size: {config.dataset.batch_size} is not allowed: must be at "
            f"most {num_train}, the training images without the held-out ones"
        )
