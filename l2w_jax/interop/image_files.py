"""Image files as the network exported to this folder sees them; needs numpy and Pillow."""

import numpy as np
from PIL import Image, ImageOps

# Pillow gives them in numbers of 32 bits.
_GREY_OF_16_BITS = {("I", "PNG"), ("I", "PPM")}


def read_image(path, size, centre_share):
    """The centre of an image file, upright and over white, uint8 [size, size, 3].

    As training saw it: of halved or unscaled images every pixel, of others to 1 of 255 levels.
    """
    with Image.open(path) as image:
        has_16_bits = (
            image.mode.startswith("I;16") or (image.mode, image.format) in _GREY_OF_16_BITS
        )
        image = ImageOps.exif_transpose(image)
        if image.mode[0] in "IF":
            image = grey_in_8_bits(np.asarray(image), has_16_bits)
        image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    pixels = np.asarray(Image.alpha_composite(white, image).convert("RGB"), np.float32)
    side = max(1, round(centre_share * min(image.size)))
    top, left = ((length - side) // 2 for length in pixels.shape[:2])
    weights = resize_weights(side, size)
    square = np.tensordot(weights, pixels[top : top + side, left : left + side], 1)
    return (weights @ square + 0.5).clip(0, 255).astype(np.uint8)


def grey_in_8_bits(values, has_16_bits):
    """Of 16 bits the upper ones; numbers of 32 bits must be levels from 0 to 255."""
    if has_16_bits:
        return Image.fromarray((values >> 8).astype(np.uint8))
    least, most = values.min(), values.max()
    if least < 0 or most > 255 or (values.dtype.kind == "f" and 0 < most <= 1):
        found = f"{least:g} to {most:g}"
        raise ValueError(f"has pixels from {found}, must be of 8 or 16 bits or from 0 to 255")
    return Image.fromarray(values.astype(np.uint8))


def resize_weights(old, new):
    """How much each of `old` pixels counts in each of `new` ones, [new, old]."""
    pixels, scale = np.arange(old), old / new
    if old > 2 * new:  # the mean of all pixels that become one
        edges = np.arange(new + 1)[:, None] * scale
        overlap = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
        return np.float32(overlap.clip(0) / scale)
    centres = ((np.arange(new)[:, None] + 0.5) * scale - 0.5).clip(0, old - 1)
    return np.float32((1 - abs(centres - pixels)).clip(0))  # bilinear
