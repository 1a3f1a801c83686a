"""Bilinear resizing as PyTorch's `align_corners=True`, by which RANet fuses its resolutions."""

import functools

import jax
import jax.numpy as jnp

# Name under which a resize appears among the operations of a network.
RESIZE_NAME = "resize_align_corners"


@functools.partial(jax.jit, static_argnames=("height", "width"))
def resize_align_corners(x: jax.Array, height: int, width: int) -> jax.Array:
    """Bilinear resize that keeps the corners in place: [N, H, W, C] -> [N, height, width, C].

    PyTorch calls it `align_corners=True`; `jax.image.resize` puts the samples elsewhere.
    """
    if x.shape[1:3] == (height, width):
        return x
    # A single pixel is all corners at once.
    rows = height if x.shape[1] == 1 else x.shape[1]
    columns = width if x.shape[2] == 1 else x.shape[2]
    x = jnp.broadcast_to(x, (x.shape[0], rows, columns, x.shape[3]))
    scale = jnp.array([_corner_scale(x.shape[1], height), _corner_scale(x.shape[2], width)])
    return jax.image.scale_and_translate(
        x,
        (x.shape[0], height, width, x.shape[3]),
        (1, 2),
        scale,
        0.5 * (1 - scale),
        "linear",
        antialias=False,
    )


def _corner_scale(size: int, new_size: int) -> float:
    """The distance of neighbours after resizing over that before; the corners stay put."""
    return (new_size - 1) / (size - 1) if new_size > 1 else 1.0
