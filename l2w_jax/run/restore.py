"""What a run left, as what can be worked with again: its state, or its network with early exits."""

from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from l2w_jax.config import stored
from l2w_jax.early_exit import EarlyExitPredictor, rules
from l2w_jax.early_exit.calibration import calibrated
from l2w_jax.errors import UserError
from l2w_jax.evaluation.results import Evaluation
from l2w_jax.models import create_network
from l2w_jax.models.preprocessing import channel_statistics, normalize
from l2w_jax.run import checkpoints
from l2w_jax.training import TrainState, create_train_state


def restore_best(config: ConfigDict, workdir: Path) -> TrainState:
    """The state to evaluate: of the checkpoint with the best held-out top-1 at the last exit.

    Raises:
      UserError: there is no checkpoint, all are damaged, or they are of another network.
    """
    state = checkpoints.restore_best(workdir, _create(config))
    if state is None:
        raise UserError(f"{workdir}: no checkpoint to evaluate; train first")
    return state


def restore_evaluated(config: ConfigDict, workdir: Path, evaluation: Evaluation) -> TrainState:
    """The state that an evaluation is of, for what goes by its numbers.

    Raises:
      UserError: as by `restore_best`, or the best checkpoint is another one by now.
    """
    state = restore_best(config, workdir)
    evaluation.check_step(int(state.step), f"{workdir}: the best checkpoint")
    return state


def restore_predictor(
    config: ConfigDict, workdir: Path, evaluation: Evaluation, policy: rules.ExitPolicy
) -> EarlyExitPredictor:
    """The network that an evaluation is of, for stored images, which leave by this policy.

    Raises:
      UserError: as by `restore_evaluated`.
    """
    state = restore_evaluated(config, workdir, evaluation)
    mean, deviation = channel_statistics(config.dataset.name)
    return EarlyExitPredictor(
        calibrated(create_network(config), policy.temperatures),
        state.variables,
        policy.thresholds,
        preprocess=lambda images: normalize(images, mean, deviation),
        rule=rules.RULES[policy.rule],
    )


def _create(config: ConfigDict) -> TrainState:
    return create_train_state(config, jax.random.key(config.seed))


def create_or_restore(config: ConfigDict, workdir: Path) -> TrainState:
    """The newest good checkpoint of a run folder, or the state before the first iteration."""
    created = _create(config)
    restored = checkpoints.restore_newest(workdir, created)
    if restored is not None:
        return restored
    if config.weighting.kind == "frozen":
        created = _with_trained_predictor(config, created)
    if config.imta.collaboration:
        created = _with_trained_backbone(config, created)
    return created


def _with_trained_predictor(config: ConfigDict, state: TrainState) -> TrainState:
    """The state with Θ of the run that `config.weighting.checkpoint` names.

    Raises:
      UserError: that run has no good checkpoint, or its predictor has another shape.
    """
    trained = _earlier_run("weighting.checkpoint", config.weighting.checkpoint)
    _check_types("weighting.checkpoint", trained.wpn_params, state.wpn_params)
    return state.replace(wpn_params=trained.wpn_params)


def _with_trained_backbone(config: ConfigDict, state: TrainState) -> TrainState:
    """The state with the network of the run that `config.imta.checkpoint` names as backbone.

    Raises:
      UserError: that run has no good checkpoint, or its network has another shape.
    """
    trained = _earlier_run("imta.checkpoint", config.imta.checkpoint)
    (backbone,) = create_network(config).frozen
    params = {**state.params, backbone: trained.params}
    batch_stats = {**state.batch_stats, backbone: trained.batch_stats}
    _check_types("imta.checkpoint", params, state.params)
    return state.replace(params=params, batch_stats=batch_stats)


def _earlier_run(field: str, workdir: str) -> TrainState:
    """The best state of the run that a field of the configuration names.

    Raises:
      UserError: it has no good checkpoint.
    """
    folder = Path(workdir)
    if not checkpoints.has_checkpoint(folder):
        raise UserError(
            f"config.{field}: {folder} is not allowed: must be the workdir of a run that has a "
            "checkpoint"
        )
    return restore_best(stored.read_config(folder), folder)


def _check_types(field: str, found: Any, wanted: Any) -> None:
    """Compares the arrays of the run that a field of the configuration names with this one's.

    Raises:
      UserError: an array is missing, extra, or of another type or shape.
    """
    there, here = checkpoints.array_types(found), checkpoints.array_types(wanted)
    if there != here:
        raise UserError(
            f"config.{field}: a run with another network: "
            + checkpoints.first_difference(there, here)
        )
