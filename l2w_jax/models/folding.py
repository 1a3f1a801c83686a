"""Batch norm folded into the convolution before it, for a network that is trained no further.

With running statistics a batch norm is an affine map of each channel, which the kernel of the
convolution before it can take over:

    γ·(x * k + b - μ) / sqrt(σ² + ε) + β  =  x * (k·s) + (β + (b - μ)·s),   s = γ / sqrt(σ² + ε)

Of four operations on every feature one addition is left.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax import traverse_util

from l2w_jax.models.layers import BatchNorm, ConvBNReLU
from l2w_jax.models.multi_exit import MultiExitNetwork
from l2w_jax.models.normalization import EPSILON

Path = tuple[str, ...]


def fold_batch_norms(
    model: MultiExitNetwork, variables: Mapping[str, Any], images: jax.ShapeDtypeStruct
) -> dict[str, Any]:
    """Variables with which the network gives the same answers, except for rounding, and faster.

    The batch norms of `ConvBNReLU` are folded, wherever in the network they are; others, in a
    user's own layers, stay as they are. Only `train=False` is possible afterwards.

    Args:
        model: the network.
        variables: its {"params", "batch_stats"}.
        images: shape and type of what the network takes, [N, ...]; any N.

    Returns:
        {"params", "batch_stats"}, in which the folded batch norms have kept their "bias" alone.
    """
    # On the host, where no operation has to be compiled for each layer's shape.
    params, statistics = (
        traverse_util.flatten_dict(jax.tree.map(np.asarray, dict(variables.get(collection, {}))))
        for collection in ("params", "batch_stats")
    )
    for path in _foldable(model, variables, images):
        norm, convolution = (*path, "bn"), (*path, "conv")
        variance, mean = statistics.pop((*norm, "var")), statistics.pop((*norm, "mean"))
        factor = params.pop((*norm, "scale")) / np.sqrt(variance + variance.dtype.type(EPSILON))
        shift = params[(*norm, "bias")] - mean * factor
        if (*convolution, "bias") in params:
            bias = params[(*convolution, "bias")]
            shift = shift + bias * factor
            params[(*convolution, "bias")] = np.zeros_like(bias)
        params[(*norm, "bias")] = shift
        params[(*convolution, "kernel")] = params[(*convolution, "kernel")] * factor
    return {
        "params": traverse_util.unflatten_dict(params),
        "batch_stats": traverse_util.unflatten_dict(statistics),
    }


def _foldable(
    model: MultiExitNetwork, variables: Mapping[str, Any], images: jax.ShapeDtypeStruct
) -> set[Path]:
    """Paths of the variables of each `ConvBNReLU` that is not folded yet.

    Names are not enough: a user's layer may have a batch norm "bn" that precedes its convolution.
    """
    found = set()

    def note(
        next_method: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        norm = context.module
        if isinstance(norm, BatchNorm) and isinstance(norm.parent, ConvBNReLU):
            found.add(norm.parent.path)
        return next_method(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(lambda v, x: model.apply(v, x, train=False), variables, images)
    return found
