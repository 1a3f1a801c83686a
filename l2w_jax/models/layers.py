"""The layers that MSDNet and RANet are made of.

Images and features are [N, H, W, C]. Every convolution pads (k-1)/2 on both sides, at stride 2
too: PyTorch's rule, from which 'SAME' differs.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from l2w_jax.models.initializers import Constant, HostInitializer, fan_out_normal, torch_default

# Name under which `resize` appears among the operations of a network.
RESIZE_NAME = "resize_align_corners"


@dataclasses.dataclass(frozen=True)
class LayerOptions:
    """What all layers of a network share.

    Attributes:
        dtype: type of the computation. Parameters and batch statistics are float32, or float64
            where the computation is.
        axis_name: device axis over which batch norm averages its statistics; None for the
            statistics of one device.
        fan_out_init: RANet's initial values (normal, by fan-out) instead of PyTorch's.
    """

    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None
    fan_out_init: bool = False

    @property
    def param_dtype(self) -> jnp.dtype:
        """Type of the parameters."""
        return parameter_dtype(self.dtype)

    def kernel_init(self, kernel_size: int, in_features: int, features: int) -> HostInitializer:
        """Initialiser of a `kernel_size` x `kernel_size` convolution."""
        if self.fan_out_init:
            return fan_out_normal(kernel_size, features)
        return torch_default(kernel_size**2 * in_features)


def parameter_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """Type of the parameters of a network that computes in `dtype`: never less than float32."""
    return jnp.promote_types(dtype, jnp.float32)


def batch_norm(options: LayerOptions, train: bool, name: str) -> nn.BatchNorm:
    """Batch norm as PyTorch's momentum 0.1 and epsilon 1e-5.

    The variance is the mean squared deviation rather than E[x²] - E[x]²: the latter cancels in
    float32, and the meta-gradient amplifies what is lost.
    """
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        dtype=options.dtype,
        param_dtype=options.param_dtype,
        axis_name=options.axis_name,
        use_fast_variance=False,
        scale_init=Constant(1.0),
        bias_init=Constant(0.0),
        name=name,
    )


def convolve(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Any, **options: Any
) -> jax.Array:
    """`jax.lax.conv_general_dilated`, with a 1x1 convolution as the matrix product that it is.

    XLA's gradient of a 1x1 convolution takes up to six times as long on a CPU as that of the
    product.

    Args:
        x: [N, H, W, C].
        kernel: [height, width, C, D].
        strides: vertical and horizontal.
        padding, options: of `jax.lax.conv_general_dilated`; a 1x1 convolution is not padded.

    Returns:
        [N, H', W', D].
    """
    if kernel.shape[:2] != (1, 1):
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)
    vertical, horizontal = strides
    return jnp.dot(x[:, ::vertical, ::horizontal], kernel[0, 0], precision=options["precision"])


class ConvBNReLU(nn.Module):
    """Convolution, batch norm, ReLU."""

    features: int
    kernel_size: int
    options: LayerOptions
    stride: int = 1
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[N, H, W, C] -> [N, ceil(H/stride), ceil(W/stride), features]."""
        padding = (self.kernel_size - 1) // 2
        in_features = x.shape[-1]
        x = nn.Conv(
            self.features,
            (self.kernel_size, self.kernel_size),
            strides=self.stride,
            padding=padding,
            use_bias=self.use_bias,
            dtype=self.options.dtype,
            param_dtype=self.options.param_dtype,
            kernel_init=self.options.kernel_init(self.kernel_size, in_features, self.features),
            bias_init=torch_default(self.kernel_size**2 * in_features),
            conv_general_dilated=convolve,
            name="conv",
        )(x)
        return nn.relu(batch_norm(self.options, train, "bn")(x))


class Branch(nn.Module):
    """A 1x1 bottleneck to min(C, bottleneck_factor · features) channels, then a 3x3 convolution.

    Stride 1 makes MSDNet's "normal" branch, stride 2 its "down" branch.
    """

    features: int
    bottleneck_factor: int
    options: LayerOptions
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[N, H, W, C] -> [N, ceil(H/stride), ceil(W/stride), features]."""
        width = min(x.shape[-1], self.bottleneck_factor * self.features)
        x = ConvBNReLU(width, 1, self.options, name="reduce")(x, train)
        return ConvBNReLU(self.features, 3, self.options, self.stride, name="conv")(x, train)


class Stem(nn.Module):
    """The first layer at the highest resolution.

    "cifar": a 3x3 convolution. "imagenet": a 7x7 convolution of stride 2 with a bias, then a 3x3
    max-pool of stride 2, so that a quarter of the resolution is left.
    """

    features: int
    kind: str
    options: LayerOptions

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """[N, H, W, 3] -> [N, H, W, features], or [N, H/4, W/4, features] for "imagenet"."""
        if self.kind == "cifar":
            return ConvBNReLU(self.features, 3, self.options, name="scale_0")(images, train)
        x = ConvBNReLU(self.features, 7, self.options, 2, use_bias=True, name="scale_0")(
            images, train
        )
        return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


class Classifier(nn.Module):
    """One exit: two 3x3 convolutions of stride 2, a 2x2 average pool, a linear layer.

    The convolutions are 128 wide on CIFAR, and as wide as what they read on ImageNet.
    """

    stem: str
    num_classes: int
    options: LayerOptions

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """[N, H, W, C] -> what the linear layer reads [N, F], and the logits [N, num_classes].

        Raises:
            ValueError: H or W does not pool to one pixel, which the linear layer expects.
        """
        in_size = x.shape[1:3]
        width = 128 if self.stem == "cifar" else x.shape[-1]
        x = ConvBNReLU(width, 3, self.options, 2, name="conv_0")(x, train)
        x = ConvBNReLU(width, 3, self.options, 2, name="conv_1")(x, train)
        if any(size // 2 != 1 for size in x.shape[1:3]):
            raise ValueError(
                f"the coarsest features of an exit are {in_size[0]}x{in_size[1]} pixels, "
                "but must be 5 to 12 on each side for the classifier to pool them to one"
            )
        pooled = nn.avg_pool(x, (2, 2), strides=(2, 2)).reshape(x.shape[0], width)
        logits = nn.Dense(
            self.num_classes,
            dtype=self.options.dtype,
            param_dtype=self.options.param_dtype,
            kernel_init=torch_default(width),
            bias_init=Constant(0.0) if self.options.fan_out_init else torch_default(width),
            name="linear",
        )(pooled)
        return pooled, logits


@functools.partial(jax.jit, static_argnames=("height", "width"))
def resize_align_corners(x: jax.Array, height: int, width: int) -> jax.Array:
    """Bilinear resize that keeps the corners in place: [N, H, W, C] -> [N, height, width, C].

    PyTorch calls it `align_corners=True`; `jax.image.resize` puts the samples elsewhere.
    """
    if x.shape[1:3] == (height, width):
        return x
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
    """Distance of neighbours after over that before, where the first and last pixels stay put."""
    return (new_size - 1) / (size - 1) if size > 1 and new_size > 1 else float(new_size)


def reduced(channels: int, reduction: float) -> int:
    """floor(reduction · channels), the width of a transition."""
    return math.floor(reduction * channels)
