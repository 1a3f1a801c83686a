"""Kinds of image files: which endings they have, and what Pillow shows of each.

Pillow reads all that is no JPEG. JPEGs, of which a data set mostly consists, are decoded by
TensorFlow, which decodes the crop alone, see `decode`.
"""

import functools
import io

import numpy as np
from PIL import Image, ImageOps

# Pillow knows their endings but cannot decode them, or only by starting another program.
_NOT_DECODED = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})

_WITH_ALPHA = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})

# Kinds whose grey of 16 bits Pillow puts into the 32 of mode "I", some only in older versions.
_GREY_OF_16_BITS = frozenset({"PNG", "PPM"})

# Every file is held against `config.dataset.max_pixels`, which may allow more than this does.
Image.MAX_IMAGE_PIXELS = None


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
        if kind in Image.OPEN and kind not in _NOT_DECODED
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
        max_pixels: that the image may have; the header tells before anything is decoded.

    Raises:
        BadImage: this is no image, an incomplete or a too large one.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            check_size(image.height, image.width, max_pixels)
            ImageOps.exif_transpose(image, in_place=True)
            return np.asarray(_on_white(image))
    except BadImage:
        raise
    except Image.UnidentifiedImageError as error:
        raise BadImage("is no image that can be decoded") from error
    # Pillow raises many kinds of errors.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadImage(f"is no image that can be decoded: {reason}") from error


def exif_orientation(encoded: bytes) -> int:
    """Returns how the camera was held, 1 to 8; 1 is upright, and what is said of no other."""
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            orientation = image.getexif().get(0x0112, 1)
    # Pillow raises many kinds of errors; a broken tag is no reason to lose the picture.
    except Exception:
        orientation = 1
    return orientation if orientation in range(1, 9) else 1


def _on_white(image: Image.Image) -> Image.Image:
    """Returns an image as RGB, composed over white where it is transparent."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in _GREY_OF_16_BITS):
        image = _in_8_bits(image)
    if image.mode in ("I", "F"):
        image = _levels(image)
    if image.mode not in _WITH_ALPHA and "transparency" not in image.info:
        return image.convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _levels(image: Image.Image) -> Image.Image:
    """Returns an image of 32-bit numbers, which must be levels from 0 to 255, in 8 bits.

    Pillow cuts what lies outside and drops fractions: many images become black or white.
    """
    values = np.asarray(image)
    least, most = values.min(), values.max()
    if least < 0 or most > 255 or (image.mode == "F" and 0 < most <= 1):
        raise BadImage(
            f"has pixels from {least:g} to {most:g}, must be of 8 or 16 bits or from 0 to 255"
        )
    return Image.fromarray(values.astype(np.uint8))


def _in_8_bits(image: Image.Image) -> Image.Image:
    """Returns the upper 8 of 16 bits of grey, as Pillow does of colour; grey it cuts at 255."""
    values = np.asarray(image)
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    transparent = image.info.get("transparency")
    if transparent is not None:
        alpha = np.where(values == transparent, 0, 255).astype(np.uint8)
        grey.putalpha(Image.fromarray(alpha))
    return grey
