"""Crops of encoded images: the same in a group and alone, whatever kind of file."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from l2w_jax.data import augment, decode
from l2w_jax.data.formats import BadImage
from l2w_jax.data.tensorflow_import import tf

MAX_PIXELS = 10**6


def encoded(image: Image.Image, kind: str, orientation: int | None = None) -> bytes:
    buffer = io.BytesIO()
    if orientation is None:
        image.save(buffer, kind)
    else:
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.save(buffer, kind, exif=exif)
    return buffer.getvalue()


def photo(seed: int, width: int, height: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.BICUBIC)


PLAIN = [encoded(photo(i, 40 + 9 * i, 90 - 7 * i), "JPEG") for i in range(5)]
ODD = {
    "turned": encoded(photo(6, 50, 30), "JPEG", orientation=6),
    "upright with EXIF": encoded(photo(7, 50, 30), "JPEG", orientation=1),
    "PNG": encoded(photo(8, 20, 30), "PNG"),
    "grey": encoded(photo(9, 33, 44).convert("L"), "JPEG"),
    "CMYK": encoded(photo(10, 33, 44).convert("CMYK"), "JPEG"),
}


def crops(files: list[bytes], choose_boxes, *arguments: np.ndarray) -> list[np.ndarray]:
    @tf.function(autograph=False)
    def in_graph(files, *arguments):
        return decode.crops(tf.unstack(files), MAX_PIXELS, choose_boxes, *arguments)

    return [crop.numpy() for crop in in_graph(tf.constant(files), *map(tf.constant, arguments))]


def draws(count: int) -> np.ndarray:
    return augment.draw_resized_crops(count, np.random.default_rng(1)).crops


@pytest.mark.parametrize(
    "files", [PLAIN, *([*PLAIN[:2], odd, *PLAIN[2:]] for odd in ODD.values())], ids=["plain", *ODD]
)
def test_a_group_has_the_crops_of_its_images(files):
    for choose_boxes, arguments in (
        (decode.drawn_boxes, draws(len(files))),
        (decode.centre_boxes, np.full(len(files), 0.8, np.float32)),
    ):
        together = crops(files, choose_boxes, arguments)
        for row, (file, crop) in enumerate(zip(files, together, strict=True)):
            alone = decode.crop(file, MAX_PIXELS, choose_boxes, arguments[row : row + 1])
            np.testing.assert_array_equal(crop, alone)
            assert crop.std() > 0


@pytest.mark.parametrize("odd", ODD)
def test_only_files_that_need_it_are_cropped_by_python(odd, monkeypatch):
    cropped = []
    crop = decode.crop
    monkeypatch.setattr(
        decode, "crop", lambda file, *rest: cropped.append(file) or crop(file, *rest)
    )
    crops([*PLAIN, ODD[odd]], decode.drawn_boxes, draws(6))
    assert bool(cropped) == (odd in ("turned", "PNG"))


@pytest.mark.parametrize("file", [PLAIN[0], *ODD.values()], ids=["plain", *ODD])
def test_a_crop_is_that_part_of_the_upright_picture(file):
    def lower_left(heights, widths):
        return tf.stack([heights // 2, 0 * widths, heights - heights // 2, widths // 2], axis=-1)

    with Image.open(io.BytesIO(file)) as image:
        orientation = image.getexif().get(0x0112, 1)
        upright = image.transpose(Image.Transpose.ROTATE_270) if orientation == 6 else image
        whole = np.asarray(upright.convert("RGB"), float)
    expected = whole[whole.shape[0] // 2 :, : whole.shape[1] // 2]
    # A part's edge may differ in the colours that lie beyond it.
    inner = (slice(1, -1), slice(1, -1))
    seen = decode.crop(file, MAX_PIXELS, lower_left)
    np.testing.assert_array_equal(seen[inner], expected[inner])


@pytest.mark.parametrize("file", [b"", b"no image", PLAIN[0][:200], b"\xff\xd8\xff"])
def test_what_is_no_image_is_an_error(file):
    with pytest.raises(BadImage):
        decode.crop(file, MAX_PIXELS, decode.drawn_boxes, draws(1))
    with pytest.raises(tf.errors.OpError):
        crops([*PLAIN, file], decode.drawn_boxes, draws(6))


def naive_box(height: int, width: int, attempts: np.ndarray) -> list[int]:
    root = np.sqrt(np.float32(height * width))
    for of_height, of_width, place_y, place_x in attempts:
        rows, columns = int(np.rint(root * of_height)), int(np.rint(root * of_width))
        if 0 < rows <= height and 0 < columns <= width:
            top = min(int(place_y * np.float32(height - rows + 1)), height - rows)
            left = min(int(place_x * np.float32(width - columns + 1)), width - columns)
            return [top, left, rows, columns]
    rows = min(height, round(width * 4 / 3))
    columns = min(width, round(height * 4 / 3))
    return [(height - rows) // 2, (width - columns) // 2, rows, columns]


@given(
    st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), min_size=1, max_size=5),
    st.integers(0, 2**32 - 1),
)
def test_drawn_boxes_are_the_first_that_fit(sizes, seed):
    heights, widths = np.array(sizes, np.int32).T
    drawn = augment.draw_resized_crops(len(sizes), np.random.default_rng(seed)).crops
    boxes = decode.drawn_boxes(tf.constant(heights), tf.constant(widths), tf.constant(drawn))
    naive = [naive_box(*size, attempts) for size, attempts in zip(sizes, drawn, strict=True)]
    np.testing.assert_array_equal(boxes, naive)
