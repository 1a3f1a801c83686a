"""Convolutions whose derivatives are laid out as each platform's compiler wants them.

XLA:CPU hands a convolution to a fast routine where its images are [N, H, W, C] and its kernel is
[h, w, C, D]. JAX's derivatives have other layouts, which XLA mends in the outermost function only:
inside a condition or a loop they take many times as long. Other platforms get JAX's derivatives:
on a TPU the forms for a CPU more than double the bytes that a step moves. The same operations are
traced for all; the platform that they are lowered for, which need not be the one that traces,
decides. Only under `vmap` are the CPU's forms traced, for every platform.

A convolution y = x * k is bilinear, and so are both of its derivatives: they are the three faces of
the trilinear form T(x, k, g) = <x * k, g>. Each face is an operation here that knows the other two
as its transposed maps, so that derivatives of any order stay among the three:

    y = ∂T/∂g of images x [N, H, W, C] and kernel k [h, w, C, D], [N, H', W', D];
    ∂T/∂x of kernel k and cotangent g [N, H', W', D];
    ∂T/∂k of images x and cotangent g.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

# Name of the operation that gives y.
CONVOLUTION_NAME = "convolution"

_LAYOUT = ("NHWC", "HWIO", "NHWC")


@functools.partial(jax.jit, static_argnames="stride")
def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Convolution with padding (k-1)/2.

    Args:
        x: [N, H, W, C].
        kernel: [k, k, C, D].
        stride: vertical and horizontal.

    Returns:
        [N, ceil(H/stride), ceil(W/stride), D].
    """
    size = kernel.shape[0]
    if size == 1:
        # Pixels that are left out need not be read.
        x, stride = x[:, ::stride, ::stride], 1
    return convolve_in_layout(x, kernel, stride, padding=(size - 1) // 2)


class Geometry(NamedTuple):
    """The geometry of a convolution, the same vertically and horizontally.

    Attributes:
        stride: of the output's pixels, in the input's.
        padding: rows and columns of zeros on each side.
        image_size: (H, W).
        kernel_size: (h, w).
    """

    stride: int
    padding: int
    image_size: tuple[int, int]
    kernel_size: tuple[int, int]

    @property
    def output_size(self) -> tuple[int, int]:
        """(H', W')."""
        height, width = (
            (size + 2 * self.padding - window) // self.stride + 1
            for size, window in zip(self.image_size, self.kernel_size, strict=True)
        )
        return height, width

    @property
    def rest(self) -> tuple[int, int]:
        """Rows and columns at the end of the padded images that no window reaches."""
        height, width = (
            (size + 2 * self.padding - window) % self.stride
            for size, window in zip(self.image_size, self.kernel_size, strict=True)
        )
        return height, width


def convolve_in_layout(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """The convolution y of x [N, H, W, C] and kernel [h, w, C, D], [N, H', W', D]."""
    geometry = Geometry(stride, padding, x.shape[1:3], kernel.shape[:2])
    return _output.bind(x, kernel, geometry=geometry)


def _output_of(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    if _is_product(geometry):
        return jnp.dot(_rows(x), kernel[0, 0]).reshape(*x.shape[:-1], kernel.shape[3])
    if _is_smaller(geometry.image_size, geometry.kernel_size):
        return jnp.dot(_windows(x, geometry), kernel.reshape(-1, kernel.shape[-1]))
    return _output_by_lax(x, kernel, geometry)


def _image_cotangent_of(kernel: jax.Array, g: jax.Array, geometry: Geometry) -> jax.Array:
    """g, with its pixels `stride` apart, convolved with the kernel turned by 180°."""
    if _is_product(geometry):
        return _product(_rows(g), kernel[0, 0], 1).reshape(*g.shape[:-1], kernel.shape[2])
    if _is_smaller(geometry.output_size, geometry.kernel_size):
        x = jax.ShapeDtypeStruct((len(g), *geometry.image_size, kernel.shape[2]), g.dtype)
        to_image = jax.linear_transpose(functools.partial(_windows, geometry=geometry), x)
        return to_image(jnp.dot(g, kernel.reshape(-1, kernel.shape[-1]).T))[0]
    borders = [size - 1 - geometry.padding for size in geometry.kernel_size]
    return lax.conv_general_dilated(
        g,
        jnp.flip(kernel, (0, 1)).swapaxes(2, 3),
        window_strides=(1, 1),
        padding=[(b, b + rest) for b, rest in zip(borders, geometry.rest, strict=True)],
        lhs_dilation=(geometry.stride,) * 2,
        dimension_numbers=_LAYOUT,
    )


def _kernel_cotangent_of(x: jax.Array, g: jax.Array, geometry: Geometry) -> jax.Array:
    """x convolved with g, whose pixels are `stride` apart; the batch is summed as channels are."""
    if _is_product(geometry):
        return _product(_rows(g), _rows(x), 0).T[None, None]
    padding = geometry.padding
    gradient = lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        g.transpose(1, 2, 0, 3),
        window_strides=(1, 1),
        padding=[(padding, padding - rest) for rest in geometry.rest],
        rhs_dilation=(geometry.stride,) * 2,
        dimension_numbers=_LAYOUT,
    )
    return gradient.transpose(1, 2, 0, 3)


def _is_product(geometry: Geometry) -> bool:
    """Whether the convolution is a matrix product of the channels of every pixel.

    XLA:CPU takes up to six times as long for the gradient of a 1x1 convolution as for that of the
    product; and it takes less time and memory for a product of matrices than for one with
    [N, H, W, C], which it would transpose and keep.
    """
    return geometry.kernel_size == (1, 1) and geometry.stride == 1 and geometry.padding == 0


def _rows(x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> [N·H·W, C]."""
    # Not -1, which says nothing where there are no images.
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _product(a: jax.Array, b: jax.Array, axis: int) -> jax.Array:
    """The product of two matrices that sums over the same axis of both."""
    return lax.dot_general(a, b, (((axis,), (axis,)), ((), ())))


def _output_by_lax(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(geometry.stride,) * 2,
        padding=[(geometry.padding,) * 2] * 2,
        dimension_numbers=_LAYOUT,
    )


def _image_cotangent_by_lax(kernel: jax.Array, g: jax.Array, geometry: Geometry) -> jax.Array:
    x = jax.ShapeDtypeStruct((len(g), *geometry.image_size, kernel.shape[2]), g.dtype)
    return jax.linear_transpose(lambda x: _output_by_lax(x, kernel, geometry), x)(g)[0]


def _kernel_cotangent_by_lax(x: jax.Array, g: jax.Array, geometry: Geometry) -> jax.Array:
    kernel = jax.ShapeDtypeStruct((*geometry.kernel_size, x.shape[-1], g.shape[-1]), g.dtype)
    return jax.linear_transpose(lambda kernel: _output_by_lax(x, kernel, geometry), kernel)(g)[0]


def _is_smaller(size: tuple[int, int], window: tuple[int, int]) -> bool:
    """Whether XLA:CPU would leave a convolution of this size to its slow routine.

    It does where the window is larger than what it slides over, padding not counted: an exit of
    128 channels that narrows 4x4 pixels to 2x2 then spends nine tenths of a step in one derivative.
    """
    return any(side < of_window for side, of_window in zip(size, window, strict=True))


def _windows(x: jax.Array, geometry: Geometry) -> jax.Array:
    """What the kernel sees at each place: [N, H, W, C] -> [N, H', W', h·w·C]."""
    padding, stride = (geometry.padding,) * 2, geometry.stride
    padded = jnp.pad(x, ((0, 0), padding, padding, (0, 0)))
    height, width = (stride * (size - 1) + 1 for size in geometry.output_size)
    shifts = itertools.product(*map(range, geometry.kernel_size))
    seen = [padded[:, i : i + height : stride, j : j + width : stride] for i, j in shifts]
    return jnp.concatenate(seen, axis=-1)


def _operation(
    name: str, implementation: Callable[..., jax.Array], by_lax: Callable[..., jax.Array]
) -> Primitive:
    """A function of two arrays and a `Geometry` as an operation that has no derivatives yet.

    Args:
        name: of the operation.
        implementation: the function as a CPU should compute it.
        by_lax: the same function as other platforms should compute it.
    """

    def types(*operands: Any, **geometry: Any) -> Any:
        shapes = [jax.ShapeDtypeStruct(operand.shape, operand.dtype) for operand in operands]
        result = jax.eval_shape(functools.partial(implementation, **geometry), *shapes)
        return operands[0].update(shape=result.shape, dtype=result.dtype)

    def over_batch(operands: Any, axes: Any, **geometry: Any) -> tuple[jax.Array, int]:
        batched = jax.vmap(functools.partial(implementation, **geometry), in_axes=tuple(axes))
        return batched(*operands), 0

    operation = Primitive(name)
    operation.def_impl(implementation)
    operation.def_abstract_eval(types)
    mlir.register_lowering(operation, mlir.lower_fun(by_lax, multiple_results=False))
    mlir.register_lowering(
        operation, mlir.lower_fun(implementation, multiple_results=False), platform="cpu"
    )
    batching.primitive_batchers[operation] = over_batch
    return operation


_output = _operation(CONVOLUTION_NAME, _output_of, _output_by_lax)
_image_cotangent = _operation(
    "convolution_image_cotangent", _image_cotangent_of, _image_cotangent_by_lax
)
_kernel_cotangent = _operation(
    "convolution_kernel_cotangent", _kernel_cotangent_of, _kernel_cotangent_by_lax
)

# For each face, its transposes in its first and in its second operand. The cotangent of a face
# takes the place of the one of x, k and g that the face leaves out.
ad.defbilinear(
    _output,
    lambda g, x, kernel, **geometry: _image_cotangent.bind(kernel, g, **geometry),
    lambda g, x, kernel, **geometry: _kernel_cotangent.bind(x, g, **geometry),
)
ad.defbilinear(
    _image_cotangent,
    lambda x, kernel, g, **geometry: _kernel_cotangent.bind(x, g, **geometry),
    lambda x, kernel, g, **geometry: _output.bind(x, kernel, **geometry),
)
ad.defbilinear(
    _kernel_cotangent,
    lambda kernel, x, g, **geometry: _image_cotangent.bind(kernel, g, **geometry),
    lambda kernel, x, g, **geometry: _output.bind(x, kernel, **geometry),
)
