"""Convolutions, windows and linear maps in ONNX's words: they decide the layout of a graph."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.extend import core

from l2w_jax.interop.onnx_graph import (
    Graph,
    Joined,
    Known,
    Shape,
    Tensor,
    Unsupported,
    Value,
    is_one,
    same_shape,
)


def matrix_product(graph: Graph, eqn: core.JaxprEqn, left: Any, right: Any) -> Tensor:
    """A linear map of the last axis; for an image's pixels, written as a 1x1 convolution."""
    (of_left, of_right), batch_axes = eqn.params["dimension_numbers"]
    shape, dtype = eqn.outvars[0].aval.shape, eqn.outvars[0].aval.dtype
    rank = len(eqn.invars[0].aval.shape)
    if (
        isinstance(left, Known)
        or any(batch_axes)
        or tuple(of_left) != (rank - 1,)
        or len(eqn.invars[1].aval.shape) != 2
    ):
        raise Unsupported("the operation 'dot_general' other than of features and a matrix")
    if isinstance(right, Known):
        matrix = np.broadcast_to(right, eqn.invars[1].aval.shape)
        matrix = matrix if of_right[0] == 0 else matrix.T
        tensor = graph.plain(left) if isinstance(left, Joined) else left
        is_image = len(tensor.stored) == 4 and same_shape(tensor.stored[-1:], tensor.shape[-1:])
        if is_image and not all(map(is_one, tensor.stored[1:3])):
            image = graph.laid_out(tensor.spoken_of_as(tensor.stored), (0, 3, 1, 2))
            name = graph.emit("Conv", [image.name, graph.constant(matrix.T[:, :, None, None])])
            stored = (*tensor.stored[:-1], matrix.shape[1])
            return Tensor(name, stored, (0, 3, 1, 2), shape, dtype)
        second = graph.constant(matrix)
    else:
        second = graph.laid_out(right, (0, 1) if of_right[0] == 0 else (1, 0)).name
    name = graph.emit("MatMul", [graph.laid_out(left).name, second])
    return Tensor(name, shape, tuple(range(len(shape))), shape, dtype)


def convolution(graph: Graph, eqn: core.JaxprEqn, images: Any, kernel: Any) -> Tensor:
    """This package's own convolution (`models.convolution`)."""
    geometry = eqn.params["geometry"]
    return _conv(
        graph,
        eqn,
        images,
        kernel,
        layout=((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2)),
        strides=[geometry.stride] * 2,
        pads=[geometry.padding] * 4,
    )


def general_convolution(graph: Graph, eqn: core.JaxprEqn, images: Any, kernel: Any) -> Tensor:
    """JAX's convolution, in any layout and number of dimensions."""
    params = eqn.params
    if params["batch_group_count"] != 1 or any(size != 1 for size in params["lhs_dilation"]):
        raise Unsupported("the operation 'conv_general_dilated' of what is spread out or grouped")
    return _conv(
        graph,
        eqn,
        images,
        kernel,
        layout=tuple(params["dimension_numbers"]),
        strides=list(params["window_strides"]),
        pads=_pads(params["padding"]),
        dilations=list(params["rhs_dilation"]),
        group=params["feature_group_count"],
    )


def _pads(padding: Sequence[tuple[int, int]]) -> list[int]:
    pads = [begin for begin, _ in padding] + [end for _, end in padding]
    if min(pads) < 0:
        raise Unsupported("a window with negative padding")
    return pads


def _conv(
    graph: Graph, eqn: core.JaxprEqn, images: Any, kernel: Any, layout: Any, **attributes: Any
) -> Tensor:
    if not isinstance(kernel, Known) or isinstance(images, Known):
        raise Unsupported("a convolution whose kernel is computed")
    of_images, of_kernel, of_output = layout
    kernel = np.broadcast_to(kernel, eqn.invars[1].aval.shape).transpose(of_kernel)
    inputs = [graph.laid_out(images, of_images).name, graph.constant(kernel)]
    name = graph.emit("Conv", inputs, kernel_shape=list(kernel.shape[2:]), **attributes)
    out = eqn.outvars[0].aval
    return Tensor(name, out.shape, tuple(of_output), out.shape, out.dtype)


def pool(operation: str) -> Callable[..., Tensor]:
    """Windows that slide over all axes but the first and one more."""

    def apply(graph: Graph, eqn: core.JaxprEqn, operand: Value) -> Tensor:
        params, out = eqn.params, eqn.outvars[0].aval
        window, tensor = params["window_dimensions"], graph.plain(operand)
        if any(size != 1 for size in (*params["base_dilation"], *params["window_dilation"])):
            raise Unsupported(f"the operation {eqn.primitive.name!r} with gaps")
        rank = len(window)
        axes = tensor.axes if tensor.axes[0] == 0 else tuple(range(rank))
        if window[axes[1]] != 1:
            axes = (0, rank - 1, *range(1, rank - 1))
        if rank < 3 or window[0] != 1 or window[axes[1]] != 1:
            raise Unsupported(f"the operation {eqn.primitive.name!r} over images or channels")
        attributes: dict[str, Any] = {
            "kernel_shape": [window[axis] for axis in axes[2:]],
            "strides": [params["window_strides"][axis] for axis in axes[2:]],
            "pads": _pads([params["padding"][axis] for axis in axes[2:]]),
        }
        if operation == "AveragePool":
            attributes["count_include_pad"] = 1
        name = graph.emit(operation, [graph.laid_out(tensor, axes).name], **attributes)
        if operation == "AveragePool":
            size = graph.constant(np.array(np.prod(window), out.dtype))
            name = graph.emit("Mul", [name, size])
        return Tensor(name, out.shape, axes, out.shape, out.dtype)

    return apply


def resize(graph: Graph, images: Value, shape: Shape) -> Tensor:
    """`resize_align_corners` to a shape [N, height, width, C]."""
    moved = graph.laid_out(images, (0, 3, 1, 2))
    sizes = graph.constant(np.array(shape[1:3], np.int64))
    name = graph.emit(
        "Resize",
        [moved.name, "", "", sizes],
        axes=[2, 3],
        mode="linear",
        coordinate_transformation_mode="align_corners",
    )
    return Tensor(name, shape, moved.axes, shape, moved.dtype)
