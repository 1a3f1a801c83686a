"""The meta-update of the weight-prediction network (Han et al., ECCV 2022, section 3).

Symbols: θ, the network's parameters (`params`); Θ, those of the weight-prediction network
(`wpn_params`); x1, the half of the batch that trains; x2, the half that stands in for run time;
l, losses [N, K]; w, weights [N, K]; θ̂, `pseudo_params`.

What it costs. w enters the pseudo-gradient J^T w linearly, J being the Jacobian of the losses of
x1, and Θ alone is differentiated. So its derivative only transposes that linear map, at the price
of a forward-mode pass over x1, and no backward pass is differentiated. The forward pass of x1 is
shared with the real update. In units of a forward pass, a half-step costs 1 (x1) + 2
(pseudo-gradient) + 3 (x2 and its gradient) + 2 (the transposed map) + 2 (real gradient) = 10, a
plain step 3. Where memory is slow compared with arithmetic (`MetaLearner.recompute`), what the
forward pass of x1 leaves is not kept during that of x2, but computed anew for the last two: 11.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from l2w_jax.models.collectives import axis_size, mean_over, sum_over
from l2w_jax.models.exit_shares import exit_shares
from l2w_jax.models.platforms import apart_on_tpus
from l2w_jax.training.ablations import vanilla_objective
from l2w_jax.training.allocation import allocate_globally, allocated_mean
from l2w_jax.training.forward import TrainingForward
from l2w_jax.training.losses import (
    Batch,
    TrainingLosses,
    confidences_of_logits,
    weighted_loss,
)
from l2w_jax.training.optimizers import LearningRates, descend
from l2w_jax.training.state import TrainState
from l2w_jax.training.weighting import Weighting

Params = Any
MetaObjective = Callable[[jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class MetaLearner:
    """How Θ learns from a half-step.

    Attributes:
        network: training-mode losses of x2.
        weigh: w(Θ), a function of Θ, losses and confidences.
        objective: the meta loss, from the losses and confidences of x2.
        optimizer: SGD of θ.
        meta_optimizer: Adam of Θ.
        interval: iterations from one meta-update to the next.
        recompute: whether the forward pass of x1 is made again, after that of x2.
        batch_axis: device axis over which the batch is one; None: each device has its own.
        device_axis: device axis over which Θ must agree.
    """

    network: TrainingLosses
    weigh: Weighting
    objective: MetaObjective
    optimizer: optax.GradientTransformation
    meta_optimizer: optax.GradientTransformation
    interval: int
    recompute: bool
    batch_axis: str | None
    device_axis: str | None


def meta_update(
    learner: MetaLearner,
    state: TrainState,
    forward: TrainingForward,
    meta_half: Batch,
    rates: LearningRates,
) -> tuple[TrainState, jax.Array, TrainingForward]:
    """Θ after the meta-update, and the meta loss: NaN in iterations without a meta-update.

    Args:
        learner: how Θ learns.
        state: at θ and Θ.
        forward: of x1 at θ.
        meta_half: x2.
        rates: of the iteration.

    Returns:
        Also `forward`, as the real update should use it.
    """

    def update(state: TrainState) -> tuple[TrainState, jax.Array, TrainingForward]:
        loss, gradient, again = meta_gradient(learner, state, forward, meta_half, rates.network)
        return predictor_step(learner, state, gradient, rates.predictor), loss, again

    if learner.interval == 1:
        return update(state)
    # What is computed inside a condition cannot be used outside it.
    return *every(learner.interval, state.step, lambda state: update(state)[:2], state), forward


def meta_gradient(
    learner: MetaLearner,
    state: TrainState,
    forward: TrainingForward,
    meta_half: Batch,
    learning_rate: jax.Array,
) -> tuple[jax.Array, Params, TrainingForward]:
    """The meta loss L of x2 at θ̂(Θ) and ∂L/∂Θ, through the pseudo-update, over the whole batch.

    a. w = w(Θ), [N, K], of x1 by its losses and confidences at θ.
    b. θ̂ = θ - lr·(μ·buf + ∇_θ Σ_k mean_i w·l + wd·θ).
    c. Losses and confidences of x2 at θ̂, [N, K].
    d. L, from these: by default Σ_k mean of l over the samples allocated to exit k.

    The derivative goes back through d, c and b to the pseudo-gradient. Along the direction that it
    has there, one forward-mode pass over x1 gives ∂L/∂w; with w's own derivative that gives ∂L/∂Θ
    (`gradient_along`).

    Returns:
        Also `forward`, computed anew where the learner recomputes.
    """

    def meta_loss(pseudo_params: Params) -> jax.Array:
        losses, (logits, _) = learner.network(pseudo_params, state.batch_stats, meta_half)
        return learner.objective(losses, confidences_of_logits(logits))

    weights = learner.weigh(state.wpn_params, forward.losses, forward.confidences)
    gradient = forward.weighted_gradient(weights, learner.batch_axis)
    pseudo_params, through_step = step_along(learner, state, gradient, learning_rate)
    # Else computing θ̂ would be part of the kernels of x2's pass, which then differ from x1's.
    loss, through_losses = jax.vjp(meta_loss, apart_on_tpus(pseudo_params))
    (of_params,) = through_losses(jnp.ones_like(loss) / axis_size(learner.batch_axis))
    of_params = sum_over(learner.batch_axis, of_params)
    (direction,) = through_step(of_params)
    if learner.recompute:
        forward = forward.recomputed_after(of_params)
    of_predictor = gradient_along(
        learner, state, forward.losses, forward.confidences, forward.slopes_along(direction)
    )
    return *mean_over(learner.device_axis, (loss, of_predictor)), forward


def step_along(
    learner: MetaLearner, state: TrainState, gradient: Params, learning_rate: jax.Array
) -> tuple[Params, Callable[[Params], tuple[Params]]]:
    """θ' = θ - lr·(μ·buf + gradient + wd·θ), and the map from ∂L/∂θ' to ∂L/∂(gradient).

    For SGD the map is a multiplication by -lr, whatever the gradient. Another optimizer's step
    needs a finite derivative also where a gradient is 0: Adam's has one with `eps_root` > 0.
    """

    def step(gradient: Params) -> Params:
        params, opt_state = state.params, state.opt_state
        return descend(learner.optimizer, gradient, opt_state, params, learning_rate)[0]

    return jax.vjp(step, gradient)


def gradient_along(
    learner: MetaLearner,
    state: TrainState,
    losses: jax.Array,
    confidences: jax.Array,
    slopes: jax.Array,
) -> Params:
    """∂L/∂Θ = Σ_ik ∂w[i, k]/∂Θ · <∇_θ l[i, k], d> / N, of this device's samples.

    d is ∂L/∂(gradient), through the step made with the gradient: for SGD, -lr·∇L.

    Args:
        learner: how Θ learns.
        state: at Θ.
        losses, confidences: of x1, [N, K].
        slopes: s_k·<∇_θ l[i, k], d>, [N, K], s being `TrainingForward.label_shares`.
    """

    def change_of_loss(wpn_params: Params) -> jax.Array:
        return weighted_loss(learner.weigh(wpn_params, losses, confidences), slopes)

    return jax.grad(change_of_loss)(state.wpn_params)


def predictor_step(
    learner: MetaLearner, state: TrainState, gradient: Params, learning_rate: jax.Array
) -> TrainState:
    """e. Adam's step on Θ along a meta-gradient."""
    wpn_params, wpn_opt_state = descend(
        learner.meta_optimizer, gradient, state.wpn_opt_state, state.wpn_params, learning_rate
    )
    return state.replace(wpn_params=wpn_params, wpn_opt_state=wpn_opt_state)


def meta_objective(weighting: ConfigDict, num_exits: int, axis_name: str | None) -> MetaObjective:
    """The objective that `config.weighting` names."""
    allocated = allocated_objective(exit_shares(weighting.q, num_exits), axis_name)
    return {"allocated": allocated, "vanilla": vanilla_objective}[weighting.objective]


def allocated_objective(shares: np.ndarray, axis_name: str | None) -> MetaObjective:
    """Σ_k mean of l over the samples that would leave at exit k at run time.

    Args:
        shares: p, float32 [K], the share of the samples meant for each exit.
        axis_name: device axis over which samples are allocated and counted.

    Returns:
        A function of losses [N, K] and confidences [N, K]; no gradient flows into the latter.
    """

    def objective(losses: jax.Array, confidences: jax.Array) -> jax.Array:
        allocation = allocate_globally(jax.lax.stop_gradient(confidences), shares, axis_name)
        return allocated_mean(losses, allocation, axis_name)

    return objective


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
