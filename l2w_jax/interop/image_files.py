"""Image files as the network exported to this folder sees them; needs numpy and Pillow.

Before version 11.2.1 Pillow does not see which way up a JPEG is that says so in XMP only.
"""

import io
import math
from pathlib import Path

import numpy as np
from cut_jpeg import with_end
from PIL import Image
from rgb import (
    BOTTOM_TO_TOP,
    RIGHT_TO_LEFT,
    has_16_bits,
    levels,
    opened,
    over_white,
    turned,
    upper_8_bits,
)

_ORIENTATION = 0x0112  # EXIF's


def read_image(path, size, centre_share, max_pixels):
    """The centre of an image file, upright and over white, uint8 [size, size, 3].

    It is within 1 of 255 levels of what training saw, except for one column. Of an upright JPEG
    training decodes only this square: if colours are stored at half the width and the picture goes
    on to the right of the square, its last column lacks a neighbour, and may be tens of levels off.

    A JPEG that lacks its last bytes is used if at most a hundredth of the picture is missing;
    `predict` does not notice what is missing below the square.

    Raises OSError for a file that is not an image or is incomplete, ValueError for an image of more
    than `max_pixels` or with levels that no picture has; Pillow raises other kinds too.
    """
    try:
        square, orientation = centre(path, centre_share, max_pixels)
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"has more than twice the {max_pixels} pixels that network.json's "
            "image_format.max_pixels allows"
        ) from error
    except OSError:
        completed = with_end(Path(path).read_bytes())
        if completed is None:
            raise
        square, orientation = centre(io.BytesIO(completed), centre_share, max_pixels)
    # The large square is not turned: copying it in another order takes as long as decoding it.
    return turned((resized(square, size) + 0.5).clip(0, 255).astype(np.uint8), orientation)


def centre(file, share, max_pixels):
    """The square of this share of the shorter side, as stored, and the EXIF orientation.

    Uint8 [s, s, 3], over white; of the upright image it begins at floor((length - s) / 2).
    """
    with opened(file, max_pixels) as image:
        if image.width * image.height > max_pixels:
            raise ValueError(
                f"{image.width} x {image.height} pixels are more than the {max_pixels} that "
                "network.json's image_format.max_pixels allows"
            )
        image.load()
        is_of_16_bits = has_16_bits(image)
        orientation = image.getexif().get(_ORIENTATION)
    if image.mode in ("I", "F") and not is_of_16_bits:
        image = levels(image)
    side = max(1, round(share * min(image.size)))
    left = (image.width - side + (orientation in RIGHT_TO_LEFT)) // 2
    top = (image.height - side + (orientation in BOTTOM_TO_TOP)) // 2
    image = image.crop((left, top, left + side, top + side))
    if is_of_16_bits:
        image = upper_8_bits(image)
    return np.asarray(over_white(image)), orientation


def resized(square, size):
    """A square uint8 [s, s, 3] as float32 [size, size, 3]: W square Wᵀ, W of `windows`."""
    parts = windows(len(square), size)
    return columns_first(columns_first(square, parts), parts)


def columns_first(pixels, parts):
    """The weighted sum of rows in each of the windows, [s, t, 3] -> float32 [t, windows, 3]."""
    sums = [
        weights @ pixels[part].reshape(len(weights), -1).astype(np.float32)
        for part, weights in parts
    ]
    return np.stack(sums).reshape(len(parts), -1, 3).swapaxes(0, 1)


def windows(old, new):
    """Which of `old` pixels become each of `new` ones, and how much each counts: (slice, [n])."""
    return [window(k, old, new) for k in range(new)]


def window(k, old, new):
    """The window of pixel k of `new` ones, see `windows`."""
    scale = old / new
    if old > 2 * new:  # the mean of all pixels that become one
        start, end = k * scale, (k + 1) * scale
        pixels = np.arange(int(start), min(math.ceil(end), old))
        weights = (np.minimum(end, pixels + 1) - np.maximum(start, pixels)) / scale
    else:  # bilinear
        place = min(max((k + 0.5) * scale - 0.5, 0), old - 1)
        pixels = np.arange(int(place), min(int(place) + 2, old))
        weights = 1 - abs(place - pixels)
    return slice(pixels[0], pixels[-1] + 1), np.float32(weights)
