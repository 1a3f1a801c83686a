"""The layers that MSDNet and RANet are made of.

Images and features are [N, H, W, C]. Every convolution pads (k-1)/2 on both sides, at stride 2
too: PyTorch's rule, from which 'SAME' differs.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from typing_extensions import override

from l2w_jax.config.choices import CHOICES, EXIT_SIZES, unknown_choice
from l2w_jax.models.convolution import convolve
from l2w_jax.models.initializers import (
    Constant,
    HostInitializer,
    TorchDefaultKernel,
    fan_out_normal,
    torch_default,
)
from l2w_jax.models.normalization import batch_normalize, normalize_with
from l2w_jax.models.platforms import cast_once, gradient_apart
from l2w_jax.models.precision import parameter_dtype

_MOMENTUM = 0.9


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


class BatchNorm(nn.Module):
    """Batch norm over the channels, with PyTorch's momentum of 0.1 and epsilon of 1e-5.

    Unlike PyTorch's, the running variance averages biased variances.
    """

    options: LayerOptions
    scale_init: HostInitializer = Constant(1.0)
    bias_init: HostInitializer = Constant(0.0)

    @nn.compact
    def variables_for(self, num_channels: int) -> tuple[jax.Array, jax.Array, Any, Any]:
        """Scale and shift [C], and the linen variables of the running mean and variance [C]."""
        shape, dtype = (num_channels,), self.options.param_dtype
        return (
            self.param("scale", self.scale_init, shape, dtype),
            self.param("bias", self.bias_init, shape, dtype),
            self.variable("batch_stats", "mean", jnp.zeros, shape, dtype),
            self.variable("batch_stats", "var", jnp.ones, shape, dtype),
        )

    @property
    def is_folded(self) -> bool:
        """Whether the kernel before it already scales (`folding`), so only the shift is left."""
        return not self.is_initializing() and not self.has_variable("params", "scale")

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`batch_norm` of x [..., C]."""
        return batch_norm([self], [x.shape[-1]], x, train)


def batch_norm(
    norms: Sequence[BatchNorm], widths: Sequence[int], x: jax.Array, train: bool
) -> jax.Array:
    """Batch norms of neighbouring channels at once, in as many kernels as a single one takes.

    Args:
        norms: each for its own channels, in their order.
        widths: C_i, the number of channels of each.
        x: [..., ΣC_i].
        train: whether to normalise by the mean and variance of the batch, over the devices of
            `options.axis_name`, and to move the running ones.

    Returns:
        [..., ΣC_i].
    """
    if not train and all(norm.is_folded for norm in norms):
        shift = concatenated([norm.get_variable("params", "bias") for norm in norms])
        return (x + shift).astype(x.dtype)
    options, initializing = norms[0].options, norms[0].is_initializing()
    # While the variables are made there need be no device axis yet.
    axis_name = None if initializing else options.axis_name
    variables = [norm.variables_for(width) for norm, width in zip(norms, widths, strict=True)]
    scales, biases, means, variances = zip(*variables, strict=True)
    scale, bias = concatenated(scales), concatenated(biases)
    if not train:
        mean = concatenated([running.value for running in means])
        variance = concatenated([running.value for running in variances])
        return normalize_with(x, mean, variance, scale, bias)
    y, mean, variance = batch_normalize(x, scale, bias, axis_name)
    if not initializing:
        _move(means, mean, widths)
        _move(variances, variance, widths)
    return y


def _move(running: Sequence[Any], of_batch: jax.Array, widths: Sequence[int]) -> None:
    """Moves running statistics towards a batch's, [ΣC_i]; no gradient flows through them."""
    of_batch = jax.lax.stop_gradient(of_batch)
    for variable, part in zip(running, split_channels(of_batch, widths), strict=True):
        variable.value = _MOMENTUM * variable.value + (1 - _MOMENTUM) * part


def concatenated(arrays: Sequence[jax.Array]) -> jax.Array:
    """The arrays side by side along the last axis."""
    return arrays[0] if len(arrays) == 1 else jnp.concatenate(arrays, axis=-1)


def split_channels(x: jax.Array, widths: Sequence[int]) -> list[jax.Array]:
    """Undoes `concatenated`: [..., ΣC_i] -> [..., C_i] for every width C_i."""
    return jnp.split(x, list(itertools.accumulate(widths))[:-1], axis=-1)


class Convolution(nn.Module):
    """A convolution, with a bias where `bias_init` is given."""

    features: int
    kernel_size: int
    options: LayerOptions
    stride: int = 1
    bias_init: HostInitializer | None = None

    @property
    def kernel_init(self) -> HostInitializer:
        """PyTorch's default, or RANet's initial values."""
        if self.options.fan_out_init:
            return fan_out_normal(self.kernel_size, self.features)
        return TorchDefaultKernel()

    @nn.compact
    def parameters_for(self, in_features: int) -> tuple[jax.Array, jax.Array | None]:
        """Kernel [k, k, in_features, features] and bias [features], in the computation's type."""
        size, options = self.kernel_size, self.options
        shape = (size, size, in_features, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, options.param_dtype)
        if self.bias_init is None:
            return cast_once(kernel, options.dtype), None
        bias = self.param("bias", self.bias_init, (self.features,), options.param_dtype)
        return cast_once(kernel, options.dtype), bias.astype(options.dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> [N, ceil(H/stride), ceil(W/stride), features]."""
        kernel, bias = self.parameters_for(x.shape[-1])
        x = convolve(x.astype(self.options.dtype), kernel, self.stride)
        return x if bias is None else x + bias


class ConvBNReLU(nn.Module):
    """Convolution, batch norm, ReLU."""

    features: int
    kernel_size: int
    options: LayerOptions
    stride: int = 1
    bias_init: HostInitializer | None = None

    @override
    def setup(self) -> None:
        self.conv = Convolution(
            self.features, self.kernel_size, self.options, self.stride, self.bias_init
        )
        self.bn = BatchNorm(self.options)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[N, H, W, C] -> [N, ceil(H/stride), ceil(W/stride), features]."""
        return _normalized([self], self.conv(x), train)


def side_by_side(
    layers: Sequence[ConvBNReLU], inputs: Sequence[jax.Array], train: bool
) -> jax.Array:
    """Each layer on its own input, their outputs concatenated; one batch norm and ReLU for all.

    Args:
        layers: their outputs are equally high and wide.
        inputs: [N, H_i, W_i, C_i], one for each layer.
        train: as in `ConvBNReLU`.

    Returns:
        [N, H, W, the sum of the layers' features].
    """
    outputs = concatenated([layer.conv(x) for layer, x in zip(layers, inputs, strict=True)])
    if train:
        # The outputs become the last channels of a larger map. RANet's layers do without this: for
        # them it is a fifth more kernels and a seventh more bytes.
        outputs = gradient_apart(outputs)
    return _normalized(layers, outputs, train)


def from_one_input(layers: Sequence[ConvBNReLU], x: jax.Array, train: bool) -> list[jax.Array]:
    """1x1 layers, of stride 1 and without bias, on one input [N, H, W, C], as one wider layer.

    Returns:
        [N, H, W, features] of each layer.
    """
    kernels = [layer.conv.parameters_for(x.shape[-1])[0] for layer in layers]
    outputs = convolve(x.astype(kernels[0].dtype), concatenated(kernels))
    widths = [layer.features for layer in layers]
    return split_channels(_normalized(layers, outputs, train), widths)


def _normalized(layers: Sequence[ConvBNReLU], outputs: jax.Array, train: bool) -> jax.Array:
    """Batch norm and ReLU of the outputs [N, H, W, Σ features] of several convolutions."""
    norms, widths = [layer.bn for layer in layers], [layer.features for layer in layers]
    return nn.relu(batch_norm(norms, widths, outputs, train))


class Branch(nn.Module):
    """A 1x1 bottleneck to min(C, bottleneck_factor · features) channels, then a 3x3 convolution.

    Stride 1 makes MSDNet's "normal" branch, stride 2 its "down" branch.

    Attributes:
        in_features: C, the channels that it reads.
    """

    in_features: int
    features: int
    bottleneck_factor: int
    options: LayerOptions
    stride: int = 1

    @override
    def setup(self) -> None:
        width = min(self.in_features, self.bottleneck_factor * self.features)
        self.reduce = ConvBNReLU(width, 1, self.options)
        self.conv = ConvBNReLU(self.features, 3, self.options, self.stride)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[N, H, W, C] -> [N, ceil(H/stride), ceil(W/stride), features]."""
        return self.conv(self.reduce(x, train), train)


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
        """[N, H, W, 3] -> [N, H, W, features]; for "imagenet" ceil(H/4) and ceil(W/4).

        Raises:
            ValueError: `kind` is neither.
        """
        if self.kind not in CHOICES["model.stem"]:
            raise unknown_choice("model.stem", self.kind)
        if self.kind == "cifar":
            return ConvBNReLU(self.features, 3, self.options, name="scale_0")(images, train)
        bias_init = torch_default(7**2 * images.shape[-1])
        x = ConvBNReLU(self.features, 7, self.options, 2, bias_init, name="scale_0")(images, train)
        return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


class FirstLayer(nn.Module):
    """Features at every scale, or for every sub-network: each a 3x3 convolution of the one before.

    Attributes:
        widths: channels of each, the highest resolution first.
        strides: of the convolutions between them, one less.
        stem: "cifar" or "imagenet".
    """

    widths: tuple[int, ...]
    strides: tuple[int, ...]
    stem: str
    options: LayerOptions

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> tuple[jax.Array, ...]:
        """[N, H, W, 3] -> one array a width."""
        features = [Stem(self.widths[0], self.stem, self.options, name="stem")(images, train)]
        for i, stride in enumerate(self.strides, start=1):
            convolution = ConvBNReLU(self.widths[i], 3, self.options, stride, name=f"scale_{i}")
            features.append(convolution(features[-1], train))
        return tuple(features)


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
        if any(size not in EXIT_SIZES for size in x.shape[1:3]):
            raise ValueError(
                f"the coarsest features of an exit are {x.shape[1]}x{x.shape[2]} pixels, but must "
                f"be {EXIT_SIZES[0]} to {EXIT_SIZES[-1]} on each side for the classifier to pool "
                "them to one"
            )
        width = 128 if self.stem == "cifar" else x.shape[-1]
        x = ConvBNReLU(width, 3, self.options, 2, name="conv_0")(x, train)
        x = ConvBNReLU(width, 3, self.options, 2, name="conv_1")(x, train)
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


def reduced(channels: int, reduction: float) -> int:
    """floor(reduction · channels), the width of a transition."""
    return math.floor(reduction * channels)
