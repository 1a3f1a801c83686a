"""JAX's operations in ONNX's words: from the jaxpr of a function to nodes of a `Graph`.

Whatever does not depend on the graph's inputs is computed here, once. An operation that has no
translation raises `Unsupported`.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from l2w_jax.interop import onnx_shapes, onnx_windows
from l2w_jax.interop.onnx_graph import (
    Graph,
    Joined,
    Known,
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


def _log1p(x: jax.Array) -> jax.Array:
    """log(1 + x), also where x is lost beside 1: log(u)·x / (u - 1) with u = 1 + x (Kahan)."""
    u = 1 + x
    mended = jnp.where(u == 1, x, jnp.log(u) * (x / (u - 1)))
    # Where 1 is lost beside x, which may be infinite.
    return jnp.where(u == x, jnp.log(u), mended)


# JAX's operations on each element for which ONNX has no single one, in terms of others of JAX's.
_REWRITTEN: dict[str, Callable[..., jax.Array]] = {
    "exp2": lambda x: jnp.exp(np.log(2).astype(x.dtype) * x),
    "expm1": lambda x: jnp.exp(x) - 1,
    "integer_pow": lambda x, y: jax.lax.pow(x, np.array(y, x.dtype)),
    # NaN is not less than anything.
    "is_finite": lambda x: jnp.abs(x) < jnp.inf,
    "log1p": _log1p,
    "ne": lambda x, y: ~(x == y),
    "rsqrt": lambda x: 1 / jnp.sqrt(x),
    "square": lambda x: x * x,
}

# Operations that only call a function, once; a loop has a function too.
_CALLS = {"jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call"}
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
        try:
            results = _convert_operation(graph, eqn, [read(operand) for operand in eqn.invars])
        except NotImplementedError as error:
            # The operation depends on how many images there are.
            raise Unsupported(f"the operation {eqn.primitive.name!r} over images") from error
        values.update(zip(eqn.outvars, results, strict=True))
    return [read(operand) for operand in jaxpr.jaxpr.outvars]


def _convert_operation(
    graph: Graph, eqn: core.JaxprEqn, operands: list[Known | Value]
) -> Sequence[Known | Value]:
    name = eqn.primitive.name
    if eqn.params.get("name") == RESIZE_NAME and not isinstance(operands[0], Known):
        shape = eqn.outvars[0].aval.shape
        if same_shape(shape, operands[0].shape):
            # In 8 bits ONNX Runtime cannot run a resize that changes nothing.
            return operands
        return [onnx_windows.resize(graph, operands[0], shape)]
    if name in _CALLS:
        return convert(graph, eqn.params.get("jaxpr", eqn.params.get("call_jaxpr")), operands)
    if name in _UNCHANGED:
        return operands
    if all(isinstance(operand, Known) for operand in operands):
        return _computed(eqn, operands)
    if name in ("and", "or", "not") and eqn.outvars[0].aval.dtype != bool:
        raise Unsupported(f"the operation {name!r} on bits")
    if name in _REWRITTEN:
        params = {"y": eqn.params["y"]} if name == "integer_pow" else {}
        rewritten = functools.partial(_REWRITTEN[name], **params)
        types = [jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype) for var in eqn.invars]
        return convert(graph, jax.make_jaxpr(rewritten)(*types), operands)
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
    """The value, repeated to this shape along axes where it has one element."""
    if same_shape(value.shape, shape):
        return value
    tensor = graph.laid_out(value)
    repeats = [1 if same_shape((a,), (b,)) else b for a, b in zip(tensor.shape, shape, strict=True)]
    if not _is_fixed(repeats):
        raise Unsupported("an operation on one image's features, repeated for all images")
    name = graph.emit("Expand", [tensor.name, graph.constant(np.array(repeats, np.int64))])
    return Tensor(name, shape, tensor.axes, shape, tensor.dtype)


def _computed(eqn: core.JaxprEqn, operands: Sequence[Known]) -> list[Known]:
    """The results of an operation on known arrays; NumPy avoids compiling the most common ones."""
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
        # In the layout of the operand with the most axes of more than one element.
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
    if operation == "Div" and (multiplied := _undone(graph, *operands)) is not None:
        return multiplied
    if operation == "Max" and any(_is_least(value) for value in operands):
        return computed[0]
    if len(computed) == 1 and isinstance(computed[0], Joined):
        return _of_each_part(computed[0], operands, of_plain)
    return of_plain(
        [value if isinstance(value, Known) else graph.plain(value) for value in operands]
    )


def _undone(graph: Graph, dividend: Known | Value, divisor: Known | Value) -> Tensor | None:
    """The factor that was multiplied by the divisor, as in means: ONNX pools averages, JAX sums."""
    if not isinstance(dividend, Tensor) or not isinstance(divisor, Known) or divisor.size != 1:
        return None
    factors = graph.inputs_of(dividend.name, "Mul")
    if factors is None or factors[1] != graph.constant(divisor.reshape(())):
        return None
    return dataclasses.replace(dividend, name=factors[0])


def _is_least(value: Known | Value) -> bool:
    """Whether this is -inf, from which JAX starts a maximum."""
    return isinstance(value, Known) and value.size == 1 and bool(np.all(value == -np.inf))


def _worded(
    graph: Graph,
    operation: str,
    values: Sequence[Tensor | Known],
    names: list[str],
    axes: Sequence[int],
) -> tuple[str, list[str]]:
    """The operation and its inputs in the form that runtimes best fuse with a convolution."""
    known = values[1] if len(values) == 2 and isinstance(values[1], Known) else None
    if known is None or not np.issubdtype(known.dtype, np.floating):
        return operation, names
    if operation == "Max" and not known.any():
        return "Relu", names[:1]
    if operation == "Sub":
        return "Add", [names[0], graph.constant(-_in_layout(known, axes))]
    return operation, names


def _common_shape(shapes: Sequence[Shape]) -> Shape:
    """The shape of what is computed from operands of these shapes, numbers among them."""
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
    """A known operand with its axes in this order; a scalar if it has one element."""
    return array.reshape(()) if array.size == 1 else array.transpose(axes)


def _reduce(
    graph: Graph, operation: str, operand: Value, axes: Sequence[int], eqn: core.JaxprEqn
) -> Tensor:
    tensor, out = graph.plain(operand), eqn.outvars[0].aval
    places = np.array([tensor.axes.index(axis) for axis in axes], np.int64)
    name = graph.emit(operation, [tensor.name, graph.constant(places)], keepdims=0)
    return _without_axes(name, tensor, axes, out.dtype)


def _without_axes(name: str, tensor: Tensor, gone: Sequence[int], dtype: Any) -> Tensor:
    """The tensor when some of its axes are gone and the others lie as before."""
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


def _top_k(graph: Graph, eqn: core.JaxprEqn, operand: Value) -> list[Tensor]:
    tensor, outs = graph.plain(operand), [var.aval for var in eqn.outvars]
    axis = tensor.axes.index(eqn.params["axis"])
    count = graph.constant(np.array([eqn.params["k"]], np.int64))
    # Of equal elements both take the one that comes first.
    largest, places = graph.emit("TopK", [tensor.name, count], outputs=2, axis=axis)
    places = graph.emit("Cast", [places], to=element_type(outs[1].dtype))
    return [
        Tensor(name, out.shape, tensor.axes, out.shape, out.dtype)
        for name, out in zip((largest, places), outs, strict=True)
    ]


def _cast(graph: Graph, eqn: core.JaxprEqn, operand: Value) -> Value:
    dtype = eqn.params["new_dtype"]
    if operand.dtype == dtype:
        return operand
    tensor = graph.plain(operand)
    name = graph.emit("Cast", [tensor.name], to=element_type(dtype))
    return Tensor(name, tensor.stored, tensor.axes, tensor.shape, dtype)


def _select(graph: Graph, eqn: core.JaxprEqn, *operands: Known | Value) -> Value:
    which, *cases = operands
    if len(cases) != 2 or which.dtype != bool:
        raise Unsupported("the operation 'select_n' among more than two cases")
    return _elementwise(graph, "Where", [which, *reversed(cases)], eqn)


def _clamp(graph: Graph, eqn: core.JaxprEqn, low: Any, operand: Value, high: Any) -> Value:
    if all(isinstance(limit, Known) and limit.size == 1 for limit in (low, high)):
        tensor = graph.plain(operand)
        limits = [graph.constant(limit.reshape(())) for limit in (low, high)]
        name = graph.emit("Clip", [tensor.name, *limits])
        return dataclasses.replace(tensor, name=name)
    at_least = _elementwise(graph, "Max", [operand, low], eqn)
    return _elementwise(graph, "Min", [at_least, high], eqn)


_OPERATIONS: dict[str, Callable[..., Any]] = {
    CONVOLUTION_NAME: onnx_windows.convolution,
    "argmax": _argmax,
    "broadcast_in_dim": onnx_shapes.broadcast,
    "clamp": _clamp,
    "concatenate": onnx_shapes.concatenate,
    "conv_general_dilated": onnx_windows.general_convolution,
    "convert_element_type": _cast,
    "dot_general": onnx_windows.matrix_product,
    "expand_dims": onnx_shapes.reshape,
    "reduce_window_max": onnx_windows.pool("MaxPool"),
    "reduce_window_sum": onnx_windows.pool("AveragePool"),
    "reshape": onnx_shapes.reshape,
    "select_n": _select,
    "slice": onnx_shapes.cut,
    "split": onnx_shapes.split,
    "squeeze": onnx_shapes.reshape,
    "top_k": _top_k,
    "transpose": onnx_shapes.transpose,
}
