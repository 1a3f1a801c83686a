"""Images of any of Pillow's kinds and modes as RGB, and upright.

Needs only numpy and Pillow, since it is also copied into exported folders.
"""

import warnings

import numpy as np
from PIL import Image

_WITH_ALPHA = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})

# Formats whose 16-bit grey Pillow puts into the 32 bits of mode "I", some only in older versions.
_GREY_OF_16_BITS = frozenset({"PNG", "PPM"})

# EXIF orientations at which an image is stored from right to left, and from bottom to top; from 5
# on its rows and columns are then interchanged.
RIGHT_TO_LEFT = (2, 3, 7, 8)
BOTTOM_TO_TOP = (3, 4, 6, 7)

# Pillow knows them but cannot decode them, or only by starting another program, as Ghostscript for
# EPS; an IPTC file may hold any of the others. A file's name does not say which of them it is.
NOT_DECODED = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"})

# Of an image of up to twice the limit. Whoever opens one compares its size with the limit itself.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def opened(file, max_pixels: int) -> Image.Image:
    """Opens an image, of which no part may have more than twice as many pixels.

    A size that a file states need not be that of what it holds: an icon of 16 x 16 pixels may hold
    a PNG of any size, which Pillow decodes as it opens the icon.

    Args:
        file: a path, or an open file.
        max_pixels: Pillow's limit from now on.

    Raises:
        Image.DecompressionBombError: a part is too large; decoding may raise it too.
        Exception: Pillow raises many kinds.
    """
    Image.init()
    Image.MAX_IMAGE_PIXELS = max_pixels
    return Image.open(file, formats=[kind for kind in Image.ID if kind not in NOT_DECODED])


def turned(pixels: np.ndarray, orientation: int | None) -> np.ndarray:
    """Stored pixels turned upright; an orientation unknown to EXIF, such as None, is upright."""
    if orientation in RIGHT_TO_LEFT:
        pixels = pixels[:, ::-1]
    if orientation in BOTTOM_TO_TOP:
        pixels = pixels[::-1]
    return pixels.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else pixels


class WrongLevels(ValueError):
    """An image of 32-bit numbers that are not levels from 0 to 255."""


def has_16_bits(image: Image.Image) -> bool:
    """Whether an image, as it was opened, is grey of 16 bits."""
    is_kept_in_32 = image.mode == "I" and image.format in _GREY_OF_16_BITS
    return image.mode.startswith("I;16") or is_kept_in_32


def upper_8_bits(image: Image.Image) -> Image.Image:
    """Returns the upper 8 of 16 bits of grey, as Pillow does for colour; it cuts grey at 255.

    The level that the file calls transparent becomes transparent.
    """
    values = np.asarray(image)
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    transparent = image.info.get("transparency")
    if transparent is not None:
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def levels(image: Image.Image) -> Image.Image:
    """Returns an image of 32-bit numbers in 8 bits.

    Pillow cuts what lies outside and drops fractions: many images become black or white.

    Raises:
        WrongLevels: the numbers are not levels from 0 to 255.
    """
    values = np.asarray(image)
    least, most = values.min(), values.max()
    # NaN, which is then both the least and the most, fails the comparison too.
    if not (least >= 0 and most <= 255) or (image.mode == "F" and 0 < most <= 1):
        raise WrongLevels(
            f"has pixels from {least:g} to {most:g}, must be of 8 or 16 bits or from 0 to 255"
        )
    return Image.fromarray(values.astype(np.uint8))


def over_white(image: Image.Image) -> Image.Image:
    """Returns an image of 8 bits as RGB, composed over white where it is transparent."""
    if image.mode not in _WITH_ALPHA and "transparency" not in image.info:
        return image.convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")
