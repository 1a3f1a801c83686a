"""From what a batch looks like at the exits to how much each sample counts at each exit.

Han et al., ECCV 2022, section 3.2: a weight is w = 1 + δ·u, where u is what the weight-prediction
network says, less a mean that keeps the weights balanced.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from l2w_jax.models import MultiExitNetwork, WeightPredictor
from l2w_jax.models.exit_shares import exit_shares
from l2w_jax.training.allocation import allocate_globally
from l2w_jax.training.collectives import (
    axis_size,
    gather_rows,
    mean_over,
    own_rows,
    sum_over,
)

# From Θ (unused where nothing is learned), losses and confidences [N, K] to weights [N, K].
Weighting = Callable[[Any, jax.Array, jax.Array], jax.Array]

# The kinds of weighting whose weights a weight-prediction network gives.
PREDICTED_KINDS = ("meta", "frozen")


def create_weighting(
    config: ConfigDict, model: MultiExitNetwork, axis_name: str | None
) -> Weighting:
    """The weighting that `config.weighting` describes, for the exits of `model`.

    Args:
        config: `config.weighting`.
        model: the network to be weighted.
        axis_name: device axis over which the batch is one batch; None for one device's samples.

    Raises:
        ValueError: `config.kind` is not known.
    """
    if config.kind in PREDICTED_KINDS:
        predictor = create_predictor(config, model)
        return PredictedWeights(
            predictor, config.input, config.constraint, config.magnitude, axis_name
        )
    if config.kind == "allocation":
        return AllocatedWeights(exit_shares(config.q, model.num_exits), axis_name)
    if config.kind == "fixed":
        return HandSetWeights(config.magnitude, axis_name)
    if config.kind == "none":
        return equal_weights
    known = (*PREDICTED_KINDS, "allocation", "fixed", "none")
    raise ValueError(
        f"config.weighting.kind: {config.kind!r} is not allowed: "
        f"must be one of {', '.join(map(repr, known))}"
    )


def is_pipelined(config: ConfigDict) -> bool:
    """Whether the predictor learns from a half-step only in the next one (`pipelined.py`).

    Args:
        config: `config.weighting`.

    Raises:
        ValueError: `config.schedule` is not known.
    """
    if config.schedule not in ("exact", "pipelined"):
        raise ValueError(
            f"config.weighting.schedule: {config.schedule!r} is not allowed: "
            "must be 'exact' or 'pipelined'"
        )
    return config.kind == "meta" and config.schedule == "pipelined"


def create_predictor(config: ConfigDict, model: MultiExitNetwork) -> WeightPredictor:
    """The weight-prediction network that `config.weighting` describes, for the exits of `model`."""
    return WeightPredictor(
        num_exits=model.num_exits,
        hidden=config.hidden,
        num_layers=config.num_layers,
        dtype=model.dtype,
    )


def equal_weights(wpn_params: Any, losses: jax.Array, confidences: jax.Array) -> jax.Array:
    """1 for every sample at every exit, [N, K]: plain training."""
    del wpn_params, confidences
    return jnp.ones_like(losses)


@dataclasses.dataclass(frozen=True)
class PredictedWeights:
    """The function w(Θ): the weights of a batch under parameters Θ of the predictor.

    Attributes:
        predictor: the weight-prediction network g.
        inputs: what g reads: "loss", "confidence" or "both".
        constraint: the mean that is subtracted: "row", "col" or "mat" (`centre`).
        magnitude: δ, how far a weight may be from 1.
        axis_name: device axis over which the batch is one batch; None for one device's samples.
    """

    predictor: WeightPredictor
    inputs: str
    constraint: str
    magnitude: float
    axis_name: str | None = None

    def __call__(self, wpn_params: dict, losses: jax.Array, confidences: jax.Array) -> jax.Array:
        """Weights w[i, k], [N, K], of samples with these losses and confidences, [N, K].

        No gradient flows into the losses and confidences.
        """
        inputs = jax.lax.stop_gradient(predictor_inputs(self.inputs, losses, confidences))
        u = self.predictor.apply({"params": wpn_params}, inputs)
        return 1 + self.magnitude * centre(u, self.constraint, self.axis_name)


@dataclasses.dataclass(frozen=True)
class AllocatedWeights:
    """Each sample trains only the exit that it is allocated to (the paper's ablation).

    Samples are allocated as meta data are (section 3.3). The weights N / N_k make the training loss
    Σ_k mean of l over the N_k samples of exit k.

    Attributes:
        shares: p, float32 [K].
        axis_name: device axis over which samples are allocated and counted.
    """

    shares: np.ndarray
    axis_name: str | None = None

    def __call__(self, wpn_params: Any, losses: jax.Array, confidences: jax.Array) -> jax.Array:
        """Weights [N, K] by the confidences of the samples themselves."""
        del wpn_params
        confidences = jax.lax.stop_gradient(confidences)
        allocation = allocate_globally(confidences, self.shares, self.axis_name)
        counts = sum_over(self.axis_name, allocation.sum(axis=0))
        num_samples = len(losses) * axis_size(self.axis_name)
        return allocation * (num_samples / jnp.maximum(counts, 1)).astype(losses.dtype)


@dataclasses.dataclass(frozen=True)
class HandSetWeights:
    """Weights set by hand: easy samples count more at early exits, hard ones at late exits.

    w[i, k] = 1 + δ·e_k·r_i, where e_k rises evenly from -1 at the first exit to 1 at the last, and
    r_i, by rank, from -1 for the sample whose mean loss over the exits is smallest to 1 for the
    largest.
    So the weights of a sample average 1, as do those of an exit: what the constraints promise of
    learned weights. The paper leaves its hand-set weights open; this form has its one magnitude.

    Attributes:
        magnitude: δ.
        axis_name: device axis over which the samples are ranked.
    """

    magnitude: float
    axis_name: str | None = None

    def __call__(self, wpn_params: Any, losses: jax.Array, confidences: jax.Array) -> jax.Array:
        """Weights [N, K] by the losses of the samples."""
        del wpn_params, confidences
        difficulty = gather_rows(self.axis_name, jax.lax.stop_gradient(losses).mean(axis=1))
        ranks = jnp.argsort(jnp.argsort(difficulty, stable=True), stable=True)
        hardness = own_rows(self.axis_name, _from_minus_one_to_one(ranks, len(difficulty)))
        num_exits = losses.shape[1]
        lateness = _from_minus_one_to_one(jnp.arange(num_exits), num_exits)
        weights = 1 + self.magnitude * hardness[:, None] * lateness
        return weights.astype(losses.dtype)


def _from_minus_one_to_one(ranks: jax.Array, count: int) -> jax.Array:
    """Ranks 0 to count - 1, spread evenly over -1 to 1; a single one is in the middle, 0."""
    return (2 * ranks - (count - 1)) / max(count - 1, 1)


def predictor_inputs(inputs: str, losses: jax.Array, confidences: jax.Array) -> jax.Array:
    """What g reads: [N, K] losses, [N, K] confidences, or [N, 2K] both, losses first.

    Raises:
        ValueError: `inputs` is not known.
    """
    if inputs == "loss":
        return losses
    if inputs == "confidence":
        return confidences
    if inputs == "both":
        return jnp.concatenate([losses, confidences], axis=-1)
    raise ValueError(
        f"config.weighting.input: {inputs!r} is not allowed: must be 'loss', 'confidence' or 'both'"
    )


def centre(u: jax.Array, constraint: str, axis_name: str | None = None) -> jax.Array:
    """u [N, K] less its mean over the batch ("row"), over the exits ("col") or over both ("mat").

    Raises:
        ValueError: `constraint` is not known.
    """
    if constraint == "row":
        return u - mean_over(axis_name, u.mean(axis=0, keepdims=True))
    if constraint == "col":
        return u - u.mean(axis=1, keepdims=True)
    if constraint == "mat":
        return u - mean_over(axis_name, u.mean())
    raise ValueError(
        f"config.weighting.constraint: {constraint!r} is not allowed: must be 'row', 'col' or 'mat'"
    )


def weighted_loss(weights: jax.Array, losses: jax.Array) -> jax.Array:
    """Training loss Σ_k mean_i w[i, k]·l[i, k] of this device's samples, both [N, K]."""
    return (weights * losses).mean(axis=0).sum()
