"""All kinds of image files become the upright RGB picture that Pillow shows, on white."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageOps, features

from l2w_jax.data import formats
from l2w_jax.data.formats import BadImage, TooLarge, read_upright

MAX_PIXELS = 10**6


def photo(width: int = 40, height: int = 30) -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.BICUBIC)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


LOSSLESS = {
    "PNG": {},
    "BMP": {},
    "TIFF": {"compression": "tiff_lzw"},
    "WEBP": {"lossless": True},
    "PPM": {},
    "TGA": {},
    "PCX": {},
    "SGI": {},
    "JPEG2000": {},
    "QOI": {},
}


@pytest.mark.parametrize("kind", LOSSLESS)
def test_every_kind_is_read(kind):
    if kind not in Image.SAVE and not Image.init():
        pytest.skip(f"this Pillow cannot write {kind}")
    if kind == "JPEG2000" and not features.check("jpg_2000"):
        pytest.skip("this Pillow has no JPEG 2000")
    seen = read_upright(encoded(photo(), kind, **LOSSLESS[kind]), MAX_PIXELS)
    np.testing.assert_array_equal(seen, np.asarray(photo()))


# Before version 13 Pillow cannot read the YCbCr that it writes into a TIFF.
@pytest.mark.parametrize(
    ("mode", "kind"),
    [("1", "TIFF"), ("L", "TIFF"), ("P", "TIFF"), ("CMYK", "TIFF"), ("YCbCr", "IM")],
)
def test_every_mode_becomes_what_pillow_converts_it_to(mode, kind):
    image = photo().convert(mode)
    seen = read_upright(encoded(image, kind), MAX_PIXELS)
    np.testing.assert_array_equal(seen, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_numbers_of_32_bits_are_levels_or_no_image(kind):
    """With Pillow alone those of 0 to 1 would become black and those above 255 white."""
    levels = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    seen = read_upright(encoded(Image.fromarray(levels.astype(kind)), "TIFF"), MAX_PIXELS)
    np.testing.assert_array_equal(seen, np.repeat(levels[..., None], 3, axis=-1))
    wrong = [levels.astype(kind) * 2, levels.astype(kind) - 1]
    wrong += [levels.astype(kind) / 255] if kind is np.float32 else []
    for values in wrong:
        with pytest.raises(BadImage, match=r"has pixels from .* or from 0 to 255"):
            read_upright(encoded(Image.fromarray(values), "TIFF"), MAX_PIXELS)


def test_an_image_with_a_pixel_that_is_no_number_is_refused():
    """As float32 images mark what was not measured; cast to 8 bits it would become black."""
    levels = np.full((8, 8), 77, np.float32)
    levels[2, 3] = np.nan
    with pytest.raises(BadImage, match="has pixels from nan to nan, must be"):
        read_upright(encoded(Image.fromarray(levels), "TIFF"), MAX_PIXELS)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_grey_of_16_bits_keeps_its_upper_8(kind):
    values = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    seen = read_upright(encoded(Image.fromarray(values), kind), MAX_PIXELS)
    np.testing.assert_array_equal(seen, np.repeat((values >> 8)[..., None], 3, axis=2))


def png(colour_type: int, depth: int, row: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of one row of two pixels, of kinds that Pillow does not write."""
    header = struct.pack(">IIBBBBB", 2, 1, depth, colour_type, 0, 0, 0)
    chunks = ((b"IHDR", header), *chunks, (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


OF_16_BITS = {
    "colour": (
        png(2, 16, struct.pack(">6H", 0x1234, 0, 0xFFFF, 0x8000, 1, 2)),
        [[0x12, 0, 255], [0x80, 0, 0]],
    ),
    "colour with alpha": (
        png(6, 16, struct.pack(">8H", 0x1234, 0, 0, 0xFFFF, 0x1234, 0, 0, 0)),
        [[0x12, 0, 0], [255, 255, 255]],
    ),
    "grey with alpha": (
        png(4, 16, struct.pack(">4H", 0x1234, 0xFFFF, 0x1234, 0)),
        [[0x12] * 3, [255] * 3],
    ),
    "grey with a transparent value": (
        png(0, 16, struct.pack(">2H", 0x1234, 0x1235), (b"tRNS", struct.pack(">H", 0x1235))),
        [[0x12] * 3, [255] * 3],
    ),
}


@pytest.mark.parametrize("kind", OF_16_BITS)
def test_png_of_16_bits(kind):
    file, expected = OF_16_BITS[kind]
    np.testing.assert_array_equal(read_upright(file, MAX_PIXELS)[0], expected)


def half_transparent(mode: str) -> Image.Image:
    """Opaque red or grey on the left, on the right transparent."""
    image = Image.new("RGBA", (40, 30), (200, 0, 0, 255))
    image.paste((0, 0, 0, 0), (20, 0, 40, 30))
    return image.convert(mode)


def of_palette() -> Image.Image:
    image = Image.new("P", (40, 30), 0)
    image.putpalette([200, 0, 0, 0, 0, 0])
    image.paste(1, (20, 0, 40, 30))
    return image


TRANSPARENT = {
    "RGBA PNG": encoded(half_transparent("RGBA"), "PNG"),
    "LA PNG": encoded(half_transparent("LA"), "PNG"),
    "palette PNG": encoded(of_palette(), "PNG", transparency=1),
    "palette PNG of alphas": encoded(of_palette(), "PNG", transparency=b"\xff\0"),
    "RGB PNG": encoded(of_palette().convert("RGB"), "PNG", transparency=(0, 0, 0)),
    "grey PNG": encoded(of_palette().convert("L"), "PNG", transparency=0),
    "GIF": encoded(of_palette(), "GIF", transparency=1),
    "WebP": encoded(half_transparent("RGBA"), "WEBP", lossless=True),
    "TIFF": encoded(half_transparent("RGBA"), "TIFF"),
}


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_what_is_transparent_is_white(kind):
    seen = read_upright(TRANSPARENT[kind], MAX_PIXELS)
    assert (seen[:, 20:] == 255).all()
    expected = [round(200 * 0.299)] * 3 if kind in ("LA PNG", "grey PNG") else [200, 0, 0]
    np.testing.assert_allclose(seen[:, :20], np.broadcast_to(expected, (30, 20, 3)), atol=1)


def test_half_of_a_colour_is_mixed_with_white():
    image = Image.new("RGBA", (4, 4), (0, 100, 200, 128))
    seen = read_upright(encoded(image, "PNG"), MAX_PIXELS)
    np.testing.assert_allclose(seen[0, 0], [127, 177, 227], atol=1)


@pytest.mark.parametrize(("kind", "ending"), [("PNG", "apng"), ("WEBP", "webp"), ("GIF", "gif")])
def test_the_first_frame_of_an_animation_is_read(kind, ending):
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    options = {"lossless": True} if kind == "WEBP" else {}
    file = encoded(first, kind, save_all=True, append_images=[second], **options)
    seen = read_upright(file, MAX_PIXELS)
    np.testing.assert_array_equal(seen, np.broadcast_to([255, 0, 0], (8, 8, 3)))
    assert f".{ending}" in formats.image_endings()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_that_of_exif_transpose(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    file = encoded(photo(), kind, exif=exif, **options)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(file)))
    seen = read_upright(file, MAX_PIXELS)
    np.testing.assert_array_equal(seen, np.asarray(expected))
    assert seen.shape == ((40, 30, 3) if orientation > 4 else (30, 40, 3))


def test_a_huge_image_is_refused_by_its_header_alone():
    message = "10000 x 9000 pixels are more than config.dataset.max_pixels 89478485 allows"
    with pytest.raises(TooLarge, match=message):
        read_upright(header_of_png(10_000, 9_000), 89_478_485)
    message = "has more than twice the pixels that config.dataset.max_pixels 89478485 allows"
    with pytest.raises(TooLarge, match=message):
        read_upright(header_of_png(30_000, 20_000), 89_478_485)
    read_upright(encoded(photo(), "PNG"), 40 * 30)


def header_of_png(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    checksum = struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n\0\0\0\x0d" + header + checksum + b"\0\0\0\0IDAT"


def test_what_a_small_icon_holds_is_refused_by_its_own_size():
    """Pillow decodes it as it opens the icon, before anybody can ask for a size."""
    inside = encoded(photo(2000, 1500), "PNG")
    icon = struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(inside), 22) + inside
    assert read_upright(icon, 2000 * 1500).shape == (1500, 2000, 3)
    with pytest.raises(TooLarge, match=r"more than twice the pixels that .* 1000000 allows"):
        read_upright(icon, 10**6)


def iptc_field(record: int, dataset: int, content: bytes) -> bytes:
    return struct.pack(">BBBH", 0x1C, record, dataset, len(content)) + content


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\nshowpage\n%%EOF\n"
IPTC = b"".join(
    iptc_field(*field)
    for field in (
        (3, 60, b"\1\0"),
        (3, 20, b"\0\x10"),
        (3, 30, b"\0\x10"),
        (3, 120, b"\5"),
        (8, 10, EPS),
    )
)


@pytest.mark.parametrize("file", [EPS, IPTC], ids=["EPS", "EPS in IPTC"])
def test_no_image_starts_another_program(file, tmp_path, monkeypatch):
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    with pytest.raises(BadImage, match="is no image that can be decoded"):
        read_upright(file, MAX_PIXELS)
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize(
    "file", [b"", b"no image", encoded(photo(), "PNG")[:400], encoded(photo(), "BMP")[:-9]]
)
def test_what_is_no_image_or_incomplete_is_bad(file):
    with pytest.raises(BadImage, match="is no image that can be decoded") as raised:
        read_upright(file, MAX_PIXELS)
    assert "\n" not in str(raised.value)


def test_endings_are_those_of_images():
    assert {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"} <= set(
        formats.image_endings()
    )
    assert not {".txt", ".json", ".csv", ".pdf", ".h5", ".mpg", ".eps"} & set(
        formats.image_endings()
    )
