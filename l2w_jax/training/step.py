"""One training iteration (Han et al., ECCV 2022, section 3), as a pure function of one device."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from l2w_jax.models import create_network
from l2w_jax.training.collectives import gather_rows, mean_over
from l2w_jax.training.losses import Batch, TrainingLosses, correctness, create_distillation
from l2w_jax.training.meta import (
    TrainingForward,
    create_meta_learner,
    every,
    training_forward,
)
from l2w_jax.training.optimizers import descend, learning_rate_factor
from l2w_jax.training.state import TrainState

Metrics = dict[str, jax.Array]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]

# Name of the device axis of `pmap_train_step`.
DEVICE_AXIS = "batch"


def make_train_step(config: ConfigDict, total_steps: int, axis_name: str | None = None) -> Step:
    """The function step(state, batch) -> (state, metrics) of one iteration.

    With `weighting.kind` "none" an iteration is one SGD step on the batch. Otherwise the batch has
    two halves and the iteration two half-steps: each trains on one half, from the parameters that
    the other left, and the kind "meta" learns its weights from the other half.

    Args:
        config: a run's configuration; `config.model` may be a module.
        total_steps: T, iterations of the whole run, for the learning rates.
        axis_name: device axis that the step runs under; None on one device.

    Returns:
        A function of a `TrainState` and of {"image": [N, H, W, 3], "label": [N]}, this device's
        share of the batch. Its metrics are the same on all devices: "loss" and "top1" (0 to 1)
        [K], "weighted_loss", "meta_loss" (NaN without a meta update), "learning_rate" and
        "meta_learning_rate"; "weights" and "losses" of all samples, [N, K].
    """
    batch_axis = axis_name if config.weighting.scope == "global" else None
    model = create_network(config).clone(axis_name=batch_axis)
    network = TrainingLosses(model, config.optimizer.label_smoothing, create_distillation(config))
    learner = create_meta_learner(config, model, batch_axis, axis_name)
    weigh, optimizer = learner.weigh, learner.optimizer
    rate_factor = learning_rate_factor(config.optimizer, total_steps)

    def rates_at(step: jax.Array) -> Metrics:
        factor = rate_factor(step)
        return {
            "learning_rate": config.optimizer.learning_rate * factor,
            "meta_learning_rate": config.weighting.learning_rate * factor,
        }

    def sgd_step(
        state: TrainState, forward: TrainingForward, labels: jax.Array, meta_loss: jax.Array
    ) -> tuple[TrainState, Metrics]:
        """w from the losses at θ, then θ's step, in which w is a constant."""
        rates = rates_at(state.step)
        weights = weigh(state.wpn_params, forward.losses, forward.confidences)
        gradient = mean_over(axis_name, forward.weighted_gradient(weights))
        params, opt_state = descend(
            optimizer, gradient, state.opt_state, state.params, rates["learning_rate"]
        )
        batch_means = {
            "loss": forward.losses.mean(axis=0),
            "top1": correctness(forward.logits, labels).mean(axis=0),
            "weighted_loss": forward.weighted_loss(weights),
        }
        metrics = {
            **mean_over(axis_name, batch_means),
            **rates,
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

    def plain_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        forward = training_forward(network, state, batch)
        state, metrics = sgd_step(state, forward, batch["label"], jnp.nan)
        return state.replace(step=state.step + 1), metrics

    def half_step(state: TrainState, halves: tuple[Batch, Batch]) -> tuple[TrainState, Metrics]:
        training_half, meta_half = halves
        forward = training_forward(network, state, training_half)
        meta_loss = jnp.nan
        if config.weighting.kind == "meta":
            rates = rates_at(state.step)

            def update(state: TrainState) -> tuple[TrainState, jax.Array]:
                return learner.update(
                    state,
                    forward,
                    meta_half,
                    rates["learning_rate"],
                    rates["meta_learning_rate"],
                )

            state, meta_loss = every(config.weighting.interval, state.step, update, state)
        return sgd_step(state, forward, training_half["label"], meta_loss)

    def two_half_steps(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        halves = jax.tree.map(_split_in_halves, batch)
        swapped = jax.tree.map(lambda x: x[::-1], halves)
        state, metrics = jax.lax.scan(
            half_step, state, (halves, swapped), unroll=half_steps_compiled()
        )
        return state.replace(step=state.step + 1), _join_halves(metrics)

    return plain_step if config.weighting.kind == "none" else two_half_steps


def half_steps_compiled() -> int:
    """How many copies of the half-step the compiled iteration holds: 1, a loop, or 2.

    A loop compiles faster, but inside one XLA's CPU compiler takes slow convolutions, which makes
    the whole step 2.8 times slower.
    """
    return 2 if jax.default_backend() == "cpu" else 1


def pmap_train_step(step: Step) -> Step:
    """`step` over all devices of all processes, on batches [local devices, n, ...].

    The state has no device axis: it is the same on every device, and donated. `step` must have
    been made with `axis_name=DEVICE_AXIS`.
    """
    return jax.pmap(step, axis_name=DEVICE_AXIS, in_axes=(None, 0), out_axes=None, donate_argnums=0)


def _split_in_halves(x: jax.Array) -> jax.Array:
    """[N, ...] -> [2, N/2, ...]: the first N/2 samples, then the rest.

    Raises:
        ValueError: N is odd.
    """
    if len(x) % 2:
        raise ValueError(f"a batch of {len(x)} samples on a device has no two equal halves")
    return x.reshape(2, len(x) // 2, *x.shape[1:])


def _join_halves(metrics: Metrics) -> Metrics:
    """Metrics of an iteration from those of its half-steps: means, and the samples of both."""
    per_sample = {name: metrics[name].reshape(-1, metrics[name].shape[-1]) for name in _PER_SAMPLE}
    return {name: value.mean(axis=0) for name, value in metrics.items()} | per_sample


_PER_SAMPLE = ("weights", "losses")
