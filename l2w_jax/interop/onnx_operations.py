"""JAX's operations in ONNX's words: from the jaxpr of a function to nodes of a `Graph`.

Whatever does not depend on the graph's inputs is computed here, once. An operation without a word
raises `Unsupported`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.extend import core

from l2w_jax.interop.onnx_graph import (
    Graph,
    Joined,
    Shape,
    Tensor,
    Unsupported,
    Value,
    element_type,
    is_one,
    same_shape,
)
from l2w_jax.models.convolution import CONVOLUTION_NAME
from l2w_jax.models.resize import RESIZE_NAME

# What is known while the graph is made. An axis of one element stands for any number of equal ones.
Known = np.ndarray

# JAX's operations on each element, by ONNX's names.
_ELEMENTWISE = {
    "abs": "Abs",
    "add": "Add",
    "add_any": "Add",
    "and": "And",
    "ceil": "Ceil",
    "cos": "Cos",
    "div": "Div",
    "eq": "Equal",
    "erf": "Erf",
    "exp": "Exp",
    "floor": "Floor",
    "ge": "GreaterOrEqual",
    "gt": "Greater",
    "le": "LessOrEqual",
    "log": "Log",
    "logistic": "Sigmoid",
    "lt": "Less",
    "max": "Max",
    "min": "Min",
    "mul": "Mul",
    "neg": "Neg",
    "not": "Not",
    "or": "Or",
    "pow": "Pow",
    "sign": "Sign",
    "sin": "Sin",
    "sqrt": "Sqrt",
    "sub": "Sub",
    "tanh": "Tanh",
}
_REDUCTIONS = {"reduce_max": "ReduceMax", "reduce_min": "ReduceMin", "reduce_sum": "ReduceSum"}
_UNCHANGED = {"copy", "copy_p", "stop_gradient", "optimization_barrier", "sharding_constraint"}


def convert(graph: Graph, jaxpr: core.ClosedJaxpr, arguments: Sequence[Known | Value]) -> list[Any]:
    """Adds what a function computes to a graph.

    Args:
        graph: the graph.
        jaxpr: the function.
        arguments: of the function, as many as it takes.

    Returns:
        What the function returns: a `Value` each, or an array where it depends on no input.

    Raises:
        Unsupported: an operation has no counterpart here.
    """
    values: dict[core.Var, Known | Value] = {}

    def read(operand: core.Var | core.Literal) -> Known | Value:
        if isinstance(operand, core.Literal):
            return np.asarray(operand.val, operand.aval.dtype)
        return values[operand]

    constants = [np.asarray(constant) for constant in jaxpr.consts]
    values.update(zip(jaxpr.jaxpr.constvars, constants, strict=True))
    values.update(zip(jaxpr.jaxpr.invars, arguments, strict=True))
    for eqn in jaxpr.jaxpr.eqns:
        results = _convert_operation(graph, eqn, [read(operand) for operand in eqn.invars])
        values.update(zip(eqn.outvars, results, strict=True))
    return [read(operand) for operand in jaxpr.jaxpr.outvars]


def _convert_operation(
    graph: Graph, eqn: core.JaxprEqn, operands: list[Known | Value]
) -> Sequence[Known | Value]:
    name = eqn.primitive.name
    if eqn.params.get("name") == RESIZE_NAME and not isinstance(operands[0], Known):
        return [_resize(graph, operands[0], eqn.outvars[0].aval.shape)]
    inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    if isinstance(inner, core.ClosedJaxpr) and len(inner.jaxpr.invars) == len(operands):
        return convert(graph, inner, operands)
    if name in _UNCHANGED:
        return operands
    if all(isinstance(operand, Known) for operand in operands):
        return _computed(eqn, operands)
    if name in _ELEMENTWISE:
        return [_elementwise(graph, _ELEMENTWISE[name], operands, eqn)]
    if name not in _OPERATIONS and name not in _REDUCTIONS:
        raise Unsupported(f"the operation {name!r}")
    operands = [
        operand if isinstance(operand, Known) else _repeated(graph, operand, var.aval.shape)
        for operand, var in zip(operands, eqn.invars, strict=True)
    ]
    if name in _REDUCTIONS:
        return [_reduce(graph, _REDUCTIONS[name], operands[0], eqn.params["axes"], eqn)]
    results = _OPERATIONS[name](graph, eqn, *operands)
    return results if eqn.primitive.multiple_results else [results]


def _repeated(graph: Graph, value: Value, shape: Shape) -> Value:
    """The value, where it has one element along an axis as often as this shape says."""
    if same_shape(value.shape, shape):
        return value
    tensor = graph.laid_out(value)
    repeats = [1 if same_shape((a,), (b,)) else b for a, b in zip(tensor.shape, shape, strict=True)]
    if not _is_fixed(repeats):
        raise Unsupported("an operation on one image's features, repeated for all images")
    name = graph.emit("Expand", [tensor.name, graph.constant(np.array(repeats, np.int64))])
    return Tensor(name, shape, tensor.axes, shape, tensor.dtype)


def _computed(eqn: core.JaxprEqn, operands: Sequence[Known]) -> list[Known]:
    """What an operation on known arrays gives; NumPy spares compiling the commonest."""
    name, out = eqn.primitive.name, eqn.outvars[0].aval
    if name == "broadcast_in_dim":
        (operand,), places = operands, eqn.params["broadcast_dimensions"]
        shape = [1] * len(out.shape)
        for size, place in zip(operand.shape, places, strict=True):
            shape[place] = size
        return [operand.reshape(shape)]
    full = [
        np.broadcast_to(value, operand.aval.shape) if _is_fixed(operand.aval.shape) else value
        for value, operand in zip(operands, eqn.invars, strict=True)
    ]
    if name == "convert_element_type":
        return [full[0].astype(out.dtype)]
    if name in ("reshape", "squeeze") and _is_fixed(out.shape):
        return [full[0].reshape(out.shape)]
    if name == "concatenate":
        return [np.concatenate(full, axis=eqn.params["dimension"])]
    if not all(_is_fixed(var.aval.shape) for var in (*eqn.invars, *eqn.outvars)):
        raise Unsupported(f"the operation {name!r} on constants as many as there are images")
    results = eqn.primitive.bind(*full, **eqn.params)
    return [np.asarray(x) for x in (results if eqn.primitive.multiple_results else [results])]


def _is_fixed(shape: Shape) -> bool:
    return all(isinstance(size, int) for size in shape)


def _elementwise(
    graph: Graph, operation: str, operands: Sequence[Known | Value], eqn: core.JaxprEqn
) -> Value:
    """An operation on each element; what has one element along an axis is repeated along it."""

    def of_plain(values: Sequence[Tensor | Known]) -> Tensor:
        shape = _common_shape([value.shape for value in values])
        computed = [value for value in values if isinstance(value, Tensor)]
        # In the layout of who has most to say.
        axes = max(computed, key=lambda tensor: sum(not is_one(n) for n in tensor.shape)).axes
        names = [
            graph.constant(_in_layout(value, axes))
            if isinstance(value, Known)
            else graph.laid_out(value, axes).name
            for value in values
        ]
        name = graph.emit(*_worded(graph, operation, values, names, axes))
        return Tensor(name, shape, axes, shape, eqn.outvars[0].aval.dtype)

    computed = [value for value in operands if not isinstance(value, Known)]
    if len(computed) == 1 and isinstance(computed[0], Joined):
        return _of_each_part(computed[0], operands, of_plain)
    return of_plain(
        [value if isinstance(value, Known) else graph.plain(value) for value in operands]
    )


def _worded(
    graph: Graph,
    operation: str,
    values: Sequence[Tensor | Known],
    names: list[str],
    axes: Sequence[int],
) -> tuple[str, list[str]]:
    """The operation and its inputs as runtimes know best how to join them to a convolution."""
    known = values[1] if len(values) == 2 and isinstance(values[1], Known) else None
    if known is None or not np.issubdtype(known.dtype, np.floating):
        return operation, names
    if operation == "Max" and not known.any():
        return "Relu", names[:1]
    if operation == "Sub":
        return "Add", [names[0], graph.constant(-_in_layout(known, axes))]
    return operation, names


def _common_shape(shapes: Sequence[Shape]) -> Shape:
    """Of what is computed from operands of these shapes, numbers among them."""
    rank = max(map(len, shapes))
    return tuple(
        next((shape[i] for shape in shapes if len(shape) == rank and not is_one(shape[i])), 1)
        for i in range(rank)
    )


def _of_each_part(
    joined: Joined,
    operands: Sequence[Known | Value],
    function: Callable[[Sequence[Tensor | Known]], Tensor],
) -> Joined:
    """An operation on each element of joined tensors and of known arrays, part by part."""
    results, start = [], 0
    for part in joined.parts:
        end = start + part.shape[joined.axis]
        values = [
            _part_of(operand, joined.axis, start, end) if isinstance(operand, Known) else part
            for operand in operands
        ]
        results.append(function(values))
        start = end
    return Joined(tuple(results), joined.axis, joined.shape)


def _part_of(array: Known, axis: int, start: int, end: int) -> Known:
    if array.ndim == 0 or array.shape[axis] == 1:
        return array
    return np.take(array, range(start, end), axis)


def _in_layout(array: Known, axes: Sequence[int]) -> Known:
    """A known operand with its axes in this order; a number where it is one."""
    return array.reshape(()) if array.size == 1 else array.transpose(axes)


def _reduce(
    graph: Graph, operation: str, operand: Value, axes: Sequence[int], eqn: core.JaxprEqn
) -> Tensor:
    tensor, out = graph.plain(operand), eqn.outvars[0].aval
    places = np.array([tensor.axes.index(axis) for axis in axes], np.int64)
    name = graph.emit(operation, [tensor.name, graph.constant(places)], keepdims=0)
    return _without_axes(name, tensor, axes, out.dtype)


def _without_axes(name: str, tensor: Tensor, gone: Sequence[int], dtype: Any) -> Tensor:
    """What is left when axes of a tensor are gone, the others lying as they did."""
    left = [axis for axis in range(len(tensor.shape)) if axis not in gone]
    axes = tuple(left.index(axis) for axis in tensor.axes if axis in left)
    shape = tuple(tensor.shape[axis] for axis in left)
    return Tensor(name, shape, axes, shape, dtype)


def _argmax(graph: Graph, eqn: core.JaxprEqn, operand: Value) -> Tensor:
    tensor, out = graph.plain(operand), eqn.outvars[0].aval
    (axis,) = eqn.params["axes"]
    name = graph.emit("ArgMax", [tensor.name], axis=tensor.axes.index(axis), keepdims=0)
    name = graph.emit("Cast", [name], to=element_type(out.dtype))
    return _without_axes(name, tensor, [axis], out.dtype)


def _cast(graph: Graph, eqn: core.JaxprEqn, operand: Value) -> Value:
    dtype = eqn.params["new_dtype"]
    if operand.dtype == dtype:
        return operand
    tensor = graph.plain(operand)
    name = graph.emit("Cast", [tensor.name], to=element_type(dtype))
    return Tensor(name, tensor.stored, tensor.axes, tensor.shape, dtype)


def _composed(*operations: str) -> Callable[..., Tensor]:
    """Several operations on each element, one after the other."""

    def apply(graph: Graph, eqn: core.JaxprEqn, operand: Value) -> Tensor:
        tensor = graph.plain(operand)
        name = tensor.name
        for operation in operations:
            name = graph.emit(operation, [name])
        return Tensor(name, tensor.stored, tensor.axes, tensor.shape, eqn.outvars[0].aval.dtype)

    return apply


def _with_number(operation: str, number: Callable[[core.JaxprEqn], float], then: str = ""):
    """An operation on each element and a number, and perhaps another on what that gives."""

    def apply(graph: Graph, eqn: core.JaxprEqn, operand: Value) -> Tensor:
        tensor = graph.plain(operand)
        constant = graph.constant(np.array(number(eqn), tensor.dtype))
        name = graph.emit(operation, [tensor.name, constant])
        name = graph.emit(then, [name]) if then else name
        return Tensor(name, tensor.stored, tensor.axes, tensor.shape, tensor.dtype)

    return apply


def _expm1(graph: Graph, eqn: core.JaxprEqn, operand: Value) -> Tensor:
    exponential = _composed("Exp")(graph, eqn, operand)
    return _with_number("Sub", lambda eqn: 1)(graph, eqn, exponential)


def _square(graph: Graph, eqn: core.JaxprEqn, operand: Value) -> Tensor:
    tensor = graph.plain(operand)
    name = graph.emit("Mul", [tensor.name] * 2)
    return Tensor(name, tensor.stored, tensor.axes, tensor.shape, tensor.dtype)


def _is_finite(graph: Graph, eqn: core.JaxprEqn, operand: Value) -> Tensor:
    tensor = graph.plain(operand)
    broken = [graph.emit(test, [tensor.name]) for test in ("IsNaN", "IsInf")]
    name = graph.emit("Not", [graph.emit("Or", broken)])
    return Tensor(name, tensor.stored, tensor.axes, tensor.shape, np.dtype(bool))


def _select(graph: Graph, eqn: core.JaxprEqn, *operands: Known | Value) -> Value:
    which, *cases = operands
    if len(cases) != 2 or which.dtype != bool:
        raise Unsupported("the operation 'select_n' among more than two cases")
    return _elementwise(graph, "Where", [which, *reversed(cases)], eqn)


def _clamp(graph: Graph, eqn: core.JaxprEqn, low: Any, operand: Value, high: Any) -> Value:
    at_least = _elementwise(graph, "Max", [operand, low], eqn)
    return _elementwise(graph, "Min", [at_least, high], eqn)


def _reshape(graph: Graph, eqn: core.JaxprEqn, operand: Value) -> Tensor:
    tensor = graph.plain(operand) if isinstance(operand, Joined) else operand
    return tensor.spoken_of_as(eqn.outvars[0].aval.shape)


def _broadcast(graph: Graph, eqn: core.JaxprEqn, operand: Value) -> Tensor:
    """New axes of one element; what is to be repeated waits for whoever needs it repeated."""
    tensor, places = graph.plain(operand), eqn.params["broadcast_dimensions"]
    shape: list[Any] = [1] * len(eqn.outvars[0].aval.shape)
    for size, place in zip(tensor.shape, places, strict=True):
        shape[place] = size
    if len(shape) == len(tensor.shape):
        return tensor
    return graph.plain(graph.laid_out(tensor).spoken_of_as(tuple(shape)))


def _transpose(graph: Graph, eqn: core.JaxprEqn, operand: Value) -> Tensor:
    tensor, order = graph.plain(operand), eqn.params["permutation"]
    shape = tuple(tensor.shape[axis] for axis in order)
    axes = tuple(order.index(axis) for axis in tensor.axes)
    return Tensor(tensor.name, shape, axes, shape, tensor.dtype)


def _concatenate(graph: Graph, eqn: core.JaxprEqn, *operands: Known | Value) -> Value:
    if any(isinstance(operand, Known) for operand in operands):
        raise Unsupported("the operation 'concatenate' of constants with what is computed")
    return graph.join(operands, eqn.params["dimension"], eqn.outvars[0].aval.shape)


def _slice(graph: Graph, eqn: core.JaxprEqn, operand: Value) -> Value:
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


def _split(graph: Graph, eqn: core.JaxprEqn, operand: Value) -> list[Tensor]:
    tensor, sizes = graph.plain(operand), eqn.params["sizes"]
    shapes = [var.aval.shape for var in eqn.outvars]
    if len(sizes) == 1:
        return [tensor]
    place = tensor.axes.index(eqn.params["axis"])
    inputs = [tensor.name, graph.constant(np.array(sizes, np.int64))]
    names = graph.emit("Split", inputs, outputs=len(sizes), axis=place)
    return [
        Tensor(name, shape, tensor.axes, shape, tensor.dtype)
        for name, shape in zip(names, shapes, strict=True)
    ]


def _matrix_product(graph: Graph, eqn: core.JaxprEqn, left: Any, right: Any) -> Tensor:
    """A linear map of the last axis; of an image's pixels, the 1x1 convolution that it is."""
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


def _convolution(graph: Graph, eqn: core.JaxprEqn, images: Any, kernel: Any) -> Tensor:
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


def _general_convolution(graph: Graph, eqn: core.JaxprEqn, images: Any, kernel: Any) -> Tensor:
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


def _pool(operation: str) -> Callable[..., Tensor]:
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


def _resize(graph: Graph, images: Value, shape: Shape) -> Tensor:
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


_OPERATIONS: dict[str, Callable[..., Any]] = {
    CONVOLUTION_NAME: _convolution,
    "argmax": _argmax,
    "broadcast_in_dim": _broadcast,
    "clamp": _clamp,
    "concatenate": _concatenate,
    "conv_general_dilated": _general_convolution,
    "convert_element_type": _cast,
    "dot_general": _matrix_product,
    "exp2": _with_number("Mul", lambda eqn: np.log(2), then="Exp"),
    "expand_dims": _reshape,
    "expm1": _expm1,
    "integer_pow": _with_number("Pow", lambda eqn: eqn.params["y"]),
    "is_finite": _is_finite,
    "log1p": _with_number("Add", lambda eqn: 1, then="Log"),
    "reduce_window_max": _pool("MaxPool"),
    "reduce_window_sum": _pool("AveragePool"),
    "reshape": _reshape,
    "rsqrt": _composed("Sqrt", "Reciprocal"),
    "select_n": _select,
    "slice": _slice,
    "split": _split,
    "square": _square,
    "squeeze": _reshape,
    "transpose": _transpose,
}
