"""How a step runs on devices: over all of them, or on the only one."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from l2w_jax.models.compiler_options import cpu_compiler_options
from l2w_jax.training.losses import Batch
from l2w_jax.training.state import TrainState
from l2w_jax.training.step import Metrics, TrainStep, Update, join_updates

# Name of the device axis of `pmap_train_step`.
DEVICE_AXIS = "batch"


@dataclasses.dataclass(frozen=True)
class CompiledTrainStep:
    """A `TrainStep` on devices, one program for all updates, so that it compiles once.

    Attributes:
        update: the pmapped or jitted update.
        num_updates: of an iteration.
    """

    update: Update
    num_updates: int

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """One iteration; the state is donated."""
        metrics = []
        for i in range(self.num_updates):
            state, of_update = self.update(state, batch, np.int32(i))
            metrics.append(of_update)
        return state, _stack_and_join(metrics)


def pmap_train_step(
    step: TrainStep, devices: Sequence[jax.Device] | None = None
) -> CompiledTrainStep:
    """`step` over all devices of all processes, on batches [local devices, n, ...].

    The state has no device axis: it is the same on every device, and donated. `step` must have
    been made with `axis_name=DEVICE_AXIS`, or None where there is one device only.

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

    compiled = jax.jit(on_device, donate_argnums=0, compiler_options=cpu_compiler_options())
    return CompiledTrainStep(compiled, step.num_updates)


@jax.jit
def _stack_and_join(metrics: list[Metrics]) -> Metrics:
    return join_updates(jax.tree.map(lambda *values: jnp.stack(values), *metrics))
