"""One training iteration (Han et al., ECCV 2022, section 3), as a pure function of one device.

A batch has two halves, and an iteration two half-steps: each trains on one half and learns how to
weigh it from the other (`half_step`). Plain training is one update on the whole batch.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from l2w_jax.config.checks import validate_training
from l2w_jax.config.choices import schedule_fault, updates_per_iteration
from l2w_jax.models import create_network
from l2w_jax.models.collectives import gather_rows, mean_over
from l2w_jax.training.forward import TrainingForward, training_forward
from l2w_jax.training.losses import Batch, TrainingLosses, correctness, create_losses
from l2w_jax.training.meta import MetaLearner, meta_objective, meta_update
from l2w_jax.training.optimizers import (
    LearningRates,
    adam,
    descend,
    learning_rates,
    network_optimizer,
)
from l2w_jax.training.pipelined import late_meta_update, select, split_previous
from l2w_jax.training.state import TrainState, check_filled, filled_fields
from l2w_jax.training.weighting import Weighting, create_weighting, is_pipelined

Metrics = dict[str, jax.Array]
Update = Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]

# Metrics that there are for each sample, [N, K], and not for the batch.
_PER_SAMPLE = ("weights", "losses")


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """The function step(state, batch) -> (state, metrics) of one iteration.

    Attributes:
        update: (state, batch, i) -> (state, metrics), the i-th update of θ in the iteration.
        num_updates: 1, or 2 where each half of the batch makes one.
        axis_name: device axis that the step runs under; None on one device.
    """

    update: Update
    num_updates: int
    axis_name: str | None = None

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """One iteration, as one pure function."""
        state, metrics = jax.lax.scan(
            lambda state, i: self.update(state, batch, i),
            state,
            jnp.arange(self.num_updates, dtype=jnp.int32),
        )
        return state, join_updates(metrics)


@dataclasses.dataclass(frozen=True)
class Training:
    """What an update of θ is made with.

    Attributes:
        network: the losses that θ learns from.
        weigh: w(Θ), a function of Θ, losses and confidences.
        optimizer: SGD of θ.
        rates_at: from an iteration to its learning rates.
        axis_name: device axis over which θ must agree; None on one device.
        learner: how Θ learns; None where it does not.
    """

    network: TrainingLosses
    weigh: Weighting
    optimizer: optax.GradientTransformation
    rates_at: Callable[[jax.Array], LearningRates]
    axis_name: str | None
    learner: MetaLearner | None


def make_train_step(
    config: ConfigDict,
    total_steps: int,
    axis_name: str | None = None,
    recompute: bool = False,
) -> TrainStep:
    """The function step(state, batch) -> (state, metrics) of one iteration.

    With `weighting.kind` "none" an iteration is one SGD step on the batch. Otherwise the batch has
    two halves and the iteration two half-steps: each trains on one half, from the parameters that
    the other left, and the kind "meta" learns its weights from the other half: with
    `weighting.schedule` "exact" before the half-step, with "pipelined" in the one that follows.

    Args:
        config: a run's configuration; `default_config(model=...)` makes one for a module, which
            cannot be put into `config.model` later.
        total_steps: T, iterations of the whole run, for the learning rates.
        axis_name: device axis that the step runs under; None on one device.
        recompute: whether an exact half-step makes one forward pass twice rather than keep what it
            leaves (`MetaLearner`). Only with a meta update in every iteration: else that is inside
            a condition, and the real update outside needs what the first pass leaves.

    Returns:
        A function of a `TrainState` and of {"image": [N, H, W, 3], "label": [N]}, this device's
        share of the batch; with the schedule "pipelined" it also holds "previous", the batch of the
        iteration before (in the first iteration any batch, such as this one).
        The metrics are the same on all devices: "loss" and "top1" (0 to 1) [K], "weighted_loss",
        "meta_loss", "learning_rate" and "meta_learning_rate"; "weights" and "losses" of all
        samples, [N, K]. "meta_loss" is NaN where no predictor learns and in iterations between
        those of `weighting.interval`; that of the first half-step of a "pipelined" run is a number
        too, though the predictor does not learn from it.

    Raises:
        ValueError: a field of the configuration is not possible (`validate_training`), or its
            schedule is not for this network; or `total_steps` is not a whole number, 1 or more. The
            function raises it where `apply_in_training` or `cross_entropy` does, and where the
            state was made for another weighting, the samples of a device have no two equal halves,
            a half cannot be divided into `optimizer.accumulation` parts, or a "pipelined" step's
            batch lacks "previous".
    """
    validate_training(config)
    if not float(total_steps).is_integer() or total_steps < 1:
        raise ValueError(f"total_steps: {total_steps} is not allowed: must be a whole number >= 1")
    training = create_training(config, total_steps, axis_name, recompute)
    if config.weighting.kind == "none":
        update = plain_step
    else:
        update = pipelined_half_step if is_pipelined(config.weighting) else half_step
    filled = filled_fields(config.weighting)

    def checked_update(state: TrainState, batch: Batch, i: jax.Array) -> tuple[TrainState, Metrics]:
        check_filled(state, filled)
        return update(training, state, batch, i)

    num_updates = updates_per_iteration(config.weighting.kind)
    return TrainStep(checked_update, num_updates, axis_name)


def create_training(
    config: ConfigDict, total_steps: int, axis_name: str | None = None, recompute: bool = False
) -> Training:
    """What the updates of a run are made with; arguments and errors as for `make_train_step`."""
    batch_axis = axis_name if config.weighting.scope == "global" else None
    model = create_network(config).clone(axis_name=batch_axis)
    if fault := schedule_fault(config.weighting.schedule, model.gradient_equilibrium):
        raise ValueError(fault)
    network, judging = create_losses(config, model)
    weigh = create_weighting(config.weighting, model, batch_axis)
    optimizer = network_optimizer(config.optimizer, model.frozen)
    learner = None
    if config.weighting.kind == "meta":
        learner = MetaLearner(
            network=judging,
            weigh=weigh,
            objective=meta_objective(config.weighting, model.num_exits, batch_axis),
            optimizer=optimizer,
            meta_optimizer=adam(config.weighting.weight_decay),
            interval=config.weighting.interval,
            recompute=recompute and config.weighting.interval == 1,
            batch_axis=batch_axis,
            device_axis=axis_name,
        )
    rates_at = learning_rates(config, total_steps)
    return Training(network, weigh, optimizer, rates_at, axis_name, learner)


def plain_step(
    training: Training, state: TrainState, batch: Batch, i: jax.Array
) -> tuple[TrainState, Metrics]:
    """An iteration of one update, on the whole batch."""
    del i
    forward = training_forward(training.network, state, batch)
    state, metrics = weighted_step(training, state, forward, batch["label"], jnp.nan)
    return state.replace(step=state.step + 1), metrics


def half_step(
    training: Training, state: TrainState, batch: Batch, i: jax.Array
) -> tuple[TrainState, Metrics]:
    """Trains on half i of the batch (x1), with the other half (x2) to learn its weights from."""
    training_half, meta_half = half_of(batch, i), half_of(batch, 1 - i)
    forward = training_forward(training.network, state, training_half)
    meta_loss = jnp.nan
    if training.learner:
        rates = training.rates_at(state.step)
        state, meta_loss, forward = meta_update(training.learner, state, forward, meta_half, rates)
    state, metrics = weighted_step(training, state, forward, training_half["label"], meta_loss)
    return state.replace(step=state.step + i), metrics


def pipelined_half_step(
    training: Training, state: TrainState, batch: Batch, i: jax.Array
) -> tuple[TrainState, Metrics]:
    """Trains on half i of the batch; first Θ learns from the half-step before (`pipelined`)."""
    batch, previous = split_previous(batch)
    previous_half = select(i == 0, half_of(previous, 1), half_of(batch, 0))
    training_half = half_of(batch, i)
    forward = training_forward(training.network, state, training_half)
    previous_step = state.step - (1 - i)
    state, meta_loss = late_meta_update(
        training.learner, state, forward, previous_half, previous_step, training.rates_at
    )
    state = state.replace(previous_params=state.params)
    state, metrics = weighted_step(training, state, forward, training_half["label"], meta_loss)
    return state.replace(step=state.step + i), metrics


def weighted_step(
    training: Training,
    state: TrainState,
    forward: TrainingForward,
    labels: jax.Array,
    meta_loss: jax.Array | float,
) -> tuple[TrainState, Metrics]:
    """w from the losses at θ, then θ's step, in which w is a constant.

    Args:
        training: what the update is made with.
        state: at θ and the new Θ.
        forward: of x1 at θ, whose running statistics the state takes over.
        labels: y1, [n] of this device.
        meta_loss: to be reported among the metrics.
    """
    axis_name, rates = training.axis_name, training.rates_at(state.step)
    weights = training.weigh(state.wpn_params, forward.losses, forward.confidences)
    gradient = forward.weighted_gradient(weights, axis_name)
    params, opt_state = descend(
        training.optimizer, gradient, state.opt_state, state.params, rates.network
    )
    batch_means = {
        "loss": forward.losses.mean(axis=0),
        "top1": correctness(forward.logits, labels).mean(axis=0),
        "weighted_loss": forward.weighted_loss(weights),
    }
    metrics = {
        **mean_over(axis_name, batch_means),
        "learning_rate": rates.network,
        "meta_learning_rate": rates.predictor,
        "meta_loss": meta_loss,
        "weights": gather_rows(axis_name, weights),
        "losses": gather_rows(axis_name, forward.losses),
    }
    state = state.replace(
        params=params,
        opt_state=opt_state,
        batch_stats=mean_over(axis_name, forward.batch_stats),
    )
    return state, metrics


def half_of(batch: Batch, i: jax.Array | int) -> Batch:
    """The first half of the samples (i = 0) or the others (i = 1): [N, ...] -> [N/2, ...].

    Raises:
        ValueError: N is odd.
    """

    def of_array(x: jax.Array) -> jax.Array:
        if len(x) % 2:
            raise ValueError(f"a batch of {len(x)} samples on a device has no two equal halves")
        # An array of NumPy's has no place that is known only when the step is compiled.
        return jnp.asarray(x).reshape(2, len(x) // 2, *x.shape[1:])[i]

    return jax.tree.map(of_array, batch)


def join_updates(metrics: Metrics) -> Metrics:
    """Metrics of an iteration from those of its U updates, [U, ...]: means, and all samples."""
    per_sample = {name: metrics[name].reshape(-1, metrics[name].shape[-1]) for name in _PER_SAMPLE}
    return {name: value.mean(axis=0) for name, value in metrics.items()} | per_sample
