"""From what a batch looks like at the exits to how much each sample counts at each exit.

Han et al., ECCV 2022, section 3.2: a weight is w = 1 + δ·u, where u is what the weight-prediction
network says, less a mean that keeps the weights balanced.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from l2w_jax.config.choices import PREDICTED_KINDS
from l2w_jax.models import MultiExitNetwork, WeightPredictor
from l2w_jax.models.collectives import mean_over
from l2w_jax.models.exit_shares import exit_shares
from l2w_jax.training.ablations import AllocatedWeights, HandSetWeights, equal_weights

# From Θ (unused where nothing is learned), losses and confidences [N, K] to weights [N, K].
Weighting = Callable[[Any, jax.Array, jax.Array], jax.Array]


def create_weighting(
    config: ConfigDict, model: MultiExitNetwork, axis_name: str | None
) -> Weighting:
    """The weighting that `config.weighting` describes, for the exits of `model`.

    Args:
        config: `config.weighting`.
        model: the network to be weighted.
        axis_name: device axis over which the batch is one; None for one device's samples.
    """
    if config.kind in PREDICTED_KINDS:
        predictor = create_predictor(config, model)
        return PredictedWeights(
            predictor, config.input, config.constraint, config.magnitude, axis_name
        )
    by_kind = {
        "none": equal_weights,
        "allocation": AllocatedWeights(exit_shares(config.q, model.num_exits), axis_name),
        "fixed": HandSetWeights(config.magnitude, axis_name),
    }
    return by_kind[config.kind]


def is_pipelined(config: ConfigDict) -> bool:
    """Whether the predictor learns from a half-step only in the next one (`pipelined.py`).

    Args:
        config: `config.weighting`.
    """
    return config.kind == "meta" and config.schedule == "pipelined"


def create_predictor(config: ConfigDict, model: MultiExitNetwork) -> WeightPredictor:
    """The weight-prediction network that `config.weighting` describes, for the exits of `model`."""
    return WeightPredictor(
        num_exits=model.num_exits,
        hidden=config.hidden,
        num_layers=config.num_layers,
        dtype=model.dtype,
    )


@dataclasses.dataclass(frozen=True)
class PredictedWeights:
    """The function w(Θ): the weights of a batch under parameters Θ of the predictor.

    Attributes:
        predictor: the weight-prediction network g.
        inputs: what g reads: "loss", "confidence" or "both".
        constraint: the mean that is subtracted: "row", "col" or "mat" (`centre`).
        magnitude: δ; weights lie in 1 ± 2δ, as u and its mean are at most 2 apart.
        axis_name: device axis over which the batch is one; None for one device's samples.
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


def predictor_inputs(inputs: str, losses: jax.Array, confidences: jax.Array) -> jax.Array:
    """What g reads: [N, K] losses, [N, K] confidences, or [N, 2K] both, losses first."""
    read = {"loss": [losses], "confidence": [confidences], "both": [losses, confidences]}
    return jnp.concatenate(read[inputs], axis=-1)


def centre(u: jax.Array, constraint: str, axis_name: str | None = None) -> jax.Array:
    """u [N, K] less its mean over the batch ("row"), the exits ("col") or both ("mat")."""
    mean = u.mean(axis={"row": 0, "col": 1, "mat": (0, 1)}[constraint], keepdims=True)
    return u - (mean if constraint == "col" else mean_over(axis_name, mean))
