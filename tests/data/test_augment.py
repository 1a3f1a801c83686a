"""Shifts of images in memory: what they are of an image, and how they are drawn."""

import itertools

import numpy as np

from l2w_jax.data.augment import apply_shifts, draw_shifts, shift_of


def test_an_augmented_image_is_a_crop_of_the_padded_one():
    images = np.arange(1, 6 * 5 * 5 * 3 + 1).reshape(6, 5, 5, 3).astype(np.uint8)
    shift = shift_of("crop", 32)
    draws = draw_shifts(shift, 6, np.random.default_rng(3))
    assert draws.mirrored.any() and not draws.mirrored.all()
    for image, augmented, (top, left), mirrored in zip(
        images, apply_shifts(shift, images, draws), *draws, strict=True
    ):
        canvas = np.zeros((13, 13, 3), np.uint8)
        canvas[4:9, 4:9] = image
        crop = canvas[top : top + 5, left : left + 5]
        np.testing.assert_array_equal(augmented, crop[:, ::-1] if mirrored else crop)


def test_crops_reach_every_corner_and_half_are_mirrored():
    draws = draw_shifts(shift_of("crop", 32), 5000, np.random.default_rng(0))
    assert {tuple(offset) for offset in draws.crops} == set(itertools.product(range(9), range(9)))
    assert abs(draws.mirrored.mean() - 0.5) < 0.03
