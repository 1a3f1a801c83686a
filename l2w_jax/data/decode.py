"""From an encoded image to the pixels that the network sees: TensorFlow graph functions.

JPEGs are decoded only where the crop lies. Grey, palette, RGBA and CMYK images become RGB (alpha is
dropped), and a JPEG is turned upright as its EXIF orientation says. A function is traced once for
each of its `size`s, whatever the number of pipelines that call it.
"""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from l2w_jax.data.tensorflow_import import tf

Box = tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]  # top, left, height, width; int32 pixels

# Share of the shorter side that evaluation sees: 224 of 256 pixels in every ImageNet table.
EVALUATED_SHARE = 224 / 256

_ORIENTATION_TAG = 0x0112


@tf.function(autograph=False)
def training_image(encoded: tf.Tensor, draws: tf.Tensor, mirrored: tf.Tensor, size: int):
    """Returns a random resized crop, uint8[size, size, 3], perhaps mirrored.

    Args:
        encoded: the file's bytes.
        draws: float32[attempts, 4], see `augment.draw_resized_crops`.
        mirrored: whether to mirror it.
        size: pixels of the square that the network sees.
    """
    crop = _decode_crop(encoded, lambda height, width: drawn_box(draws, height, width))
    # Unlike tf.reverse, this takes the choice as a tensor; a branch of the graph would cost more.
    return tf.raw_ops.Reverse(tensor=_resize(crop, size), dims=[False, mirrored, False])


@tf.function(autograph=False)
def evaluation_image(encoded: tf.Tensor, size: int, share: float = EVALUATED_SHARE):
    """Returns the centre square of `share` of the shorter side as uint8[size, size, 3]."""
    crop = _decode_crop(encoded, lambda height, width: _centre_box(share, height, width))
    return _resize(crop, size)


def drawn_box(draws: tf.Tensor, height: tf.Tensor, width: tf.Tensor) -> Box:
    """The crop (`augment.draw_resized_crops`) of an image of this size, both in pixels.

    The first attempt that fits counts; if none does, the largest centre crop of a legal ratio.
    """
    side = tf.sqrt(tf.cast(height * width, tf.float32))
    heights = tf.cast(tf.round(side * draws[:, 0]), tf.int32)
    widths = tf.cast(tf.round(side * draws[:, 1]), tf.int32)
    fits = (heights > 0) & (heights <= height) & (widths > 0) & (widths <= width)
    first = tf.argmax(fits)

    def drawn() -> Box:
        top = _place(draws[first, 2], height - heights[first])
        left = _place(draws[first, 3], width - widths[first])
        return top, left, heights[first], widths[first]

    def fallback() -> Box:
        rows = tf.minimum(height, tf.cast(tf.round(tf.cast(width, tf.float32) * 4 / 3), tf.int32))
        columns = tf.minimum(
            width, tf.cast(tf.round(tf.cast(height, tf.float32) * 4 / 3), tf.int32)
        )
        return (height - rows) // 2, (width - columns) // 2, rows, columns

    return tf.cond(fits[first], drawn, fallback)


def _place(share: tf.Tensor, free: tf.Tensor) -> tf.Tensor:
    """Returns one of the `free` + 1 places, all equally likely for a uniform share in [0, 1)."""
    return tf.minimum(tf.cast(share * tf.cast(free + 1, tf.float32), tf.int32), free)


def _centre_box(share: float, height: tf.Tensor, width: tf.Tensor) -> Box:
    shorter = tf.cast(tf.minimum(height, width), tf.float32)
    side = tf.maximum(tf.cast(tf.round(shorter * share), tf.int32), 1)
    return (height - side) // 2, (width - side) // 2, side, side


def _decode_crop(
    encoded: tf.Tensor, choose_box: Callable[[tf.Tensor, tf.Tensor], Box]
) -> tf.Tensor:
    """Returns the chosen box of the upright image, uint8[h, w, 3]."""
    is_jpeg = tf.io.is_jpeg(encoded)
    # The EXIF segment follows the first two bytes and its own header, or a JFIF segment of 18 bytes
    # besides. Python, which is slow, is called only for files that have one.
    header = tf.strings.join([tf.strings.substr(encoded, 0, 28), "\0" * 28])
    has_exif = (tf.strings.substr(header, 6, 4) == "Exif") | (
        tf.strings.substr(header, 24, 4) == "Exif"
    )

    def only_the_crop() -> tf.Tensor:
        shape = tf.io.extract_jpeg_shape(encoded)
        box = tf.stack(choose_box(shape[0], shape[1]))
        return tf.image.decode_and_crop_jpeg(encoded, box, channels=3)

    def crop_of_the_whole() -> tf.Tensor:
        whole = tf.image.decode_image(encoded, channels=3, expand_animations=False)
        upright = tf.cond(is_jpeg, lambda: _turn(whole, encoded), lambda: whole)
        shape = tf.shape(upright)
        top, left, height, width = choose_box(shape[0], shape[1])
        return upright[top : top + height, left : left + width]

    return tf.cond(is_jpeg & ~has_exif, only_the_crop, crop_of_the_whole)


def _exif_orientation(encoded: bytes) -> np.int32:
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    # Pillow raises many kinds of errors; a broken tag is no reason to lose the picture.
    except Exception:
        orientation = 1
    return np.int32(orientation if orientation in range(1, 9) else 1)


def _turn(image: tf.Tensor, encoded: tf.Tensor) -> tf.Tensor:
    """Turns a stored image upright. The eight orientations are a transposition and two mirrors."""
    orientation = tf.ensure_shape(tf.numpy_function(_exif_orientation, [encoded], tf.int32), [])
    image = tf.cond(orientation >= 5, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
    mirrored = tf.reduce_any(orientation == [2, 3, 6, 7])
    image = tf.cond(mirrored, lambda: tf.reverse(image, [1]), lambda: image)
    upside_down = tf.reduce_any(orientation == [3, 4, 7, 8])
    return tf.cond(upside_down, lambda: tf.reverse(image, [0]), lambda: image)


def _resize(image: tf.Tensor, size: int) -> tf.Tensor:
    """Returns uint8[size, size, 3], bilinear, which leaves a crop of the right size as it is.

    The filter widens (at three times the cost) only where an image shrinks by more than half:
    before that, plain bilinear interpolation skips no pixel.
    """

    def resized(antialias: bool) -> tf.Tensor:
        pixels = tf.image.resize(image, [size, size], "bilinear", antialias=antialias)
        return tf.cast(pixels + 0.5, tf.uint8)

    is_large = tf.reduce_max(tf.shape(image)[:2]) > 2 * size
    fitted = tf.cond(is_large, lambda: resized(True), lambda: resized(False))
    return tf.ensure_shape(fitted, [size, size, 3])
