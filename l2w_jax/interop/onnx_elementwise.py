"""Operations on each number by itself in ONNX's words, where it has no single one for them."""

from collections.abc import Callable

import numpy as np
from jax.extend import core

from l2w_jax.interop.onnx_graph import Graph, Tensor, Value


def composed(*operations: str) -> Callable[..., Tensor]:
    """Several operations on each element, one after the other."""

    def apply(graph: Graph, eqn: core.JaxprEqn, operand: Value) -> Tensor:
        tensor = graph.plain(operand)
        name = tensor.name
        for operation in operations:
            name = graph.emit(operation, [name])
        return Tensor(name, tensor.stored, tensor.axes, tensor.shape, eqn.outvars[0].aval.dtype)

    return apply


def with_number(
    operation: str, number: Callable[[core.JaxprEqn], float], then: str = ""
) -> Callable[..., Tensor]:
    """An operation on each element and a number, and perhaps another on what that gives."""

    def apply(graph: Graph, eqn: core.JaxprEqn, operand: Value) -> Tensor:
        tensor = graph.plain(operand)
        constant = graph.constant(np.array(number(eqn), tensor.dtype))
        name = graph.emit(operation, [tensor.name, constant])
        name = graph.emit(then, [name]) if then else name
        return Tensor(name, tensor.stored, tensor.axes, tensor.shape, tensor.dtype)

    return apply


def expm1(graph: Graph, eqn: core.JaxprEqn, operand: Value) -> Tensor:
    """exp(x) - 1."""
    exponential = composed("Exp")(graph, eqn, operand)
    return with_number("Sub", lambda eqn: 1)(graph, eqn, exponential)


def log1p(graph: Graph, eqn: core.JaxprEqn, operand: Value) -> Tensor:
    """log(1 + x), also where x is lost beside 1: log(u)·x / (u - 1) of u = 1 + x (Kahan)."""
    tensor = graph.plain(operand)
    x, one = tensor.name, graph.constant(np.array(1, tensor.dtype))
    u = graph.emit("Add", [x, one])
    logarithm = graph.emit("Log", [u])
    lost = graph.emit("Div", [x, graph.emit("Sub", [u, one])])
    mended = graph.emit("Mul", [logarithm, lost])
    mended = graph.emit("Where", [graph.emit("Equal", [u, one]), x, mended])
    # Where 1 is lost beside x, which may be infinite.
    name = graph.emit("Where", [graph.emit("Equal", [u, x]), logarithm, mended])
    return Tensor(name, tensor.stored, tensor.axes, tensor.shape, tensor.dtype)


def square(graph: Graph, eqn: core.JaxprEqn, operand: Value) -> Tensor:
    """x·x."""
    tensor = graph.plain(operand)
    name = graph.emit("Mul", [tensor.name] * 2)
    return Tensor(name, tensor.stored, tensor.axes, tensor.shape, tensor.dtype)


def is_finite(graph: Graph, eqn: core.JaxprEqn, operand: Value) -> Tensor:
    """Whether x is neither infinite nor NaN."""
    tensor = graph.plain(operand)
    infinity = graph.constant(np.array(np.inf, tensor.dtype))
    # NaN is not less than anything.
    name = graph.emit("Less", [graph.emit("Abs", [tensor.name]), infinity])
    return Tensor(name, tensor.stored, tensor.axes, tensor.shape, np.dtype(bool))
