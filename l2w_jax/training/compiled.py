"""How a step runs on devices: over all of them, or on the only one."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from l2w_jax.arrays import array_type, named_arrays
from l2w_jax.models.compiler_options import cpu_compiler_options
from l2w_jax.training.losses import Batch
from l2w_jax.training.state import TrainState
from l2w_jax.training.step import Metrics, TrainStep, Update, join_updates

# Name of the device axis of `pmap_train_step`.
DEVICE_AXIS = "batch"


@dataclasses.dataclass(frozen=True)
class CompiledTrainStep:
    """A `TrainStep` on devices, with one program for all its updates, so that it compiles once.

    Attributes:
        update: the pmapped or jitted update.
        num_updates: of an iteration.
        device_counts: lengths that a batch's axis of devices may have; empty where it has no such
            axis.
    """

    update: Update
    num_updates: int
    device_counts: tuple[int, ...] = ()

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """One iteration; the state is donated.

        Raises:
            ValueError: an array of the batch lacks the axis of devices.
        """
        if self.device_counts:
            _check_device_axis(batch, self.device_counts)
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
        step: the step of one device.
        devices: devices to compile for, if not those of this run.

    Raises:
        ValueError: the step was made with another `axis_name`. Without one each device would train
            by itself, and only the first one's state would be returned.
    """
    count = jax.device_count() if devices is None else len(devices)
    if step.axis_name != DEVICE_AXIS and (step.axis_name is not None or count > 1):
        raise ValueError(
            f"axis_name: {step.axis_name!r} is not allowed for a step over {count} "
            f"device{'s' * (count > 1)}: must be DEVICE_AXIS, {DEVICE_AXIS!r}, where "
            "make_train_step makes it"
        )
    over_devices = jax.pmap(
        step.update,
        axis_name=DEVICE_AXIS,
        in_axes=(None, 0, None),
        out_axes=None,
        devices=devices,
        donate_argnums=0,
    )
    # A batch of this process, or one that lies on the devices of all processes.
    counts = (jax.local_device_count(), count)
    return CompiledTrainStep(over_devices, step.num_updates, counts)


def jit_train_step(step: TrainStep) -> CompiledTrainStep:
    """`step` on the only device, on batches [1, n, ...]: as `pmap_train_step`, but traced faster.

    The state is donated. `step` must have been made with `axis_name=None`: else hundreds of
    averages over a single device would have to be compiled.

    Raises:
        ValueError: the step was made with an `axis_name`.
    """
    if step.axis_name is not None:
        raise ValueError(
            f"axis_name: {step.axis_name!r} is not allowed for a step on one device by itself: "
            "must be None where make_train_step makes it"
        )

    def on_device(state: TrainState, batch: Batch, i: jax.Array) -> tuple[TrainState, Metrics]:
        return step.update(state, jax.tree.map(lambda x: jnp.squeeze(x, axis=0), batch), i)

    compiled = jax.jit(on_device, donate_argnums=0, compiler_options=cpu_compiler_options())
    return CompiledTrainStep(compiled, step.num_updates, (1,))


def _check_device_axis(batch: Batch, device_counts: Sequence[int]) -> None:
    """Raises ValueError where an array of the batch is not [devices, n, ...]."""
    for name, array in named_arrays(batch).items():
        if array.ndim < 2 or array.shape[0] not in device_counts:
            raise ValueError(
                f"{name} of a batch is {array_type(array)}: must be [{device_counts[0]}, n, ...], "
                "the leading axis being that of the devices"
            )


@jax.jit
def _stack_and_join(metrics: list[Metrics]) -> Metrics:
    return join_updates(jax.tree.map(lambda *values: jnp.stack(values), *metrics))
