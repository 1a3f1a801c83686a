"""One training iteration (Han et al., ECCV 2022, section 3), as a pure function of one device."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from l2w_jax.models import create_network
from l2w_jax.training.collectives import gather_rows, mean_over
from l2w_jax.training.losses import Batch, correctness, create_losses
from l2w_jax.training.meta import (
    TrainingForward,
    create_meta_learner,
    every,
    training_forward,
)
from l2w_jax.training.optimizers import descend, learning_rate_factor
from l2w_jax.training.pipelined import pipelined_meta_gradient
from l2w_jax.training.state import TrainState
from l2w_jax.training.weighting import is_pipelined

Metrics = dict[str, jax.Array]
Tree = TypeVar("Tree")
Update = Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]

# Name of the device axis of `pmap_train_step`.
DEVICE_AXIS = "batch"


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """The function step(state, batch) -> (state, metrics) of one iteration.

    Attributes:
        update: (state, batch, i) -> (state, metrics), the i-th update of θ in the iteration.
        num_updates: 1, or 2 where each half of the batch makes one.
    """

    update: Update
    num_updates: int

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """One iteration, as one pure function."""
        state, metrics = jax.lax.scan(
            lambda state, i: self.update(state, batch, i),
            state,
            jnp.arange(self.num_updates, dtype=jnp.int32),
        )
        return state, _join_updates(metrics)


@dataclasses.dataclass(frozen=True)
class CompiledTrainStep:
    """A `TrainStep` on devices, one program for all updates, so that it compiles once.

    Attributes:
        update: the pmapped or jitted update.
        num_updates: of an iteration.
        compiler_options: what XLA was asked for, beside what the function says.
    """

    update: Update
    num_updates: int
    compiler_options: dict[str, str] | None = None

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """One iteration; the state is donated."""
        metrics = []
        for i in range(self.num_updates):
            state, of_update = self.update(state, batch, np.int32(i))
            metrics.append(of_update)
        return state, _stack_and_join(metrics)


def make_train_step(
    config: ConfigDict, total_steps: int, axis_name: str | None = None
) -> TrainStep:
    """The function step(state, batch) -> (state, metrics) of one iteration.

    With `weighting.kind` "none" an iteration is one SGD step on the batch. Otherwise the batch has
    two halves and the iteration two half-steps: each trains on one half, from the parameters that
    the other left, and the kind "meta" learns its weights from the other half: by
    `weighting.schedule` "exact" before the half-step, by "pipelined" in the one that follows.

    Args:
        config: a run's configuration; `config.model` may be a module.
        total_steps: T, iterations of the whole run, for the learning rates.
        axis_name: device axis that the step runs under; None on one device.

    Returns:
        A function of a `TrainState` and of {"image": [N, H, W, 3], "label": [N]}, this device's
        share of the batch; with the schedule "pipelined" it also holds "previous", the batch of the
        iteration before (in the first iteration any, itself for one).
        The metrics are the same on all devices: "loss" and "top1" (0 to 1) [K], "weighted_loss",
        "meta_loss" (NaN without a meta update), "learning_rate" and "meta_learning_rate"; "weights"
        and "losses" of all samples, [N, K].

    Raises:
        ValueError: a field of `config.weighting` is not known, or its schedule not possible.
    """
    batch_axis = axis_name if config.weighting.scope == "global" else None
    model = create_network(config).clone(axis_name=batch_axis)
    network, judging = create_losses(config, model)
    learner = create_meta_learner(config, judging, batch_axis, axis_name)
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

    def meta_update(state: TrainState, forward: TrainingForward, meta_half: Batch):
        rates = rates_at(state.step)

        def update(state: TrainState) -> tuple[TrainState, jax.Array]:
            loss, gradient = learner.meta_gradient(
                state, forward, meta_half, rates["learning_rate"]
            )
            return learner.update(state, gradient, rates["meta_learning_rate"]), loss

        return every(config.weighting.interval, state.step, update, state)

    def late_meta_update(
        state: TrainState, forward: TrainingForward, previous_half: Batch, previous_step: jax.Array
    ):
        rates, previous_rates = rates_at(state.step), rates_at(previous_step)

        def update(state: TrainState) -> tuple[TrainState, jax.Array]:
            loss, gradient = pipelined_meta_gradient(
                learner, state, forward, previous_half, previous_rates["learning_rate"]
            )
            updated = learner.update(state, gradient, rates["meta_learning_rate"])
            # The first half-step of a run has none before it to learn from.
            has_previous = previous_step >= 0
            return _select(has_previous, updated, state), loss

        return every(config.weighting.interval, state.step, update, state)

    def plain_step(state: TrainState, batch: Batch, i: jax.Array) -> tuple[TrainState, Metrics]:
        del i
        forward = training_forward(network, state, batch)
        state, metrics = sgd_step(state, forward, batch["label"], jnp.nan)
        return state.replace(step=state.step + 1), metrics

    def half_step(state: TrainState, batch: Batch, i: jax.Array) -> tuple[TrainState, Metrics]:
        training_half, meta_half = _half(batch, i), _half(batch, 1 - i)
        forward = training_forward(network, state, training_half)
        meta_loss = jnp.nan
        if config.weighting.kind == "meta":
            state, meta_loss = meta_update(state, forward, meta_half)
        state, metrics = sgd_step(state, forward, training_half["label"], meta_loss)
        return state.replace(step=state.step + i), metrics

    def pipelined_half_step(
        state: TrainState, batch: Batch, i: jax.Array
    ) -> tuple[TrainState, Metrics]:
        batch, previous = _split_previous(batch)
        previous_half = _select(i == 0, _half(previous, 1), _half(batch, 0))
        training_half = _half(batch, i)
        forward = training_forward(network, state, training_half)
        state, meta_loss = late_meta_update(state, forward, previous_half, state.step - (1 - i))
        state = state.replace(previous_params=state.params)
        state, metrics = sgd_step(state, forward, training_half["label"], meta_loss)
        return state.replace(step=state.step + i), metrics

    if config.weighting.kind == "none":
        return TrainStep(plain_step, num_updates=1)
    if is_pipelined(config.weighting):
        if model.gradient_equilibrium:
            raise ValueError(
                "config.weighting.schedule: 'pipelined' is not allowed with gradient equilibrium: "
                "training and meta loss have different gradients then, and cannot share a forward "
                "pass"
            )
        return TrainStep(pipelined_half_step, num_updates=2)
    return TrainStep(half_step, num_updates=2)


def pmap_train_step(
    step: TrainStep, devices: Sequence[jax.Device] | None = None
) -> CompiledTrainStep:
    """`step` over all devices of all processes, on batches [local devices, n, ...].

    The state has no device axis: it is the same on every device, and donated. `step` must have
    been made with `axis_name=DEVICE_AXIS`.

    Args:
        step: of one device.
        devices: others than those of this run, to compile for.
    """
    over_devices = jax.pmap(
        step.update,
        axis_name=DEVICE_AXIS,
        in_axes=(None, 0, None),
        out_axes=None,
        devices=devices,
        donate_argnums=0,
    )
    return CompiledTrainStep(over_devices, step.num_updates)


def jit_train_step(step: TrainStep) -> CompiledTrainStep:
    """`step` on the only device, on batches [1, n, ...]: as `pmap_train_step`, but traced faster.

    The state is donated. `step` must have been made with `axis_name=None`: hundreds of averages
    with nobody would have to be compiled.
    """

    def on_device(state: TrainState, batch: Batch, i: jax.Array) -> tuple[TrainState, Metrics]:
        return step.update(state, jax.tree.map(lambda x: jnp.squeeze(x, axis=0), batch), i)

    options = _compiler_options()
    compiled = jax.jit(on_device, donate_argnums=0, compiler_options=options)
    return CompiledTrainStep(compiled, step.num_updates, options)


def _compiler_options() -> dict[str, str] | None:
    """On a CPU, where its XLA has the choice: leaves convolutions and products to XLA itself.

    XLA:CPU hands these and sums to YNNPACK. Of these only sums get faster by it, much so, and each
    of a step's more than a thousand calls costs time when the program is loaded and first runs.
    """
    options = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
    if jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:
        return None
    return options


def _select(condition: jax.Array, if_true: Tree, if_false: Tree) -> Tree:
    """One of two pytrees of the same structure."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), if_true, if_false)


def _half(batch: Batch, i: jax.Array) -> Batch:
    """The first half of the samples (i = 0) or the others (i = 1): [N, ...] -> [N/2, ...].

    Raises:
        ValueError: N is odd.
    """

    def of_array(x: jax.Array) -> jax.Array:
        if len(x) % 2:
            raise ValueError(f"a batch of {len(x)} samples on a device has no two equal halves")
        return jnp.reshape(x, (2, len(x) // 2, *x.shape[1:]))[i]

    return jax.tree.map(of_array, batch)


def _split_previous(batch: Batch) -> tuple[Batch, Batch]:
    """The batch of an iteration, and the one of the iteration before that it holds.

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


def _join_updates(metrics: Metrics) -> Metrics:
    """Metrics of an iteration from those of its U updates, [U, ...]: means, and all samples."""
    per_sample = {name: metrics[name].reshape(-1, metrics[name].shape[-1]) for name in _PER_SAMPLE}
    return {name: value.mean(axis=0) for name, value in metrics.items()} | per_sample


@jax.jit
def _stack_and_join(metrics: list[Metrics]) -> Metrics:
    return _join_updates(jax.tree.map(lambda *values: jnp.stack(values), *metrics))


_PER_SAMPLE = ("weights", "losses")
