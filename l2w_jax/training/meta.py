"""The meta-update of the weight-prediction network (Han et al., ECCV 2022, section 3).

Symbols: θ, the network's parameters (`params`); Θ, those of the weight-prediction network
(`wpn_params`); x1, the half of the batch that trains; x2, the half that stands in for run time;
l, losses [N, K]; w, weights [N, K]; θ̂, `pseudo_params`.

What it costs. w enters the pseudo-gradient J^T w linearly, J being the Jacobian of the losses of
x1, and Θ alone is differentiated. So `jax.grad` only transposes that linear map, at the price of a
forward-mode pass over x1, and no backward pass is differentiated. The forward pass of x1 is shared
with the real update. In units of a forward pass, a half-step costs 1 (x1) + 2 (pseudo-gradient) +
3 (x2 and its gradient) + 2 (the transposed map) + 2 (real gradient) = 10, a plain step 3.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from l2w_jax.models.exit_shares import exit_shares
from l2w_jax.training.allocation import allocate_globally, allocated_mean
from l2w_jax.training.collectives import mean_over
from l2w_jax.training.losses import Batch, TrainingLosses, confidences_of_logits
from l2w_jax.training.optimizers import adam, descend, sgd
from l2w_jax.training.state import TrainState
from l2w_jax.training.weighting import create_weighting, weighted_loss

Params = Any
MetaObjective = Callable[[jax.Array, jax.Array], jax.Array]


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
    """

    losses: jax.Array
    confidences: jax.Array
    distilled: jax.Array
    label_shares: float | np.ndarray
    logits: jax.Array
    batch_stats: Any
    pull_back: Callable[[tuple[jax.Array, jax.Array]], tuple[Params]]

    def weighted_loss(self, weights: jax.Array) -> jax.Array:
        """The training loss Σ_k mean_i w[i, k]·s_k·l[i, k] + D, of this device's samples."""
        return weighted_loss(weights * self.label_shares, self.losses) + self.distilled

    def weighted_gradient(self, weights: jax.Array) -> Params:
        """∇_θ of the training loss, of this device's samples; but for that of D linear in w."""
        cotangent = (weights * self.label_shares / len(weights)).astype(self.losses.dtype)
        (gradient,) = self.pull_back((cotangent, jnp.ones_like(self.distilled)))
        return gradient


def training_forward(network: TrainingLosses, state: TrainState, batch: Batch) -> TrainingForward:
    """Forward pass of x1 at θ in training mode, ready to be pulled back."""

    def losses_of(params):
        for name in network.model.frozen:
            params = {**params, name: jax.lax.stop_gradient(params[name])}
        return network.with_distilled(params, state.batch_stats, batch)

    (losses, distilled), pull_back, (logits, batch_stats) = jax.vjp(
        losses_of, state.params, has_aux=True
    )
    return TrainingForward(
        losses=losses,
        confidences=confidences_of_logits(logits),
        distilled=distilled,
        label_shares=network.label_shares,
        logits=logits,
        batch_stats=batch_stats,
        pull_back=pull_back,
    )


def meta_gradient(
    wpn_params: Params,
    weights_of: Callable[[Params], jax.Array],
    pseudo_update: Callable[[jax.Array], Params],
    meta_loss_of: Callable[[Params], jax.Array],
) -> tuple[jax.Array, Params]:
    """The meta loss and ∂(meta loss)/∂Θ, through the pseudo-update of θ.

    Args:
        wpn_params: Θ.
        weights_of: a. w(Θ), [N, K], of x1 by its losses and confidences at θ.
        pseudo_update: b. θ̂ = θ - lr·(μ·buf + ∇_θ Σ_k mean_i w·l + wd·θ), from w.
        meta_loss_of: c. and d. the loss of x2 at θ̂.

    Returns:
        The value and the gradient as this device sees them: over several devices their means are
        those of the whole batch.
    """
    return jax.value_and_grad(
        lambda wpn_params: meta_loss_of(pseudo_update(weights_of(wpn_params)))
    )(wpn_params)


def allocated_objective(shares: np.ndarray, axis_name: str | None) -> MetaObjective:
    """Σ_k mean of l over the samples that would leave at exit k at run time.

    Args:
        shares: p, float32 [K], the share of the samples that is meant for each exit.
        axis_name: device axis over which samples are allocated and counted.

    Returns:
        A function of losses [N, K] and confidences [N, K]; no gradient flows into the latter.
    """

    def objective(losses: jax.Array, confidences: jax.Array) -> jax.Array:
        allocation = allocate_globally(jax.lax.stop_gradient(confidences), shares, axis_name)
        return allocated_mean(losses, allocation, axis_name)

    return objective


def vanilla_objective(losses: jax.Array, confidences: jax.Array) -> jax.Array:
    """Σ_k mean of l over all samples, as if all reached every exit (the paper's ablation)."""
    del confidences
    return losses.mean(axis=0).sum()


def meta_objective(weighting: ConfigDict, num_exits: int, axis_name: str | None) -> MetaObjective:
    """The objective that `config.weighting` names.

    Raises:
        ValueError: `weighting.objective` is not known.
    """
    if weighting.objective == "allocated":
        return allocated_objective(exit_shares(weighting.q, num_exits), axis_name)
    if weighting.objective == "vanilla":
        return vanilla_objective
    raise ValueError(
        f"config.weighting.objective: {weighting.objective!r} is not allowed: "
        "must be 'allocated' or 'vanilla'"
    )


@dataclasses.dataclass(frozen=True)
class MetaLearner:
    """How Θ learns from a half-step.

    Attributes:
        network: training-mode losses of x2.
        weigh: w(Θ), a function of Θ, losses and confidences.
        objective: the meta loss, from the losses and confidences of x2.
        optimizer: SGD of θ.
        meta_optimizer: Adam of Θ.
        batch_axis: device axis over which the batch is one batch; None: each device by itself.
        device_axis: device axis over which Θ must agree.
    """

    network: TrainingLosses
    weigh: Callable[[Params, jax.Array, jax.Array], jax.Array]
    objective: MetaObjective
    optimizer: optax.GradientTransformation
    meta_optimizer: optax.GradientTransformation
    batch_axis: str | None
    device_axis: str | None

    def meta_gradient(
        self,
        state: TrainState,
        forward: TrainingForward,
        meta_half: Batch,
        learning_rate: jax.Array,
    ) -> tuple[jax.Array, Params]:
        """Meta loss of x2 and its gradient on Θ, over the whole batch."""

        def weights_of(wpn_params):
            return self.weigh(wpn_params, forward.losses, forward.confidences)

        def pseudo_update(weights):
            gradient = mean_over(self.batch_axis, forward.weighted_gradient(weights))
            pseudo_params, _ = descend(
                self.optimizer, gradient, state.opt_state, state.params, learning_rate
            )
            return pseudo_params

        def meta_loss_of(pseudo_params):
            losses, (logits, _) = self.network(pseudo_params, state.batch_stats, meta_half)
            return self.objective(losses, confidences_of_logits(logits))

        loss, gradient = meta_gradient(state.wpn_params, weights_of, pseudo_update, meta_loss_of)
        return mean_over(self.device_axis, (loss, gradient))

    def update(
        self, state: TrainState, gradient: Params, meta_learning_rate: jax.Array
    ) -> TrainState:
        """e. Adam's step on Θ along a meta-gradient."""
        wpn_params, wpn_opt_state = descend(
            self.meta_optimizer,
            gradient,
            state.wpn_opt_state,
            state.wpn_params,
            meta_learning_rate,
        )
        return state.replace(wpn_params=wpn_params, wpn_opt_state=wpn_opt_state)


def create_meta_learner(
    config: ConfigDict, network: TrainingLosses, batch_axis: str | None, device_axis: str | None
) -> MetaLearner:
    """How Θ learns in a run.

    Args:
        config: the run's configuration.
        network: what its network is judged by.
        batch_axis, device_axis: `MetaLearner`.
    """
    model = network.model
    return MetaLearner(
        network=network,
        weigh=create_weighting(config.weighting, model, batch_axis),
        objective=meta_objective(config.weighting, model.num_exits, batch_axis),
        optimizer=sgd(config.optimizer.momentum, config.optimizer.weight_decay, model.frozen),
        meta_optimizer=adam(config.weighting.weight_decay),
        batch_axis=batch_axis,
        device_axis=device_axis,
    )


def every(
    interval: int,
    step: jax.Array,
    update: Callable[[TrainState], tuple[TrainState, jax.Array]],
    state: TrainState,
) -> tuple[TrainState, jax.Array]:
    """`update(state)` when `interval` divides `step`, else the state as it is and NaN."""
    if interval == 1:
        return update(state)
    loss = jax.eval_shape(lambda: update(state)[1])
    return jax.lax.cond(
        step % interval == 0, update, lambda state: (state, jnp.full_like(loss, jnp.nan)), state
    )
