"""Mul-adds of an exit: the x-axis of every figure of the field.

Counted as MSDNet's authors count them: a convolution cin·cout·k²·h·w / groups, with h and w of its
output and without its bias; a linear layer its weights and its biases; ReLU one an element; a
pooling window its size for every output. Batch norm, concatenation and resizing count nothing.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from l2w_jax.models import MultiExitNetwork, convolution
from l2w_jax.models.precision import parameter_dtype
from l2w_jax.models.resize import RESIZE_NAME


def mul_adds_per_exit(model: MultiExitNetwork, image_size: int) -> np.ndarray:
    """Mul-adds of one image up to and with each exit, earlier exits included.

    They are read off the operations that the network performs, so that any network has them.

    Args:
        model: a multi-exit network.
        image_size: height and width of the image in pixels.

    Returns:
        float64[K], increasing.
    """
    image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), parameter_dtype(model.dtype))
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


def _count_and_shapes(function: Callable[..., Any], *args: Any) -> tuple[int, Any]:
    """Mul-adds of `function` on arguments of these shapes, and the shapes of what it returns."""
    closed_jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    return sum(_mul_adds_of_jaxpr(closed_jaxpr.jaxpr)), shapes


def _mul_adds_of_jaxpr(jaxpr: core.Jaxpr) -> Iterator[int]:
    matrix_products = set()
    for eqn in jaxpr.eqns:
        if eqn.params.get("name") == RESIZE_NAME:
            continue
        yield _mul_adds_of_operation(eqn)
        if eqn.primitive.name == "dot_general":
            matrix_products.update(eqn.outvars)
        elif eqn.primitive.name == "add" and matrix_products.intersection(_variables(eqn)):
            # The bias of a linear layer: one addition for each output.
            yield math.prod(eqn.outvars[0].aval.shape)
        for inner in core.jaxprs_in_params(eqn.params):
            yield from _mul_adds_of_jaxpr(inner)


def _variables(eqn: core.JaxprEqn) -> list[core.Var]:
    return [var for var in eqn.invars if isinstance(var, core.Var)]


def _mul_adds_of_operation(eqn: core.JaxprEqn) -> int:
    """Mul-adds of one operation, without those of functions that it calls."""
    outputs = math.prod(eqn.outvars[0].aval.shape)
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
        case "max" if _is_zero(eqn.invars[1]):
            return outputs
        case "reduce_window_max" | "reduce_window_sum" | "reduce_window":
            return outputs * math.prod(eqn.params["window_dimensions"])
    return 0


def _is_zero(operand: core.Var | core.Literal) -> bool:
    """Whether the operand is the constant 0, as in max(x, 0), which is a ReLU."""
    return isinstance(operand, core.Literal) and jnp.ndim(operand.val) == 0 and operand.val == 0
