"""JPEGs that lack their last bytes: used where nothing to be seen is missing, and only there."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from l2w_jax.data import decode
from l2w_jax.data.cut_jpeg import with_end
from l2w_jax.data.formats import BadImage
from l2w_jax.data.tensorflow_import import tf

WAYS = {
    "baseline": {},
    "progressive": {"progressive": True},
    "optimized": {"optimize": True},
    "restarts by row": {"restart_marker_rows": 1},
    "restarts by block": {"restart_marker_blocks": 1},
    "grey": {},
}


def picture(kind: str, way: str) -> bytes:
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (6, 8, 3), np.uint8)
    image = Image.fromarray(coarse).resize((200, 150), Image.BICUBIC)
    if kind == "photo":
        noisy = np.asarray(image).astype(int) + generator.integers(-20, 20, (150, 200, 3))
        image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    elif kind == "drawing":
        image = Image.new("RGB", (200, 150), "white")
        image.paste("red", (30, 30, 120, 120))
    buffer = io.BytesIO()
    image.convert("L" if way == "grey" else "RGB").save(buffer, "JPEG", **WAYS[way])
    return buffer.getvalue()


def start_of_data(encoded: bytes) -> int:
    start = encoded.index(b"\xff\xda")
    return start + 2 + int.from_bytes(encoded[start + 2 : start + 4])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["photo", "smooth", "drawing"])
def test_what_lacks_only_its_end_is_the_same_picture(kind, way):
    encoded = picture(kind, way)
    whole = tf.image.decode_jpeg(encoded, channels=3).numpy()
    for missing in (1, 2):
        completed = with_end(encoded[:-missing])
        assert completed is not None
        np.testing.assert_array_equal(tf.image.decode_jpeg(completed, channels=3), whole)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["photo", "smooth", "drawing"])
def test_what_lacks_a_visible_part_is_not_used(kind, way):
    encoded = picture(kind, way)
    start = start_of_data(encoded)
    # The lower part of the drawing is white, which it would be without the data too.
    for share in (0, 0.1, 0.3) if kind == "drawing" else (0, 0.1, 0.5, 0.9):
        assert with_end(encoded[: start + int(share * (len(encoded) - start))]) is None, share


@pytest.mark.parametrize("way", ["baseline", "grey"])
@pytest.mark.parametrize("kind", ["photo", "smooth"])
def test_a_hundredth_of_the_picture_may_be_missing_and_no_more(kind, way):
    def seen(file: bytes) -> np.ndarray:
        return np.atleast_3d(Image.open(io.BytesIO(file)))

    encoded = picture(kind, way)
    # What most of these lack lies within the last row of blocks.
    for missing in (5, 60, 80, 100):
        kept = encoded[:-missing]
        lost = (seen(kept + b"\xff\xd9") != seen(encoded)).any(axis=-1).mean()
        if lost < 0.005 or lost > 0.01:
            assert (with_end(kept) is not None) == (lost < 0.005), missing


def test_a_progressive_file_without_all_its_scans_is_not_used():
    encoded = picture("photo", "progressive")
    scans = [found.start() for found in re.finditer(rb"\xff\xda", encoded)]
    # With all but the last, every coefficient is there and some lack their last bit.
    assert len(scans) > 5
    for start in scans:
        assert with_end(encoded[:start]) is None


def test_a_cut_between_restarts_is_noticed():
    encoded = picture("photo", "restarts by row")
    kept = encoded[: encoded.index(b"\xff\xd5")]
    assert with_end(kept) is None


@pytest.mark.parametrize(
    "broken", [b"", b"\xff\xd8\xff", b"no image", picture("photo", "grey")[:300]]
)
def test_what_is_broken_otherwise_stays_broken(broken):
    assert with_end(broken) is None


def test_a_crop_says_whether_the_file_was_cut():
    encoded = picture("photo", "baseline")
    share = np.array([1.0], np.float32)
    for file, is_cut in ((encoded, False), (encoded[:-2], True)):
        crop, was_cut = decode.crop_of_perhaps_cut(file, 10**6, decode.centre_boxes, share)
        assert was_cut == is_cut
        assert crop.shape == (150, 150, 3)
    with pytest.raises(BadImage, match="truncated"):
        decode.crop_of_perhaps_cut(encoded[: len(encoded) // 2], 10**6, decode.centre_boxes, share)
