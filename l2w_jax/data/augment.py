"""Augmentation of small images that lie in memory: numpy on whole batches, no TensorFlow."""

from typing import NamedTuple

import numpy as np


class Shift(NamedTuple):
    """Pad every side by `padding` black pixels, crop the old size at random, perhaps mirror."""

    padding: int
    mirror: bool


# "crop" is what MSDNet and its successors do on CIFAR; digits must not be mirrored.
SHIFTS = {
    "crop": Shift(padding=4, mirror=True),
    "shift": Shift(padding=1, mirror=False),
    "none": Shift(padding=0, mirror=False),
}


class Draws(NamedTuple):
    """The random choices for a batch: one row for each image."""

    offsets: np.ndarray  # int[n, 2], top and left corner of the crop in the padded image
    mirrored: np.ndarray  # bool[n]

    def rows(self, part: slice) -> "Draws":
        """Returns the choices for a part of the batch."""
        return Draws(self.offsets[part], self.mirrored[part])


def draw(shift: Shift, num_images: int, generator: np.random.Generator) -> Draws:
    """Draws for a whole global batch, so that every process sees the same choices."""
    offsets = generator.integers(0, 2 * shift.padding + 1, size=(num_images, 2))
    mirrored = generator.random(num_images) < 0.5
    return Draws(offsets, mirrored & shift.mirror)


def apply(shift: Shift, images: np.ndarray, draws: Draws) -> np.ndarray:
    """Returns `images` uint8[n, H, W, 3] cropped and mirrored as drawn, in the same shape."""
    height, width = images.shape[1:3]
    pad = (shift.padding, shift.padding)
    padded = np.pad(images, ((0, 0), pad, pad, (0, 0)))
    augmented = np.empty_like(images)
    for row, (top, left) in enumerate(draws.offsets):
        augmented[row] = padded[row, top : top + height, left : left + width]
    augmented[draws.mirrored] = augmented[draws.mirrored, :, ::-1]
    return augmented
