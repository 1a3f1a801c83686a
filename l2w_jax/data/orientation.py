"""Which way up a JPEG is: as its EXIF or XMP says, wherever these stand among its headers.

`PIL.ImageOps.exif_transpose` does the same for a picture that Pillow decoded. Every file is checked
for whether it may have to be turned, so that has to be quick.
"""

import re
from collections.abc import Sequence

import numpy as np

from l2w_jax.data.cut_jpeg import START
from l2w_jax.data.formats import exif_orientation
from l2w_jax.data.tensorflow_import import tf

UPRIGHT = 1

# What most files begin with: nothing or a JFIF segment, and then the tables for decoding. Headers
# that could say anything on orientation come before the tables.
_TABLES = b"\xff\xdb"
_JFIF = b"\xff\xe0\x00\x10JFIF\0"
_AFTER_START = 2
_AFTER_JFIF = 20

# Kind and length of an application segment or a comment: all that may stand before the tables.
_HEADER = re.compile(rb"\xff+([\xe0-\xef\xfe])(..)", re.DOTALL)
_APP1 = b"\xe1"
_SAY_ORIENTATION = (b"Exif\0", b"http://ns.adobe.com/xap/1.0/\0")


def are_upright_jpegs(encoded: Sequence[tf.Tensor]) -> tf.Tensor:
    """Whether each file is a JPEG that need not be turned, bool[n]; a graph function."""
    length = _AFTER_JFIF + len(_TABLES)
    heads = tf.stack([tf.strings.substr(of_image, 0, length) for of_image in encoded])
    heads = tf.strings.join([heads, "\0" * length])

    def have(position: int, expected: bytes) -> tf.Tensor:
        return tf.strings.substr(heads, position, len(expected)) == expected

    are_jpegs = have(0, START)
    may_be_turned = are_jpegs & ~(
        have(_AFTER_START, _TABLES) | (have(_AFTER_START, _JFIF) & have(_AFTER_JFIF, _TABLES))
    )

    # Python, which is slow, is called only for groups with files that have other headers.
    return are_jpegs & tf.cond(
        tf.reduce_any(may_be_turned),
        lambda: tf.numpy_function(_are_upright, [may_be_turned, *encoded], tf.bool, stateful=False),
        lambda: ~may_be_turned,
    )


def _are_upright(may_be_turned: np.ndarray, *encoded: bytes) -> np.ndarray:
    return np.array(
        [
            not may_be or of_jpeg(of_image) == UPRIGHT
            for may_be, of_image in zip(may_be_turned, encoded, strict=True)
        ]
    )


def of_jpeg(encoded: bytes) -> int:
    """Returns how the camera was held, as EXIF's 1 to 8; 1 is upright."""
    position = _AFTER_START
    while header := _HEADER.match(encoded, position):
        if header[1] == _APP1 and encoded.startswith(_SAY_ORIENTATION, header.end()):
            return exif_orientation(encoded)
        position = header.end(1) + int.from_bytes(header[2])
    return UPRIGHT
