"""Crops of any size become the network's square as interpolation is defined."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2w_jax.data.resize import resize


def resized(crop: np.ndarray, size: int, mirrored: bool = False) -> np.ndarray:
    # Filled with what no test expects, as a batch has what was there before.
    square = np.full((size, size, 3), 77, np.uint8)
    resize(crop, square, mirrored)
    return square


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def interpolated(crop: np.ndarray, size: int) -> np.ndarray:
    """Bilinear interpolation at the centres of pixels, float[size, size, 3]."""
    values = crop.astype(float)
    for axis in (0, 1):
        length = values.shape[axis]
        places = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
        below = np.floor(places).astype(int)
        above = np.minimum(below + 1, length - 1)
        share = np.expand_dims(places - below, tuple(set(range(3)) - {axis}))
        values = values.take(below, axis) * (1 - share) + values.take(above, axis) * share
    return values


@given(st.integers(1, 64), st.integers(1, 64), st.integers(0, 99))
def test_up_to_twice_the_size_pixels_are_interpolated(height, width, seed):
    crop = noise(height, width, seed)
    np.testing.assert_allclose(resized(crop, 32), interpolated(crop, 32), atol=1.01)


@given(st.integers(1, 150), st.integers(1, 150), st.integers(1, 70))
def test_mirrored_is_the_mirror_image(height, width, size):
    crop = noise(height, width)
    np.testing.assert_array_equal(resized(crop, size, True), resized(crop, size)[:, ::-1])


def test_the_right_size_is_left_as_it_is():
    crop = noise(32, 32)
    np.testing.assert_array_equal(resized(crop, 32), crop)


@pytest.mark.parametrize(("rows", "columns"), [(3, 3), (4, 1), (1, 5)])
def test_what_shrinks_by_more_than_half_is_averaged(rows, columns):
    crop = noise(16 * rows, 16 * columns)
    means = crop.reshape(16, rows, 16, columns, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(resized(crop, 16), means, atol=0.51)


def test_a_long_strip_is_averaged_along_and_interpolated_across():
    strip = noise(16 * 4, 2)
    means = strip.reshape(16, 4, 2, 3).mean(axis=1)
    np.testing.assert_allclose(resized(strip, 16), interpolated(means, 16), atol=1.51)
