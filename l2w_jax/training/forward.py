"""The forward pass of the half that trains, ready for the gradients on θ that a half-step takes."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from l2w_jax.models.collectives import axis_size, sum_over
from l2w_jax.models.platforms import made_after
from l2w_jax.training.losses import Batch, TrainingLosses, confidences_of_logits, weighted_loss
from l2w_jax.training.state import TrainState

PullBack = Callable[[tuple[jax.Array, jax.Array]], tuple[Any]]


@dataclasses.dataclass(frozen=True)
class TrainingForward:
    """What the forward pass of x1 at θ leaves, for the pseudo-update and for the real one.

    Where the exits also learn from a teacher (`Distillation`), the training loss is
    Σ_k mean_i w·s_k·l plus a term D without weights; elsewhere s_k = 1 and D = 0.

    Attributes:
        losses, confidences: l and c, [N, K].
        distilled: D.
        label_shares: s, [K] or one number.
        logits: [K, N, C].
        batch_stats: running statistics after this pass.
        pull_back: from cotangents of the losses and of D to the gradient on θ, which is 0 on the
            parts of the network that are frozen.
        pull_back_after: the same, from a forward pass that is made anew, once something of θ's
            structure has been computed.
    """

    losses: jax.Array
    confidences: jax.Array
    distilled: jax.Array
    label_shares: float | np.ndarray
    logits: jax.Array
    batch_stats: Any
    pull_back: PullBack
    pull_back_after: Callable[[Any], PullBack]

    def weighted_loss(self, weights: jax.Array) -> jax.Array:
        """The training loss Σ_k mean_i w[i, k]·s_k·l[i, k] + D, of this device's samples."""
        return weighted_loss(weights * self.label_shares, self.losses) + self.distilled

    def weighted_gradient(self, weights: jax.Array, axis_name: str | None = None) -> Any:
        """∇_θ of the training loss of all devices' samples; except for D's, linear in w.

        Args:
            weights: w, [N, K].
            axis_name: device axis over which the loss is a mean; None: this device's samples only.
        """
        # Dividing a gradient among devices costs nothing where it begins.
        share = 1 / axis_size(axis_name)
        of_losses = (share * weights * self.label_shares / len(weights)).astype(self.losses.dtype)
        (gradient,) = self.pull_back((of_losses, jnp.full_like(self.distilled, share)))
        return sum_over(axis_name, gradient)

    def slopes_along(self, direction: Any) -> jax.Array:
        """s_k·<∇_θ l[i, k], direction>, [N, K]: the transposed `pull_back`, a forward-mode pass."""
        transposed = jax.linear_transpose(self.pull_back, (self.losses, self.distilled))
        ((slopes, _),) = transposed((direction,))
        return self.label_shares * slopes

    def recomputed_after(self, earlier: Any) -> "TrainingForward":
        """The same, but what `pull_back` needs is made anew, `made_after` something earlier."""
        return dataclasses.replace(self, pull_back=self.pull_back_after(earlier))


def training_forward(network: TrainingLosses, state: TrainState, batch: Batch) -> TrainingForward:
    """Forward pass of x1 at θ in training mode, ready to be pulled back."""

    def losses_of(params):
        for name in network.model.frozen:
            params = {**params, name: jax.lax.stop_gradient(params[name])}
        return network.with_distilled(params, state.batch_stats, batch)

    (losses, distilled), pull_back, (logits, batch_stats) = jax.vjp(
        losses_of, state.params, has_aux=True
    )

    def pull_back_after(earlier):
        return jax.vjp(losses_of, made_after(earlier, state.params), has_aux=True)[1]

    return TrainingForward(
        losses=losses,
        confidences=confidences_of_logits(logits),
        distilled=distilled,
        label_shares=network.label_shares,
        logits=logits,
        batch_stats=batch_stats,
        pull_back=pull_back,
        pull_back_after=pull_back_after,
    )
