"""Which way up a JPEG is, wherever among its headers it says so."""

import io
from unittest import mock

import numpy as np
import pytest
from PIL import Image, ImageOps

from l2w_jax.data import decode, orientation
from l2w_jax.data.tensorflow_import import tf


def whole(heights, widths):
    return tf.stack([0 * heights, 0 * widths, heights, widths], axis=-1)


def jpeg(mode: str = "RGB") -> bytes:
    coarse = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((40, 24), Image.BICUBIC).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2) + content


def exif(held: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = held
    return segment(0xE1, tags.tobytes())


def xmp(held: int | None = None) -> bytes:
    said = f' tiff:Orientation="{held}"' if held else ""
    return segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta" + said.encode() + b"/>")


COMMENT = segment(0xFE, b"a comment")
PROFILE = segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(5000))
PADDED = b"\xff\xff" + COMMENT


def with_headers(encoded: bytes, *headers: bytes, after_jfif: bool = False) -> bytes:
    place = 20 if after_jfif else 2
    return encoded[:place] + b"".join(headers) + encoded[place:]


PLACES = {
    "first": lambda held: with_headers(jpeg(), exif(held)),
    "after JFIF": lambda held: with_headers(jpeg(), exif(held), after_jfif=True),
    "after a comment": lambda held: with_headers(jpeg(), COMMENT, exif(held)),
    "after JFIF and a comment": lambda held: with_headers(
        jpeg(), COMMENT, exif(held), after_jfif=True
    ),
    "after a profile": lambda held: with_headers(jpeg(), PROFILE, exif(held), after_jfif=True),
    "after XMP": lambda held: with_headers(jpeg(), xmp(), exif(held), after_jfif=True),
    "after a padded comment": lambda held: with_headers(jpeg(), PADDED, exif(held)),
    "in XMP": lambda held: with_headers(jpeg(), xmp(held), after_jfif=True),
    "of CMYK": lambda held: with_headers(jpeg("CMYK"), exif(held)),
    "of CMYK, after its own header": lambda held: (
        lambda of_cmyk: of_cmyk[:18] + exif(held) + of_cmyk[18:]
    )(jpeg("CMYK")),
    "of grey": lambda held: with_headers(jpeg("L"), COMMENT, exif(held)),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("held", range(1, 9))
def test_a_jpeg_is_turned_as_by_exif_transpose(place, held):
    file = PLACES[place](held)
    assert orientation.of_jpeg(file) == held
    with Image.open(io.BytesIO(file)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"), float)
    seen = decode.crop(file, 10**6, whole)
    assert seen.shape == expected.shape == ((40, 24, 3) if held > 4 else (24, 40, 3))
    np.testing.assert_array_equal(seen, expected)


@tf.function(autograph=False)
def are_upright_jpegs(files):
    return orientation.are_upright_jpegs(tf.unstack(files))


@pytest.mark.parametrize("place", PLACES)
def test_the_graph_finds_what_may_have_to_be_turned(place):
    files = [jpeg(), PLACES[place](6), PLACES[place](1), b"", b"no image"]
    found = are_upright_jpegs(tf.constant(files))
    assert found.numpy().tolist() == [True, False, True, False, False]


def test_python_is_not_asked_about_files_without_such_headers():
    with mock.patch.object(orientation, "of_jpeg") as asked:
        found = are_upright_jpegs(tf.constant([jpeg(), b"no image"]))
    asked.assert_not_called()
    assert found.numpy().tolist() == [True, False]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize(
    "file",
    [
        b"\xff\xd8",
        b"\xff\xd8\xff",
        b"\xff\xd8\xff\xe1",
        b"\xff\xd8\xff\xe1\0\0",
        b"\xff\xd8\xff\xe1\xff\xffExif\0\0broken",
        with_headers(jpeg(), segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")),
        with_headers(jpeg(), exif(0)),
        with_headers(jpeg(), exif(9)),
    ],
)
def test_headers_that_are_broken_or_say_no_orientation_there_is_say_nothing(file):
    assert orientation.of_jpeg(file) == orientation.UPRIGHT
