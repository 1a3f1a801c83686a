"""Files are prepared for an exported network as `predict` prepares them, with Pillow alone."""

import functools
import io
import tracemalloc

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies
from PIL import Image

from l2w_jax.config import default_config
from l2w_jax.data import augment, single
from l2w_jax.interop.exported_folder import load_program, write_programs

MAX_PIXELS = 10**6


@pytest.fixture(scope="module")
def image_files(tmp_path_factory):
    """The module as it lies in an exported folder."""
    folder = tmp_path_factory.mktemp("exported")
    write_programs(folder, "run_onnx.py")
    return load_program(folder, "image_files.py")


def seen_by_predict(path, share, max_pixels=MAX_PIXELS):
    config = default_config()
    config.dataset.image_size = 32
    config.dataset.max_pixels = max_pixels
    config.dataset.augmentation = "resized_crop" if share < 1 else "none"
    assert augment.evaluated_share(config) == share
    return single.read_image(path, config)


# The centre of 0.875 of the shorter side leaves odd numbers of rows and columns.
def photo(width=92, height=70):
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.BICUBIC)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def half_transparent():
    image = photo().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def held(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


GREY = np.asarray(photo().convert("L"))
GREY_OF_16_BITS = Image.fromarray(GREY.astype(np.uint16) * 200)
LEVEL = int(GREY_OF_16_BITS.getpixel((45, 30)))
# Colours at full resolution: of others the decoders differ, see below.
JPEG = {"format": "JPEG", "quality": 90, "subsampling": 0}
FILES = {
    "RGB": (photo(), {"format": "PNG"}),
    "grey": (photo().convert("L"), {"format": "PNG"}),
    "grey with a transparent level": (photo().convert("L"), {"format": "PNG", "transparency": 99}),
    "grey of 16 bits": (GREY_OF_16_BITS, {"format": "PNG"}),
    "grey of 16 bits, a level transparent": (
        GREY_OF_16_BITS,
        {"format": "PNG", "transparency": LEVEL},
    ),
    "grey of 16 bits in a TIFF": (GREY_OF_16_BITS, {"format": "TIFF"}),
    "grey and alpha": (half_transparent().convert("LA"), {"format": "PNG"}),
    "RGBA": (half_transparent(), {"format": "PNG"}),
    "palette": (photo().quantize(200), {"format": "PNG"}),
    "palette, a colour transparent": (photo().quantize(9), {"format": "PNG", "transparency": 3}),
    "palette of alphas": (
        photo().quantize(9),
        {"format": "PNG", "transparency": bytes(range(0, 252, 28))},
    ),
    "1 bit": (photo().convert("1"), {"format": "PNG"}),
    "levels in 32 bits": (Image.fromarray(GREY.astype(np.float32)), {"format": "TIFF"}),
    "JPEG": (photo(), JPEG),
    "grey JPEG": (photo().convert("L"), JPEG),
    "CMYK JPEG": (photo().convert("CMYK"), JPEG),
    **{f"PNG held as {k}": (photo(), {"format": "PNG", "exif": held(k)}) for k in range(1, 9)},
    **{f"JPEG held as {k}": (photo(), JPEG | {"exif": held(k)}) for k in range(1, 9)},
    # Of a side of 65.6 pixels, where those above are of 61.25.
    "RGB of another size": (photo(101, 75), {"format": "PNG"}),
    "TIFF held as 6": (photo(), {"format": "TIFF", "tiffinfo": {0x0112: 6}}),
}


@pytest.mark.parametrize("share", [0.875, 1.0])
@pytest.mark.parametrize("kind", FILES)
def test_every_kind_is_seen_as_by_predict(image_files, kind, share, tmp_path):
    image, options = FILES[kind]
    image.save(tmp_path / "image", **options)
    found = image_files.read_image(tmp_path / "image", 32, share, MAX_PIXELS)
    expected = seen_by_predict(tmp_path / "image", share)
    assert expected.std() > 20
    # OpenCV computes with fewer digits.
    assert np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("share", [0.875, 1.0])
@pytest.mark.parametrize("subsampling", ["4:2:2", "4:2:0"])
def test_of_colours_at_half_the_width_the_last_column_alone_differs(
    image_files, subsampling, share, tmp_path
):
    noise = np.random.default_rng(1).integers(0, 256, (62, 91, 3), np.uint8)
    path = tmp_path / "image.jpg"
    Image.fromarray(noise).save(path, quality=90, subsampling=subsampling)
    found = image_files.read_image(path, 32, share, MAX_PIXELS).astype(int)
    differences = np.abs(found - seen_by_predict(path, share))
    assert differences[:, :-1].max() <= 1 < differences[:, -1].max()


@pytest.mark.parametrize("way", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("missing", [1, 2, 6])
def test_a_jpeg_that_lacks_its_last_bytes_is_seen_as_by_predict(
    image_files, way, missing, tmp_path
):
    path = tmp_path / "cut.jpg"
    path.write_bytes(encoded(photo(300, 200), "JPEG", **way)[:-missing])
    found = image_files.read_image(path, 32, 1.0, MAX_PIXELS)
    assert np.abs(found.astype(int) - seen_by_predict(path, 1.0)).max() <= 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_what_lacks_a_visible_part_is_refused(image_files, kind, tmp_path):
    content = encoded(photo(300, 200), kind)
    (tmp_path / "cut").write_bytes(content[: len(content) // 2])
    with pytest.raises(single.UnreadableImage, match="truncated"):
        seen_by_predict(tmp_path / "cut", 1.0)
    with pytest.raises(OSError, match="truncated"):
        image_files.read_image(tmp_path / "cut", 32, 1.0, MAX_PIXELS)


def test_more_pixels_than_predict_takes_are_refused(image_files, tmp_path):
    for path in (tmp_path / "image.png", tmp_path / "image.jpg"):
        photo(30, 20).save(path)
        assert image_files.read_image(path, 8, 1.0, 600).shape == (8, 8, 3)
        with pytest.raises(single.UnreadableImage, match=r"30 x 20 pixels are more than"):
            seen_by_predict(path, 1.0, max_pixels=599)
        with pytest.raises(ValueError, match=r"^30 x 20 pixels are more than the 599 that .*$"):
            image_files.read_image(path, 8, 1.0, 599)
        with pytest.raises(ValueError, match=r"^has more than twice the 299 pixels that .*$"):
            image_files.read_image(path, 8, 1.0, 299)


def test_what_pillow_leaves_to_another_program_is_no_image(image_files, tmp_path):
    path = tmp_path / "image.png"
    photo().save(path, format="EPS")
    with pytest.raises(Image.UnidentifiedImageError):
        image_files.read_image(path, 8, 1.0, MAX_PIXELS)


def test_levels_that_no_picture_has_are_refused_outside_the_centre_too(image_files, tmp_path):
    path = tmp_path / "image.tiff"
    values = np.full((16, 16), 77, np.float32)
    values[0, 0] = 256
    Image.fromarray(values).save(path)
    with pytest.raises(single.UnreadableImage, match="has pixels from 77 to 256"):
        seen_by_predict(path, 0.875)
    with pytest.raises(ValueError, match="has pixels from 77 to 256"):
        image_files.read_image(path, 8, 0.875, MAX_PIXELS)


def dense(old, new):
    """How much each of `old` pixels counts in each of `new` ones, [new, old]."""
    pixels, scale = np.arange(old), old / new
    if old > 2 * new:
        edges = np.arange(new + 1)[:, None] * scale
        overlap = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
        return overlap.clip(0) / scale
    centres = ((np.arange(new)[:, None] + 0.5) * scale - 0.5).clip(0, old - 1)
    return (1 - abs(centres - pixels)).clip(0)


@hypothesis.settings(deadline=None)
@hypothesis.given(strategies.integers(1, 300), strategies.integers(1, 70))
@hypothesis.example(1, 70)
@hypothesis.example(64, 32)
@hypothesis.example(65, 32)
def test_pixels_are_those_of_all_weights(image_files, old, new):
    square = np.random.default_rng(old).integers(0, 256, (old, old, 3), np.uint8)
    weights = dense(old, new)
    expected = np.einsum("ij,jkc,lk->ilc", weights, square, weights, optimize=True)
    np.testing.assert_allclose(image_files.resized(square, new), expected, atol=1e-3)


@pytest.mark.parametrize("size", [32, 224])
def test_what_is_not_seen_takes_no_memory(image_files, size, tmp_path):
    """Of the square a copy or two in 8 bits; in 32 bits only what became one side small."""
    photo(3000, 500).save(tmp_path / "image.png")
    tracemalloc.start()
    image_files.read_image(tmp_path / "image.png", size, 1.0, 10**7)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 3 * 500 * 500 * 3 + 2 * 500 * size * 3 * 4


@pytest.mark.parametrize(("mode", "composed"), [("RGB", []), ("RGBA", [(50, 50)])])
def test_only_the_centre_of_what_is_transparent_is_composed(
    image_files, mode, composed, tmp_path, monkeypatch
):
    sizes, compose = [], Image.alpha_composite

    def recorded(below, above):
        sizes.append(above.size)
        return compose(below, above)

    monkeypatch.setattr(Image, "alpha_composite", recorded)
    photo(300, 50).convert(mode).save(tmp_path / "image.png")
    image_files.read_image(tmp_path / "image.png", 8, 1.0, MAX_PIXELS)
    assert sizes == composed


@pytest.mark.parametrize("shape", [(32, 32), (40, 30), (61, 90), (200, 151), (9, 20)])
def test_images_of_every_size_are_seen_as_by_predict(image_files, shape, tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    found = image_files.read_image(tmp_path / "image.png", 32, 1.0, MAX_PIXELS)
    # OpenCV computes with fewer digits.
    assert np.abs(found.astype(int) - seen_by_predict(tmp_path / "image.png", 1.0)).max() <= 1


@pytest.mark.parametrize("side", [32, 64])
def test_pixels_of_a_jpeg_of_once_or_twice_the_size_are_those_of_predict(
    image_files, side, tmp_path
):
    photo(side, side).save(tmp_path / "image.jpg")
    found = image_files.read_image(tmp_path / "image.jpg", 32, 1.0, MAX_PIXELS)
    np.testing.assert_array_equal(found, seen_by_predict(tmp_path / "image.jpg", 1.0))


def test_files_that_are_turned_transparent_or_of_16_bits_are_seen_as_people_see_them(
    image_files, tmp_path
):
    read_image = functools.partial(image_files.read_image, max_pixels=MAX_PIXELS)
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = 200
    turned = Image.fromarray(pixels)
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    seen = read_image(tmp_path / "turned.png", 8, 1.0)
    np.testing.assert_array_equal(seen, np.rot90(pixels, -1))
    transparent = np.zeros((8, 8, 4), np.uint8)
    Image.fromarray(transparent).save(tmp_path / "transparent.png")
    assert (read_image(tmp_path / "transparent.png", 8, 1.0) == 255).all()
    Image.fromarray(np.full((8, 8), 0x1234, np.uint16)).save(tmp_path / "grey.png")
    assert (read_image(tmp_path / "grey.png", 8, 1.0) == 0x12).all()
    for kind in (np.int32, np.float32):
        Image.fromarray(np.full((8, 8), 77, kind)).save(tmp_path / "levels.tiff")
        assert (read_image(tmp_path / "levels.tiff", 8, 1.0) == 77).all()
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(tmp_path / "fractions.tiff")
    with pytest.raises(ValueError, match=r"has pixels from 0.5 to 0.5"):
        read_image(tmp_path / "fractions.tiff", 8, 1.0)
