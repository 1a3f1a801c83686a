"""Kinds of image files: which endings they have, and how Pillow reads them.

Pillow reads all that are not JPEGs. JPEGs, of which data sets mostly consist, are decoded by
TensorFlow, which can decode the crop alone, see `decode`.
"""

import functools
import io

import numpy as np
from PIL import Image, ImageOps

from l2w_jax.data import rgb


class BadImage(Exception):
    """An image that cannot be used; the message says why in one line."""


class TooLarge(BadImage):
    """An image with more pixels than are to be decoded."""


@functools.cache
def image_endings() -> tuple[str, ...]:
    """Returns the endings of all files that can be decoded, such as ".jpg", in lower case."""
    Image.init()
    return tuple(
        ending
        for ending, kind in Image.EXTENSION.items()
        if kind in Image.OPEN and kind not in rgb.NOT_DECODED
    )


def check_size(height: int, width: int, max_pixels: int) -> None:
    """Raises TooLarge if an image has more pixels than `config.dataset.max_pixels` allows."""
    if height * width > max_pixels:
        raise TooLarge(
            f"{width} x {height} pixels are more than config.dataset.max_pixels {max_pixels} allows"
        )


def read_upright(encoded: bytes, max_pixels: int) -> np.ndarray:
    """Returns an image upright and without transparency, uint8[H, W, 3]; the first of several.

    Args:
        encoded: a file's bytes.
        max_pixels: the most that the image may have; the header is checked before decoding.

    Raises:
        BadImage: this is not an image, or an incomplete or a too large one.
    """
    try:
        with rgb.opened(io.BytesIO(encoded), max_pixels) as image:
            check_size(image.height, image.width, max_pixels)
            ImageOps.exif_transpose(image, in_place=True)
            return np.asarray(_in_rgb(image))
    except BadImage:
        raise
    except Image.DecompressionBombError as error:
        raise TooLarge(
            f"has more than twice the pixels that config.dataset.max_pixels {max_pixels} allows"
        ) from error
    except rgb.WrongLevels as error:
        raise BadImage(str(error)) from error
    except Image.UnidentifiedImageError as error:
        raise BadImage("is no image that can be decoded") from error
    # Pillow raises many kinds of errors.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadImage(f"is no image that can be decoded: {reason}") from error


def exif_orientation(encoded: bytes) -> int:
    """Returns how the camera was held, as EXIF's 1 to 8; 1, upright, if the file has none."""
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            orientation = image.getexif().get(0x0112, 1)
    # Pillow raises many kinds of errors; a broken tag is no reason to lose the picture.
    except Exception:
        orientation = 1
    return orientation if orientation in range(1, 9) else 1


def _in_rgb(image: Image.Image) -> Image.Image:
    """Returns an image as RGB, composed over white where it is transparent."""
    if rgb.has_16_bits(image):
        image = rgb.upper_8_bits(image)
    if image.mode in ("I", "F"):
        image = rgb.levels(image)
    return rgb.over_white(image)
