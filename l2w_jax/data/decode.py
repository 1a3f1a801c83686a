"""From encoded images to the part of each that the network is to see.

JPEGs are decoded only where the crop lies. Grey, palette, RGBA and CMYK images become RGB (alpha is
dropped), and a JPEG is turned upright as its EXIF orientation says. `crops` is a TensorFlow graph
function for groups of images: each operation of a graph costs microseconds, and what is done once
for a group is nearly free. `crop` is the same for one image, in Python.
"""

import functools
import io
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from l2w_jax.data.tensorflow_import import tf

# From heights int32[n], widths int32[n] and arguments with n rows to boxes int32[n, 4]: top, left,
# height and width in pixels.
ChooseBoxes = Callable[..., tf.Tensor]

# Share of the shorter side that evaluation sees: 224 of 256 pixels in every ImageNet table.
EVALUATED_SHARE = 224 / 256

_JPEG = b"\xff\xd8\xff"  # the first bytes of any

# The EXIF segment follows the first two bytes and its own header, or a JFIF segment of 18 bytes
# besides.
_EXIF = b"Exif"
_EXIF_STARTS = (6, 24)
_ORIENTATION_TAG = 0x0112


def crops(
    encoded: Sequence[tf.Tensor], choose_boxes: ChooseBoxes, *arguments: tf.Tensor
) -> list[tf.Tensor]:
    """Returns the chosen box of each of n upright images, uint8[h, w, 3].

    Args:
        encoded: n files' bytes.
        choose_boxes: `drawn_boxes` for training, `centre_boxes` for evaluation.
        arguments: of `choose_boxes`, with n rows.
    """

    def only_the_crops() -> list[tf.Tensor]:
        shapes = tf.stack([tf.io.extract_jpeg_shape(of_image) for of_image in encoded])
        boxes = tf.unstack(choose_boxes(shapes[:, 0], shapes[:, 1], *arguments))
        return [
            tf.image.decode_and_crop_jpeg(of_image, box, channels=3)
            for of_image, box in zip(encoded, boxes, strict=True)
        ]

    # A branch that is not taken costs time for each of its operations: this one has a single one.
    def one_by_one() -> list[tf.Tensor]:
        return tf.numpy_function(
            _crops_in_python(choose_boxes, len(encoded)),
            [*encoded, *arguments],
            [tf.uint8] * len(encoded),
            stateful=False,
        )

    return tf.cond(tf.reduce_all(_are_upright_jpegs(encoded)), only_the_crops, one_by_one)


# TensorFlow never lets go of a Python function that a graph calls: there is to be one of each kind.
@functools.cache
def _crops_in_python(choose_boxes: ChooseBoxes, num_images: int) -> Callable[..., list[np.ndarray]]:
    def crops_in_python(*inputs: bytes | np.ndarray) -> list[np.ndarray]:
        encoded, arguments = inputs[:num_images], inputs[num_images:]
        return [
            crop(of_image, choose_boxes, *(argument[row : row + 1] for argument in arguments))
            for row, of_image in enumerate(encoded)
        ]

    return crops_in_python


def crop(encoded: bytes, choose_boxes: ChooseBoxes, *arguments: np.ndarray) -> np.ndarray:
    """Returns the chosen box of an upright image, uint8[h, w, 3].

    Args:
        encoded: a file's bytes.
        choose_boxes: see `crops`.
        arguments: of `choose_boxes`, with one row.

    Raises:
        tf.errors.OpError: this is no image.
    """
    contents = tf.constant(encoded)
    is_jpeg = encoded.startswith(_JPEG)
    has_exif = is_jpeg and any(encoded.startswith(_EXIF, start) for start in _EXIF_STARTS)
    orientation = _exif_orientation(encoded) if has_exif else 1
    if is_jpeg and orientation == 1:
        box = _box(choose_boxes, tf.io.extract_jpeg_shape(contents), *arguments)
        return tf.image.decode_and_crop_jpeg(contents, box, channels=3).numpy()
    whole = tf.image.decode_image(contents, channels=3, expand_animations=False).numpy()
    upright = _turn(whole, orientation)
    top, left, height, width = _box(choose_boxes, tf.constant(upright.shape), *arguments).numpy()
    return np.ascontiguousarray(upright[top : top + height, left : left + width])


# Traced once for each `choose_boxes`: as single operations it would take two milliseconds.
@tf.function(autograph=False)
def _box(choose_boxes: ChooseBoxes, shape: tf.Tensor, *arguments: tf.Tensor) -> tf.Tensor:
    return choose_boxes(shape[:1], shape[1:2], *arguments)[0]


def drawn_boxes(heights: tf.Tensor, widths: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    """The crops (`augment.draw_resized_crops`) of n images of these sizes: `ChooseBoxes`.

    The first attempt that fits counts; if none does, the largest centre crop of a legal ratio.
    """
    image = tf.stack([heights, widths], axis=-1)
    sqrt_area = tf.sqrt(tf.cast(heights * widths, tf.float32))[:, None, None]
    sides = tf.cast(tf.round(sqrt_area * draws[..., :2]), tf.int32)  # [n, attempts, 2]
    fits = tf.reduce_all((sides > 0) & (sides <= image[:, None]), axis=-1)
    first = tf.argmax(fits, axis=-1, output_type=tf.int32)
    drawn = tf.gather(sides, first, batch_dims=1)
    shares = tf.gather(draws[..., 2:], first, batch_dims=1)
    free = image - drawn
    # One of the `free` + 1 places, all equally likely for a uniform share in [0, 1).
    corner = tf.minimum(tf.cast(shares * tf.cast(free + 1, tf.float32), tf.int32), free)
    other_sides = tf.cast(image[:, ::-1], tf.float32)
    largest = tf.minimum(image, tf.cast(tf.round(other_sides * 4 / 3), tf.int32))
    return tf.where(
        tf.reduce_any(fits, axis=-1)[:, None],
        tf.concat([corner, drawn], axis=-1),
        tf.concat([(image - largest) // 2, largest], axis=-1),
    )


def centre_boxes(heights: tf.Tensor, widths: tf.Tensor, shares: tf.Tensor) -> tf.Tensor:
    """The centre squares of `shares` float32[n] of the shorter sides of n images: `ChooseBoxes`."""
    shorter = tf.cast(tf.minimum(heights, widths), tf.float32)
    sides = tf.maximum(tf.cast(tf.round(shorter * shares), tf.int32), 1)
    return tf.stack([(heights - sides) // 2, (widths - sides) // 2, sides, sides], axis=-1)


def _are_upright_jpegs(encoded: Sequence[tf.Tensor]) -> tf.Tensor:
    """Whether each file is a JPEG that need not be turned, bool[n]; a graph function."""
    length = max(_EXIF_STARTS) + len(_EXIF)
    heads = tf.stack([tf.strings.substr(of_image, 0, length) for of_image in encoded])
    heads = tf.strings.join([heads, "\0" * length])
    is_jpeg = tf.strings.substr(heads, 0, len(_JPEG)) == _JPEG
    has_exif = is_jpeg & tf.reduce_any(
        [tf.strings.substr(heads, start, len(_EXIF)) == _EXIF for start in _EXIF_STARTS], axis=0
    )

    # Python, which is slow, is called only for files that have EXIF.
    return is_jpeg & tf.cond(
        tf.reduce_any(has_exif),
        lambda: tf.numpy_function(_are_upright, [has_exif, *encoded], tf.bool, stateful=False),
        lambda: ~has_exif,
    )


def _are_upright(has_exif: np.ndarray, *encoded: bytes) -> np.ndarray:
    return np.array(
        [
            not may_be_turned or _exif_orientation(of_image) == 1
            for may_be_turned, of_image in zip(has_exif, encoded, strict=True)
        ]
    )


def _exif_orientation(encoded: bytes) -> int:
    """Returns how the camera was held, 1 to 8; 1 is upright, and what is said of no other."""
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    # Pillow raises many kinds of errors; a broken tag is no reason to lose the picture.
    except Exception:
        orientation = 1
    return orientation if orientation in range(1, 9) else 1


def _turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turns a stored image upright. The eight orientations are a transposition and two mirrors."""
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return image
