"""Operations that only change where elements lie, in ONNX's words."""

from typing import Any

import numpy as np
from jax.extend import core

from l2w_jax.interop.onnx_graph import (
    Graph,
    Joined,
    Known,
    Tensor,
    Unsupported,
    Value,
)


def reshape(graph: Graph, eqn: core.JaxprEqn, operand: Value) -> Tensor:
    """Another shape of the same elements, which costs nothing yet."""
    tensor = graph.plain(operand) if isinstance(operand, Joined) else operand
    return tensor.spoken_of_as(eqn.outvars[0].aval.shape)


def broadcast(graph: Graph, eqn: core.JaxprEqn, operand: Value) -> Tensor:
    """New axes of one element; elements are repeated only where an operation needs that."""
    tensor, places = graph.plain(operand), eqn.params["broadcast_dimensions"]
    shape: list[Any] = [1] * len(eqn.outvars[0].aval.shape)
    for size, place in zip(tensor.shape, places, strict=True):
        shape[place] = size
    if len(shape) == len(tensor.shape):
        return tensor
    return graph.plain(graph.laid_out(tensor).spoken_of_as(tuple(shape)))


def transpose(graph: Graph, eqn: core.JaxprEqn, operand: Value) -> Tensor:
    """Another order of axes, which costs nothing: a tensor knows how its axes lie."""
    tensor, order = graph.plain(operand), eqn.params["permutation"]
    shape = tuple(tensor.shape[axis] for axis in order)
    axes = tuple(order.index(axis) for axis in tensor.axes)
    return Tensor(tensor.name, shape, axes, shape, tensor.dtype)


def concatenate(graph: Graph, eqn: core.JaxprEqn, *operands: Known | Value) -> Value:
    """Side by side along an axis."""
    if any(isinstance(operand, Known) for operand in operands):
        raise Unsupported("the operation 'concatenate' of constants with what is computed")
    return graph.join(operands, eqn.params["dimension"], eqn.outvars[0].aval.shape)


def cut(graph: Graph, eqn: core.JaxprEqn, operand: Value) -> Value:
    """A part along some axes, but not of the batch."""
    tensor, out = graph.plain(operand), eqn.outvars[0].aval
    strides = eqn.params["strides"] or (1,) * len(out.shape)
    starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
    cut = [
        axis
        for axis, size in enumerate(tensor.shape)
        if not (_equals(starts[axis], 0) and limits[axis] == size and strides[axis] == 1)
    ]
    if not cut:
        return operand
    if not all(isinstance(part[axis], int) for part in (starts, limits) for axis in cut):
        raise Unsupported("the operation 'slice' of the batch")
    rows = [[part[axis] for axis in cut] for part in (starts, limits)]
    places = [tensor.axes.index(axis) for axis in cut]
    rows += [places, [strides[axis] for axis in cut]]
    constants = [graph.constant(np.array(row, np.int64)) for row in rows]
    name = graph.emit("Slice", [tensor.name, *constants])
    return Tensor(name, out.shape, tensor.axes, out.shape, tensor.dtype)


def _equals(size: Any, number: int) -> bool:
    return isinstance(size, int) and size == number


def split(graph: Graph, eqn: core.JaxprEqn, operand: Value) -> list[Tensor]:
    """Parts along an axis."""
    tensor, sizes = graph.plain(operand), eqn.params["sizes"]
    shapes = [var.aval.shape for var in eqn.outvars]
    if len(sizes) == 1:
        return [tensor]
    place = tensor.axes.index(eqn.params["axis"])
    ends = np.cumsum(sizes).tolist()
    names = [
        graph.part(tensor.name, place, end - size, end)
        for size, end in zip(sizes, ends, strict=True)
    ]
    if None in names:
        inputs = [tensor.name, graph.constant(np.array(sizes, np.int64))]
        names = graph.emit("Split", inputs, outputs=len(sizes), axis=place)
    return [
        Tensor(name, shape, tensor.axes, shape, tensor.dtype)
        for name, shape in zip(names, shapes, strict=True)
    ]
