"""The meta-update one half-step late, two forward passes cheaper: `weighting.schedule` "pipelined".

This project's variant of Han et al., ECCV 2022, section 3. In the symbols of `meta.py`, with t
counting half-steps: the paper makes θ̂ from θ_t only to see how it does on the other half, then
makes θ_{t+1}, which differs from θ̂ in that its weights come from the new Θ. Here θ_{t+1} itself,
made with w(Θ_t), takes the place of θ̂, and the half that it trains on next is the meta data:

1. Forward x_{t+1} at θ_{t+1}, once, for both of what follows.
2. Θ_{t+1} from Θ_t by Adam, along ∂L/∂Θ at Θ_t, L being the meta loss of x_{t+1} at
   θ_{t+1} = θ_t - lr_t·(μ·buf_t + ∇_θ Σ_k mean_i w(Θ_t)·l(x_t; θ_t) + wd·θ_t).
3. w(Θ_{t+1}) from the losses of x_{t+1}, and the SGD step to θ_{t+2}.

So the weights of x_{t+1} come from a Θ that learned from the step before; the paper's Θ learned
from a trial of this step. Meta data are the half that comes next: the second half of a batch for
its first, the first half of the next batch for its second. The first half-step of a run, with none
before it, leaves Θ as it is.

What it costs, in units of a forward pass: 1 (x_{t+1}) + 2 (gradient of L) + 3 (step 2's derivative
along that gradient, with the forward pass of x_t again) + 2 (real gradient) = 8, where the exact
half-step costs 10 and a plain step 3. It keeps one forward pass in memory, as a plain step does:
the forward-mode pass keeps nothing.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from l2w_jax.models.collectives import axis_size, mean_over, sum_over
from l2w_jax.models.platforms import made_after
from l2w_jax.training.forward import TrainingForward
from l2w_jax.training.losses import Batch, confidences_of_logits
from l2w_jax.training.meta import (
    MetaLearner,
    Params,
    every,
    gradient_along,
    predictor_step,
    step_along,
)
from l2w_jax.training.optimizers import LearningRates
from l2w_jax.training.state import TrainState

Tree = TypeVar("Tree")


def late_meta_update(
    learner: MetaLearner,
    state: TrainState,
    forward: TrainingForward,
    previous_half: Batch,
    previous_step: jax.Array,
    rates_at: Callable[[jax.Array], LearningRates],
) -> tuple[TrainState, jax.Array]:
    """As `meta_update`, but through the update of θ that the half-step before has made.

    Args:
        learner, state, forward, previous_half: `gradient_through_last_step`.
        previous_step: the iteration of the half-step before; -1 where there was none.
        rates_at: from an iteration to its learning rates.
    """
    rates, previous_rates = rates_at(state.step), rates_at(previous_step)

    def update(state: TrainState) -> tuple[TrainState, jax.Array]:
        loss, gradient = gradient_through_last_step(
            learner, state, forward, previous_half, previous_rates.network
        )
        updated = predictor_step(learner, state, gradient, rates.predictor)
        # The first half-step of a run has none before it to learn from.
        return select(previous_step >= 0, updated, state), loss

    return every(learner.interval, state.step, update, state)


def gradient_through_last_step(
    learner: MetaLearner,
    state: TrainState,
    forward: TrainingForward,
    previous_half: Batch,
    learning_rate: jax.Array,
) -> tuple[jax.Array, Params]:
    """The meta loss L of x_{t+1} and ∂L/∂Θ, over the whole batch.

    ∂L/∂w[i, k] = <∇l[i, k](x_t; θ_t), d> / N, where d = (∂θ_{t+1}/∂gradient)^T·∇L(θ_{t+1}): for
    SGD, -lr_t·∇L. One forward-mode pass along d gives it for all i and k.

    All devices made θ_{t+1} together, so even with `weighting.scope` "device" the gradient through
    it is that of all devices; allocation and centring are each device's own.

    Args:
        learner: its network must have the gradient that trained θ_t, so no gradient equilibrium.
        state: its `params` are θ_{t+1}, its `previous_params` θ_t.
        forward: of x_{t+1} at θ_{t+1}.
        previous_half: x_t.
        learning_rate: lr_t.
    """
    loss, of_losses = jax.value_and_grad(learner.objective)(forward.losses, forward.confidences)
    of_losses /= axis_size(learner.device_axis)
    (gradient,) = forward.pull_back((of_losses, jnp.zeros_like(forward.distilled)))
    gradient = sum_over(learner.device_axis, gradient)
    # A step of SGD is affine in the gradient, so it does not matter at which one it is linearised.
    _, through_step = step_along(learner, state, gradient, learning_rate)
    (direction,) = through_step(gradient)

    def losses_of(params):
        losses, (logits, _) = learner.network(params, state.batch_stats, previous_half)
        return losses, confidences_of_logits(logits)

    previous_params = made_after(gradient, state.previous_params)
    losses, slopes, confidences = jax.jvp(losses_of, (previous_params,), (direction,), has_aux=True)

    of_predictor = gradient_along(
        learner, state, losses, confidences, forward.label_shares * slopes
    )
    return mean_over(learner.device_axis, (loss, of_predictor))


def split_previous(batch: Batch) -> tuple[Batch, Batch]:
    """The batch of an iteration, and that of the iteration before, which it holds as "previous".

    Raises:
        ValueError: it holds none.
    """
    if "previous" not in batch:
        raise ValueError(
            "config.weighting.schedule 'pipelined' needs batch['previous'], the batch of the "
            "iteration before; of the first iteration any, itself for one"
        )
    own = {name: value for name, value in batch.items() if name != "previous"}
    return own, batch["previous"]


def select(condition: jax.Array, if_true: Tree, if_false: Tree) -> Tree:
    """One of two pytrees of the same structure."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), if_true, if_false)
