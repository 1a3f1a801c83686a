"""Mul-adds of an exit: the x-axis of every figure of the field.

Counted as MSDNet's authors count them: a convolution cin·cout·k²·h·w / groups, with h and w of its
output and without its bias; a linear layer its weights and its biases; ReLU one for each element; a
pooling window its size for every output. Batch norm, concatenation and resizing count nothing.
A loop counts as often as it runs, and a choice as its most expensive branch.
"""

import enum
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from l2w_jax.models import MultiExitNetwork, convolution
from l2w_jax.models.precision import parameter_dtype
from l2w_jax.models.resize import RESIZE_NAME


def mul_adds_per_exit(model: MultiExitNetwork, image_size: int | Sequence[int]) -> np.ndarray:
    """Mul-adds of one image up to and with each exit, earlier exits included.

    They are read off the operations that the network performs, so this works for any network.

    Args:
        model: a multi-exit network.
        image_size: height and width of the image in pixels, if it is square and has three
            channels; otherwise its whole shape, as [H, W, 1].

    Returns:
        float64[K], increasing.

    Raises:
        ValueError: the network has a loop whose number of iterations depends on data, or does not
            take images of this size.
    """
    shape = tuple(image_size) if np.ndim(image_size) else (image_size, image_size, 3)
    image = jax.ShapeDtypeStruct((1, *shape), parameter_dtype(model.dtype))
    variables = jax.eval_shape(
        lambda rng, x: model.init(rng, x, train=False), jax.random.key(0), image
    )

    def start(variables, image):
        return model.apply(variables, image, False, method="init_carry")

    total, carry = _count_and_shapes(start, variables, image)
    totals = []
    for k in range(model.num_exits):

        def stage(variables, carry, k=k):
            return model.apply(variables, k, carry, False, method="stage")

        of_stage, (_, carry) = _count_and_shapes(stage, variables, carry)
        total += of_stage
        totals.append(total)
    return np.array(totals, np.float64)


class _Kind(enum.Enum):
    """What is known of a value: `FIXED` is the same for every image, as parameters are."""

    ZERO = enum.auto()
    FIXED = enum.auto()
    MATRIX_PRODUCT = enum.auto()
    OTHER = enum.auto()


_FIXED = (_Kind.ZERO, _Kind.FIXED)


def _count_and_shapes(
    function: Callable[..., Any], variables: Any, features: Any
) -> tuple[int, Any]:
    """Mul-adds of `function` on arguments of these shapes, and the shapes of what it returns."""
    closed_jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(variables, features)
    num_variables = len(jax.tree.leaves(variables))
    num_features = len(closed_jaxpr.jaxpr.invars) - num_variables
    kinds = [_Kind.FIXED] * num_variables + [_Kind.OTHER] * num_features
    return _mul_adds_of_jaxpr(closed_jaxpr.jaxpr, kinds), shapes


def _mul_adds_of_jaxpr(jaxpr: core.Jaxpr, kinds_of_arguments: Sequence[_Kind]) -> int:
    kinds = dict.fromkeys(jaxpr.constvars, _Kind.FIXED)
    kinds.update(zip(jaxpr.invars, kinds_of_arguments, strict=True))
    total = 0
    for eqn in jaxpr.eqns:
        operands = [
            _kind_of_constant(operand) if isinstance(operand, core.Literal) else kinds[operand]
            for operand in eqn.invars
        ]
        kinds.update(dict.fromkeys(eqn.outvars, _kind_of_result(eqn, operands)))
        if eqn.params.get("name") != RESIZE_NAME:
            total += _mul_adds_of_operation(eqn, operands) + _mul_adds_of_calls(eqn, operands)
    return total


def _kind_of_constant(constant: core.Literal) -> _Kind:
    return _Kind.ZERO if jnp.ndim(constant.val) == 0 and constant.val == 0 else _Kind.FIXED


def _kind_of_result(eqn: core.JaxprEqn, operands: Sequence[_Kind]) -> _Kind:
    if all(kind in _FIXED for kind in operands):
        return operands[0] if eqn.primitive.name == "convert_element_type" else _Kind.FIXED
    return _Kind.MATRIX_PRODUCT if eqn.primitive.name == "dot_general" else _Kind.OTHER


def _mul_adds_of_calls(eqn: core.JaxprEqn, operands: Sequence[_Kind]) -> int:
    """Mul-adds of the functions that an operation calls; for a choice, of the most expensive one.

    Raises:
        ValueError: it is a loop whose number of iterations depends on data.
    """
    match eqn.primitive.name:
        case "scan":
            (body,) = core.jaxprs_in_params(eqn.params)
            # Constants come first, then what is carried, then what is scanned; of the last an
            # iteration sees a part, without the first axis.
            num_carry = _num_of_equal_rank(eqn.outvars, body.outvars)
            end = _num_of_equal_rank(eqn.invars, body.invars)
            # What one iteration hands to the next is not what the first one got.
            carried = [_Kind.OTHER] * num_carry
            operands = [*operands[: end - num_carry], *carried, *operands[end:]]
            return eqn.params["length"] * _mul_adds_of_jaxpr(body, operands)
        case "cond":
            branches = eqn.params["branches"]
            return max(_mul_adds_of_jaxpr(branch.jaxpr, operands[1:]) for branch in branches)
        case "reduce_window":
            # The window counts, whatever it is reduced by.
            return 0
    total = 0
    for inner in core.jaxprs_in_params(eqn.params):
        same = len(inner.invars) == len(operands) and eqn.primitive.name != "while"
        total += _mul_adds_of_jaxpr(inner, operands if same else [_Kind.OTHER] * len(inner.invars))
    if total and eqn.primitive.name == "while":
        raise ValueError(
            "a loop whose number of iterations depends on data has no mul-adds: lax.scan, and "
            "lax.fori_loop between numbers, do"
        )
    return total


def _num_of_equal_rank(outside: Sequence[Any], inside: Sequence[Any]) -> int:
    return sum(len(a.aval.shape) == len(b.aval.shape) for a, b in zip(outside, inside, strict=True))


def _mul_adds_of_operation(eqn: core.JaxprEqn, operands: Sequence[_Kind]) -> int:
    """Mul-adds of one operation, without those of functions that it calls."""
    # Only what is called for its effects has no result.
    outputs = math.prod(eqn.outvars[0].aval.shape) if eqn.outvars else 0
    match eqn.primitive.name:
        case "conv_general_dilated":
            kernel, layout = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"].rhs_spec
            out_features = kernel[layout[0]]
            return outputs * math.prod(kernel) // out_features
        case convolution.CONVOLUTION_NAME:
            return outputs * math.prod(eqn.invars[1].aval.shape[:-1])
        case "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            return outputs * math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
        case "add" if _Kind.MATRIX_PRODUCT in operands and any(k in _FIXED for k in operands):
            # The bias of a linear layer: one addition for each output.
            return outputs
        # max(x, 0), which is a ReLU, or one with an upper bound.
        case "max" | "clamp" if _Kind.ZERO in operands:
            return outputs
        case "reduce_window" | "reduce_window_max" | "reduce_window_min" | "reduce_window_sum":
            return outputs * math.prod(eqn.params["window_dimensions"])
    return 0
