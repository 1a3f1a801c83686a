"""From encoded images to the part of each that the network is to see.

JPEGs are decoded only where the crop lies. Images of all kinds become RGB, composed over white
where they are transparent, and are turned upright as their EXIF orientation says. `crops` is a
TensorFlow graph function for groups of images: each operation of a graph costs microseconds, and
one that is done once for a group is nearly free. `crop` does the same for one image, in Python.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from l2w_jax.data import orientation, rgb
from l2w_jax.data.cut_jpeg import START, with_end
from l2w_jax.data.formats import BadImage, TooLarge, check_size, read_upright
from l2w_jax.data.tensorflow_import import tf

# From heights int32[n], widths int32[n] and arguments with n rows to boxes int32[n, 4]: top, left,
# height and width in pixels.
ChooseBoxes = Callable[..., tf.Tensor]

# As Pillow, OpenCV and PyTorch's readers decode; TensorFlow's default is up to 4 levels off.
_EXACT = "INTEGER_ACCURATE"
decode_crop = functools.partial(tf.image.decode_and_crop_jpeg, channels=3, dct_method=_EXACT)


def crops(
    encoded: Sequence[tf.Tensor],
    max_pixels: int,
    choose_boxes: ChooseBoxes,
    *arguments: tf.Tensor,
) -> list[tf.Tensor]:
    """Returns the chosen box of each of n upright images, uint8[h, w, 3].

    Args:
        encoded: n files' bytes.
        max_pixels: the most that an image may have; a larger one is an error.
        choose_boxes: `drawn_boxes` for training, `centre_boxes` for evaluation.
        arguments: of `choose_boxes`, with n rows.
    """

    def only_the_crops() -> list[tf.Tensor]:
        shapes = tf.stack([tf.io.extract_jpeg_shape(of_image) for of_image in encoded])
        boxes = choose_boxes(shapes[:, 0], shapes[:, 1], *arguments)
        # Decoding an empty box is an error, as a picture that is too large should be.
        is_small = tf.reduce_prod(tf.cast(shapes[:, :2], tf.int64), axis=1) <= max_pixels
        boxes = tf.unstack(tf.where(is_small[:, None], boxes, 0))
        return [decode_crop(of_image, box) for of_image, box in zip(encoded, boxes, strict=True)]

    # A branch not taken costs time for each of its operations, so this one has only one.
    def one_by_one() -> list[tf.Tensor]:
        return tf.numpy_function(
            _crops_in_python(max_pixels, choose_boxes, len(encoded)),
            [*encoded, *arguments],
            [tf.uint8] * len(encoded),
            stateful=False,
        )

    are_upright_jpegs = orientation.are_upright_jpegs(encoded)
    return tf.cond(tf.reduce_all(are_upright_jpegs), only_the_crops, one_by_one)


# TensorFlow never lets go of a Python function that a graph calls, so there is one of each kind.
@functools.cache
def _crops_in_python(
    max_pixels: int, choose_boxes: ChooseBoxes, num_images: int
) -> Callable[..., list[np.ndarray]]:
    def crops_in_python(*inputs: bytes | np.ndarray) -> list[np.ndarray]:
        encoded, arguments = inputs[:num_images], inputs[num_images:]
        return [
            crop(
                of_image, max_pixels, choose_boxes, *(column[row : row + 1] for column in arguments)
            )
            for row, of_image in enumerate(encoded)
        ]

    return crops_in_python


def crop(
    encoded: bytes, max_pixels: int, choose_boxes: ChooseBoxes, *arguments: np.ndarray
) -> np.ndarray:
    """Returns the chosen box of an upright image, uint8[h, w, 3].

    Args:
        encoded: a file's bytes.
        max_pixels: the most that the image may have.
        choose_boxes: see `crops`.
        arguments: of `choose_boxes`, with one row.

    Raises:
        BadImage: this is not an image, or an incomplete or a too large one.
    """
    if encoded.startswith(START):
        try:
            return _crop_of_jpeg(encoded, max_pixels, choose_boxes, *arguments)
        except tf.errors.OpError:
            pass  # Pillow reads rare kinds of JPEGs, or says what is wrong.
    return _part(read_upright(encoded, max_pixels), choose_boxes, *arguments)


def crop_of_perhaps_cut(
    encoded: bytes, max_pixels: int, choose_boxes: ChooseBoxes, *arguments: np.ndarray
) -> tuple[np.ndarray, bool]:
    """Does what `crop` does, but a JPEG may lack its last bytes and a hundredth of its picture.

    Returns:
        The crop, and whether the file lacks its last bytes.

    Raises:
        BadImage: see `crop`.
    """
    try:
        return crop(encoded, max_pixels, choose_boxes, *arguments), False
    except TooLarge:
        raise
    except BadImage:
        completed = with_end(encoded)
        if completed is None:
            raise
    return crop(completed, max_pixels, choose_boxes, *arguments), True


def _crop_of_jpeg(
    encoded: bytes, max_pixels: int, choose_boxes: ChooseBoxes, *arguments: np.ndarray
) -> np.ndarray:
    contents = tf.constant(encoded)
    shape = tf.io.extract_jpeg_shape(contents)
    check_size(*shape.numpy()[:2].tolist(), max_pixels)
    held = orientation.of_jpeg(encoded)
    if held == orientation.UPRIGHT:
        box = _box(choose_boxes, shape, *arguments)
        return decode_crop(contents, box).numpy()
    whole = tf.image.decode_jpeg(contents, channels=3, dct_method=_EXACT).numpy()
    return _part(rgb.turned(whole, held), choose_boxes, *arguments)


def _part(upright: np.ndarray, choose_boxes: ChooseBoxes, *arguments: np.ndarray) -> np.ndarray:
    top, left, height, width = _box(choose_boxes, tf.constant(upright.shape), *arguments).numpy()
    return np.ascontiguousarray(upright[top : top + height, left : left + width])


# Traced once for each `choose_boxes`: as separate operations it would take two milliseconds.
@tf.function(autograph=False)
def _box(choose_boxes: ChooseBoxes, shape: tf.Tensor, *arguments: tf.Tensor) -> tf.Tensor:
    return choose_boxes(shape[:1], shape[1:2], *arguments)[0]


def drawn_boxes(heights: tf.Tensor, widths: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    """The crops (`augment.draw_resized_crops`) of n images of these sizes: `ChooseBoxes`.

    The first attempt that fits counts; if none does, the largest centre crop of a legal ratio.
    """
    image = tf.stack([heights, widths], axis=-1)
    # Not multiplied as integers: a large image has more pixels than an int32 can count.
    area = tf.cast(heights, tf.float32) * tf.cast(widths, tf.float32)
    sqrt_area = tf.sqrt(area)[:, None, None]
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
