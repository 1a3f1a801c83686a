"""Data sets that stay on disk: each batch is read when it is needed, or shortly before."""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from ml_collections import ConfigDict

from l2w_jax.data import augment, decode, order
from l2w_jax.data.bad_images import BadImages
from l2w_jax.data.encoded import EncodedImages
from l2w_jax.data.reading import Choice, read_batches, read_evaluation_batches, read_one
from l2w_jax.data.source import ORIGINS, Batch, Origin, Source
from l2w_jax.errors import UserError

# How many batches of training there are.
_ENDLESS = np.iinfo(np.int64).max


class StreamingSource(Source):
    """A data set of encoded images: ImageNet, or a folder of large images."""

    def __init__(
        self,
        config: ConfigDict,
        splits: Mapping[str, EncodedImages],
        class_names: tuple[str, ...],
        origins: Mapping[str, Origin] = ORIGINS,
    ):
        super().__init__(config, splits, class_names, origins)
        self._size = config.dataset.image_size
        self._max_pixels = config.dataset.max_pixels
        self._bad = BadImages(sum(map(len, splits.values())), config.dataset.max_bad_share)

    @property
    def num_bad(self) -> int:
        """Images that could not be read so far; see `Source`."""
        return len(self._bad)

    def train_batches(
        self, first_step: int, process_index: int = 0, process_count: int = 1
    ) -> Iterator[Batch]:
        """See `Source.train_batches`.

        An image that cannot be read is replaced by the next one of the split that can, with the
        same crop, so batches remain functions of seed and step.
        """
        images = self._splits["train"]
        part = order.part_of_batch(self._batch_size, process_index, process_count)

        def choices() -> Iterator[Choice]:
            batches = order.training_rows(self._seed, first_step, len(images), self._batch_size)
            for step, rows in enumerate(batches, first_step):
                generator = order.augmentation_generator(self._seed, step)
                draws = augment.draw_resized_crops(self._batch_size, generator).rows(part)
                yield Choice(rows[part], draws.mirrored, (draws.crops,))

        batches = read_batches(
            images, choices(), _ENDLESS, self._size, self._max_pixels, decode.drawn_boxes
        )
        for batch in batches:
            for row in np.flatnonzero(~batch.is_read):
                batch.pixels[row], batch.labels[row] = self._replacement(
                    images, batch.choice.row(row)
                )
            self._check_labels(images, batch.choice.positions, batch.labels)
            yield {"image": batch.pixels, "label": batch.labels}

    def _unaugmented(
        self, split: str, rows: Iterable[tuple[np.ndarray, np.ndarray]]
    ) -> Iterator[Batch]:
        """See `Source._unaugmented`."""
        images = self._splits[split]
        batches = read_evaluation_batches(
            images, list(rows), self._size, self._max_pixels, self._bad
        )
        for batch in batches:
            positions = batch.choice.positions
            self._check_labels(images, positions, batch.labels)
            yield {
                "image": batch.pixels,
                "label": batch.labels,
                "mask": batch.is_read,
                "index": positions,
            }

    def _replacement(self, images: EncodedImages, choice: Choice) -> tuple[np.ndarray, np.ndarray]:
        """Returns pixels and label of the first readable image from the chosen one on."""
        for further in range(len(images)):
            position = (choice.positions + further) % len(images)
            replacement = read_one(
                images,
                choice._replace(positions=position),
                self._size,
                self._max_pixels,
                decode.drawn_boxes,
                self._bad,
            )
            if replacement:
                return replacement
        raise UserError(
            f"data set: none of the {len(images):,} images of split 'train' can be read"
        )

    def _check_labels(
        self, images: EncodedImages, positions: np.ndarray, labels: np.ndarray
    ) -> None:
        for row in np.flatnonzero((labels < 0) | (labels >= self.num_classes)):
            raise UserError(
                f"{images.name(positions[row])}: label {labels[row]} is not allowed: must be from "
                f"0 to {self.num_classes - 1} (config.dataset.num_classes is {self.num_classes})"
            )
