"""From stored to network input: subtract a data set's mean and divide by its deviation.

Images stay uint8 until they are on the device, a quarter of the bytes to move.
"""

import jax
import jax.numpy as jnp
import numpy as np

# Mean and deviation of the training images scaled to 0..1, per channel. CIFAR's and ImageNet's are
# those of MSDNet's authors; folders of images use ImageNet's, as is the custom.
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_STATISTICS = {
    "digits": ((0.3059,) * 3, (0.3188,) * 3),
    "cifar10": ((0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "imagenet2012": _IMAGENET,
    "image_folder": _IMAGENET,
}


def channel_statistics(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns (mean, deviation), float32[3] each, of data set `name` on a scale of 0 to 1."""
    mean, deviation = _STATISTICS[name]
    return np.asarray(mean, np.float32), np.asarray(deviation, np.float32)


def normalize(images: jax.Array, mean: np.ndarray, deviation: np.ndarray) -> jax.Array:
    """Turns uint8[N, H, W, 3] into float32 of mean 0 and deviation 1 per channel.

    Images that are floating-point already, in any precision, pass through unchanged: they have been
    normalised by whoever made them.
    """
    if jnp.issubdtype(images.dtype, jnp.floating):
        return images
    return (images.astype(jnp.float32) / 255 - mean) / deviation
