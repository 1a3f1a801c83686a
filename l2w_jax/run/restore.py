"""What a run left, ready to be used again: its state, or its network with early exits."""

from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from l2w_jax.arrays import tree_checksum
from l2w_jax.config.checks import validate_trained
from l2w_jax.config.choices import is_network, not_allowed
from l2w_jax.early_exit import EarlyExitPredictor, rules
from l2w_jax.early_exit.calibration import calibrated
from l2w_jax.errors import UserError
from l2w_jax.evaluation.policy import ExitPolicy
from l2w_jax.evaluation.results import SUMMARY_FILE, Evaluation
from l2w_jax.models import create_network
from l2w_jax.models.preprocessing import channel_statistics, normalize
from l2w_jax.run import checkpoints
from l2w_jax.training import TrainState
from l2w_jax.training.state import abstract_state


def restore_best(config: ConfigDict, workdir: Path) -> TrainState:
    """The state to evaluate: of the checkpoint with the best held-out top-1 at the last exit.

    Where no checkpoint has been scored, it is the newest.

    Raises:
        UserError: the configuration is not possible; there is no checkpoint, all are damaged, or
            they are of another network.
        RunFailed: the best one, or one that may be the best, cannot be read now.
    """
    try:
        validate_trained(config)
    except UserError as error:
        faults = str(error).splitlines()
        raise UserError("\n".join(f"{workdir}: {fault}" for fault in faults)) from error
    state = checkpoints.restore_highest_scored(workdir, abstract_state(config))
    if state is None:
        raise UserError(f"{workdir}: no checkpoint; train first")
    return state


def restore_evaluated(config: ConfigDict, workdir: Path, evaluation: Evaluation) -> TrainState:
    """The state that an evaluation is of, for callers that rely on its numbers.

    Raises:
        UserError: as by `restore_best`, or another checkpoint is the best by now, or the
            configuration is not that of the evaluation.
    """
    _check_evaluated(config, workdir, evaluation)
    state = restore_best(config, workdir)
    evaluation.check_network(
        int(state.step), tree_checksum(state.variables), f"{workdir}: the best checkpoint"
    )
    return state


def _check_evaluated(config: ConfigDict, workdir: Path, evaluation: Evaluation) -> None:
    """Raises UserError where a configuration has other images or exits than an evaluation.

    A network of the same shapes would take images that are normalised for another one.
    """
    evaluated = {
        "dataset.name": (config.dataset.name, evaluation.dataset),
        "model.num_exits": (config.model.num_exits, len(evaluation.anytime)),
    }
    if not is_network(config.model):
        classes = config.dataset.num_classes, len(evaluation.class_names)
        evaluated["dataset.num_classes"] = classes
    for field, (value, of_evaluation) in evaluated.items():
        if value != of_evaluation:
            allowed = f"{of_evaluation!r}, that of {SUMMARY_FILE}"
            raise UserError(f"{workdir}: {not_allowed(field, value, allowed)}")


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
