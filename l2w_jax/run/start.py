"""The state that a run goes on from: its newest checkpoint, an earlier run's, or a new one."""

import time
from collections.abc import Set
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from l2w_jax.arrays import (
    PyTree,
    array_types,
    first_difference,
    named_arrays,
    tree_checksum,
)
from l2w_jax.config import stored
from l2w_jax.config.choices import EARLIER_RUNS
from l2w_jax.errors import UserError
from l2w_jax.models import create_network
from l2w_jax.run import checkpoints, processes
from l2w_jax.run.log import say
from l2w_jax.run.restore import restore_best
from l2w_jax.training import TrainState
from l2w_jax.training.state import untrained_state

# Where each host may have its own copy.
_PATHS = ("dataset.data_dir", *EARLIER_RUNS)

# A network's file system may keep for a minute that a file is not there.
_LOOKS_FOR_THE_FOLDER = 90
_SECONDS_BETWEEN_LOOKS = 1


def check_same_config_in_all_processes(config: ConfigDict) -> None:
    """Checks that all processes of a run were given the same configuration, but for paths.

    Raises:
        UserError: in every process, if one was given another, as from a clone that is older.
    """
    first, *others = map(stored.from_json, processes.of_all(stored.to_json(config)))
    for index, other in enumerate(others, 1):
        changes = [c for c in stored.changes(first, other) if c.field not in _PATHS]
        if changes:
            raise UserError(
                f"process {index} was given another config than process 0, and all must be given "
                "the same: " + ", ".join(map(str, changes))
            )


def check_seen_by_all_processes(workdir: Path) -> None:
    """Checks that all processes of a run see the folder whose config.json the first has written.

    Raises:
        UserError: in every process, if one does not, as where each host has a disk of its own.
    """
    for look in range(_LOOKS_FOR_THE_FOLDER):
        if look:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        seen = processes.of_all((workdir / "config.json").exists())
        if all(seen):
            return
    blind = ", ".join(str(index) for index, sees in enumerate(seen) if not sees)
    raise UserError(
        f"--workdir={workdir}: process {blind} does not see what process 0 has written there; it "
        "must be a folder that all hosts of the run share"
    )


def create_or_restore(config: ConfigDict, workdir: Path) -> TrainState:
    """The newest good checkpoint of a run folder, or the state before the first iteration.

    Prints where the network comes from if it has been trained before this run has begun.
    """
    created = untrained_state(config, jax.random.key(config.seed))
    restored = checkpoints.restore_newest(workdir, created)
    if restored is not None:
        # A run saves none before its first iteration: `interop.import_torch` does.
        if int(restored.step) == 0:
            say(f"starts from the network that was imported into {workdir}")
        return restored
    if config.init.checkpoint:
        created = _with_what_fits(config, created)
    if config.weighting.kind == "frozen":
        created = _with_trained_predictor(config, created)
    if config.imta.collaboration:
        created = _with_trained_backbone(config, created)
    return created


def check_alike_in_all_processes(state: TrainState) -> None:
    """Checks that all processes of a run, each of which makes its state for itself, begin alike.

    Raises:
        UserError: in every process, if one has another.
    """
    if jax.process_count() == 1:
        return
    checksums = processes.of_all(tree_checksum(state))
    if len(set(checksums)) > 1:
        odd = [i for i, checksum in enumerate(checksums) if checksum != checksums[0]]
        raise UserError(
            f"process {', '.join(map(str, odd))} would not begin with the network that process 0 "
            "begins with: the runs that config.init.checkpoint, config.weighting.checkpoint and "
            "config.imta.checkpoint name, and the versions of what is installed, must be alike for "
            "all processes"
        )


def _with_what_fits(config: ConfigDict, state: TrainState) -> TrainState:
    """The state with what fits, by name and shape, of the run that `config.init.checkpoint` names.

    Parameters, running statistics and the weight-prediction network are taken; the optimisers'
    moments and the step begin anew. Prints what is new here and what was left out there.

    Raises:
        UserError: that run has no good checkpoint, nothing of it fits, or not all of it fits though
            `config.init.strict` demands it.
    """
    trained = _earlier_run("init.checkpoint", config.init.checkpoint)
    there, here = (
        {**of_state.variables, "wpn_params": of_state.wpn_params} for of_state in (trained, state)
    )
    if _read_by_predictor(config.init.checkpoint) != config.weighting.input:
        # The shapes may be the same, but what it learned does not hold for other inputs.
        there["wpn_params"] = {}
    merged, differences = take_what_fits(there, here)
    place = f"config.init.checkpoint: {config.init.checkpoint}"
    if config.init.strict and differences:
        raise UserError(
            f"{place} is not allowed where config.init.strict is True: must fit exactly, but "
            + "; ".join(differences)
        )
    if merged is None:
        raise UserError(f"{place} is not allowed: none of its arrays fits this network")
    say(
        f"starts from {config.init.checkpoint}, step {int(trained.step)}: "
        + ("; ".join(differences) if differences else "all of it fits")
    )
    return state.replace(**merged)


def take_what_fits(there: PyTree, here: PyTree) -> tuple[PyTree | None, list[str]]:
    """A pytree like `here` that has the arrays of `there` wherever name and shape are the same.

    Returns:
        The pytree, or None where no array fits; and a text for each kind of difference, in which
        whole branches are named by the beginning that their arrays' names share.
    """
    found, wanted = named_arrays(there), named_arrays(here)
    fitting = {
        name for name in found.keys() & wanted.keys() if found[name].shape == wanted[name].shape
    }
    texts = []
    reshaped = sorted(found.keys() & wanted.keys() - fitting)
    if reshaped:
        shapes = (
            f"{name} {list(found[name].shape)} -> {list(wanted[name].shape)}" for name in reshaped
        )
        texts.append("new, since of another shape: " + ", ".join(shapes))
    for what, names, others in (
        ("new", wanted.keys() - found.keys(), found.keys() & wanted.keys()),
        ("left out", found.keys() - wanted.keys(), found.keys() & wanted.keys()),
    ):
        if names:
            texts.append(f"{what}: " + ", ".join(_branches(names, others)))
    if not fitting:
        return None, texts
    leaves = [
        found[name].astype(array.dtype) if name in fitting else array
        for name, array in wanted.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(here), leaves), texts


def _branches(names: Set[str], others: Set[str]) -> list[str]:
    """The shortest beginnings, ending at a slash, that cover `names` and none of `others`."""
    shortest = set()
    for name in names:
        parts = name.split("/")
        beginnings = ["/".join(parts[: i + 1]) for i in range(len(parts))]
        shortest.add(
            next(b for b in beginnings if not any(o == b or o.startswith(b + "/") for o in others))
        )
    return sorted(shortest)


def _read_by_predictor(workdir: str) -> str:
    """What the weight-prediction network of a run reads, `weighting.input`."""
    return stored.read_config(Path(workdir).expanduser()).weighting.input


def _with_trained_predictor(config: ConfigDict, state: TrainState) -> TrainState:
    """The state with Θ of the run that `config.weighting.checkpoint` names.

    Raises:
        UserError: that run has no good checkpoint, or its predictor has another shape or reads
            something else.
    """
    trained = _earlier_run("weighting.checkpoint", config.weighting.checkpoint)
    there = _read_by_predictor(config.weighting.checkpoint)
    if there != config.weighting.input:
        raise UserError(
            f"config.weighting.input: {config.weighting.input!r} is not allowed: must be "
            f"{there!r}, which the predictor of config.weighting.checkpoint learned to read"
        )
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
    folder = Path(workdir).expanduser()
    if not checkpoints.has_checkpoint(folder):
        raise UserError(
            f"config.{field}: {folder} is not allowed: must be the workdir of a run that has a "
            "checkpoint"
            + (
                "; python -m l2w_jax.interop.import_torch makes one of a file of the authors"
                if folder.is_file()
                else ""
            )
        )
    return restore_best(stored.read_config(folder), folder)


def _check_types(field: str, found: Any, wanted: Any) -> None:
    """Compares the arrays of the run that a field of the configuration names with this one's.

    Raises:
        UserError: an array is missing, extra, or of another type or shape.
    """
    there, here = array_types(found), array_types(wanted)
    if there != here:
        raise UserError(
            f"config.{field}: a run with another network: " + first_difference(there, here)
        )
