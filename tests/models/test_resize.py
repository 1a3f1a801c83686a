"""Feature maps are resized between their corners."""

import jax
import jax.numpy as jnp
import numpy as np

from l2w_jax.models.resize import resize_align_corners


def test_resize_keeps_corners_and_is_linear_between():
    x = jnp.array([0.0, 1.0, 4.0]).reshape(1, 1, 3, 1)
    wide = resize_align_corners(x, 1, 5).reshape(-1)
    np.testing.assert_allclose(wide, [0, 0.5, 1, 2.5, 4], atol=1e-6)


def test_resize_of_one_pixel_is_that_pixel_everywhere():
    x = jnp.array([3.0, 4.0]).reshape(1, 1, 1, 2)
    np.testing.assert_array_equal(
        resize_align_corners(x, 3, 2), np.broadcast_to([3.0, 4.0], (1, 3, 2, 2))
    )
    column = jnp.array([0.0, 1.0]).reshape(1, 2, 1, 1)
    np.testing.assert_allclose(
        resize_align_corners(column, 3, 2)[0, :, :, 0], [[0, 0], [0.5, 0.5], [1, 1]], atol=1e-6
    )


def test_resize_to_the_same_size_changes_nothing():
    x = jax.random.normal(jax.random.key(0), (2, 5, 7, 3))
    np.testing.assert_array_equal(resize_align_corners(x, 5, 7), x)
