"""Iterations for tests, compiled as a run compiles them: one update, however many one has."""

import jax

from l2w_jax.training import make_train_step
from l2w_jax.training.compiled import CompiledTrainStep


def compiled_step(config, total_steps):
    """A `CompiledTrainStep` on batches without a device axis, which leaves its states alone."""
    step = make_train_step(config, total_steps)
    return CompiledTrainStep(jax.jit(step.update), step.num_updates)
