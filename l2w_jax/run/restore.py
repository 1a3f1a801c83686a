"""What a run left, ready to be used again: its state, or its network with early exits."""

from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from l2w_jax.arrays import tree_checksum
from l2w_jax.config.checks import float64_fault
from l2w_jax.early_exit import EarlyExitPredictor, rules
from l2w_jax.early_exit.calibration import calibrated
from l2w_jax.errors import UserError
from l2w_jax.evaluation.policy import ExitPolicy
from l2w_jax.evaluation.results import Evaluation
from l2w_jax.models import create_network
from l2w_jax.models.preprocessing import channel_statistics, normalize
from l2w_jax.run import checkpoints
from l2w_jax.training import TrainState
from l2w_jax.training.state import abstract_state


def restore_best(config: ConfigDict, workdir: Path) -> TrainState:
    """The state to evaluate: of the checkpoint with the best held-out top-1 at the last exit.

    Raises:
        UserError: there is no checkpoint, all are damaged, they are of another network, or of one
            in float64, which JAX has to be set up for.
        RunFailed: the best one, or one that may be the best, cannot be read now.
    """
    if fault := float64_fault(config.model.dtype):
        raise UserError(f"{workdir}: {fault}")
    state = checkpoints.restore_highest_scored(workdir, abstract_state(config))
    if state is None:
        raise UserError(f"{workdir}: no checkpoint; train first")
    return state


def restore_evaluated(config: ConfigDict, workdir: Path, evaluation: Evaluation) -> TrainState:
    """The state that an evaluation is of, for callers that rely on its numbers.

    Raises:
        UserError: as by `restore_best`, or another checkpoint is the best by now.
    """
    state = restore_best(config, workdir)
    evaluation.check_network(
        int(state.step), tree_checksum(state.variables), f"{workdir}: the best checkpoint"
    )
    return state


def restore_predictor(
    config: ConfigDict,
    workdir: Path,
    evaluation: Evaluation,
    policy: ExitPolicy,
    top_k: int | None = None,
) -> EarlyExitPredictor:
    """The network that an evaluation is of, for stored images, which leave by this policy.

    It takes uint8 [N, size, size, 3], size being `config.dataset.image_size`, and refuses others.
    With `top_k` it gives that many classes for each image.

    Raises:
        UserError: as by `restore_evaluated`.
    """
    state = restore_evaluated(config, workdir, evaluation)
    size = config.dataset.image_size
    mean, deviation = channel_statistics(config.dataset.name)
    return EarlyExitPredictor(
        calibrated(create_network(config), policy.temperatures),
        state.variables,
        policy.thresholds,
        preprocess=lambda images: normalize(images, mean, deviation),
        rule=rules.RULES[policy.rule],
        top_k=top_k,
        image=jax.ShapeDtypeStruct((size, size, 3), np.uint8),
    )
