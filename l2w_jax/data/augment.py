"""Random choices of augmentation, their effect on images in memory, and what evaluation sees.

All with numpy only.
"""

from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

# The share of the shorter side of a large image: 224 of 256 pixels, as in every ImageNet table.
CENTRE_SHARE = 224 / 256


def evaluated_share(config: ConfigDict) -> float:
    """Share of the shorter side of an image that evaluation sees, in a square at its centre."""
    # Small images are trained on whole, large ones in crops: evaluation then sees their centre.
    return CENTRE_SHARE if config.dataset.augmentation == "resized_crop" else 1.0


class Shift(NamedTuple):
    """Pad every side by `padding` black pixels, crop the old size at random, perhaps mirror."""

    padding: int
    mirror: bool


def shift_of(augmentation: str, image_size: int) -> Shift:
    """Returns what `config.dataset.augmentation` says for images in memory of this size in pixels.

    "crop" is what MSDNet and its successors do on CIFAR, 4 of 32 pixels, and in proportion for
    other sizes; "shift" moves by a pixel and does not mirror, since digits must not be mirrored.
    """
    if augmentation == "crop":
        return Shift(padding=image_size // 8, mirror=True)
    return Shift(padding=int(augmentation == "shift"), mirror=False)


class Draws(NamedTuple):
    """The random choices for a batch: one row for each image."""

    crops: np.ndarray  # [n, ...], as the function that drew them says
    mirrored: np.ndarray  # bool[n]

    def rows(self, part: slice) -> "Draws":
        """Returns the choices for a part of the batch."""
        return Draws(self.crops[part], self.mirrored[part])


def draw_shifts(shift: Shift, num_images: int, generator: np.random.Generator) -> Draws:
    """Draws shifts for a whole global batch, so that every process sees the same choices.

    Returns:
        Draws whose `crops` are int[num_images, 2]: top and left corner in the padded image.
    """
    offsets = generator.integers(0, 2 * shift.padding + 1, size=(num_images, 2))
    mirrored = generator.random(num_images) < 0.5
    return Draws(offsets, mirrored & shift.mirror)


def apply_shifts(shift: Shift, images: np.ndarray, draws: Draws) -> np.ndarray:
    """Returns `images` uint8[n, H, W, 3] cropped and mirrored as drawn, in the same shape."""
    height, width = images.shape[1:3]
    pad = (shift.padding, shift.padding)
    padded = np.pad(images, ((0, 0), pad, pad, (0, 0)))
    augmented = np.empty_like(images)
    for row, (top, left) in enumerate(draws.crops):
        augmented[row] = padded[row, top : top + height, left : left + width]
    augmented[draws.mirrored] = augmented[draws.mirrored, :, ::-1]
    return augmented


# Random resized crops as everywhere on ImageNet: shares of the area, and width over height.
_AREA = (0.08, 1.0)
_LOG_RATIO = (np.log(3 / 4), np.log(4 / 3))
_ATTEMPTS = 10


def draw_resized_crops(num_images: int, generator: np.random.Generator) -> Draws:
    """Draws random resized crops and mirrors for a whole global batch.

    Returns:
        Draws whose `crops` are float32[num_images, attempts, 4]: height and width of a crop as
        multiples of sqrt(height * width) of the image, then its place as shares of the free rows
        and columns. The first attempt that fits into the image counts.
    """
    shape = (num_images, _ATTEMPTS)
    area = generator.uniform(*_AREA, shape)
    ratio = np.exp(generator.uniform(*_LOG_RATIO, shape))
    place = generator.random((*shape, 2))
    sides = np.stack([np.sqrt(area / ratio), np.sqrt(area * ratio)], axis=-1)
    mirrored = generator.random(num_images) < 0.5
    return Draws(np.concatenate([sides, place], axis=-1).astype(np.float32), mirrored)
