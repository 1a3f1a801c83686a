"""What one training iteration computes, as pure functions of pytrees."""

from l2w_jax.training.compiled import DEVICE_AXIS, jit_train_step, pmap_train_step
from l2w_jax.training.state import TrainState, create_train_state
from l2w_jax.training.step import make_train_step

__all__ = [
    "DEVICE_AXIS",
    "TrainState",
    "create_train_state",
    "jit_train_step",
    "make_train_step",
    "pmap_train_step",
]
