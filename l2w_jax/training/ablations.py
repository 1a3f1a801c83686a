"""What the paper compares its learned weights with (Han et al., ECCV 2022, section 4).

Weights that no predictor gives: equal ones, which make plain training; those of a hard allocation;
weights set by hand. And a meta loss that does not know at which exit a sample leaves.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from l2w_jax.models.collectives import axis_size, gather_rows, own_rows, sum_over
from l2w_jax.training.allocation import allocate_globally


def equal_weights(wpn_params: Any, losses: jax.Array, confidences: jax.Array) -> jax.Array:
    """1 for every sample at every exit, [N, K]: plain training."""
    del wpn_params, confidences
    return jnp.ones_like(losses)


@dataclasses.dataclass(frozen=True)
class AllocatedWeights:
    """Each sample trains only the exit that it is allocated to.

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
    So the weights of a sample average 1, as do those of an exit, which is what the constraints
    ensure for learned weights. The paper does not say how it set its weights by hand; this form
    needs the magnitude alone.

    Attributes:
        magnitude: δ; weights lie in 1 ± δ.
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


def vanilla_objective(losses: jax.Array, confidences: jax.Array) -> jax.Array:
    """Σ_k mean of l over all samples, as if all reached every exit."""
    del confidences
    return losses.mean(axis=0).sum()
