"""Checkpoints that are known to be what was saved.

Orbax writes them (asynchronously, each one complete or not there at all), but restores whatever
bytes it finds. So every checkpoint carries a record with a checksum of each array; a restore
verifies it and falls back to another checkpoint when a file was damaged. One that merely cannot be
read now, as for lack of permission, ends the run instead. In a run folder:

    checkpoints/STEP/state     the arrays of the training state
    checkpoints/STEP/record    their names, shapes, types and checksums, and the held-out score
    damaged_checkpoints/STEP   what a restore found damaged, put aside to make room for a new one
"""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint.checkpoint_managers import PreservationContext

from l2w_jax.arrays import PyTree, named_arrays
from l2w_jax.errors import RunFailed, RunInterrupted, UserError, first_line
from l2w_jax.run import processes
from l2w_jax.run.saved_state import (
    DamagedCheckpoint,
    UnreadableCheckpoint,
    make_record,
    read_record,
    read_state,
)
from l2w_jax.run.workdir import check_path, saved_steps


class _NewestAndBest:
    """An Orbax preservation policy: the newest few checkpoints and the best one stay.

    It takes the scores from the records: Orbax writes metrics to disk only for its own `best_fn`,
    so with its `BestN` policy a resumed run would not know which older checkpoint is the best. One
    with an unknown score stays too: it may be the best.
    """

    def __init__(self, keep: int, scores: dict[int, float | None]):
        self._keep = keep
        self.scores = scores

    def should_preserve(
        self, checkpoints: Sequence[Any], *, context: PreservationContext
    ) -> Sequence[bool]:
        """For each checkpoint (they come by rising step), whether it stays."""
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        best = _best_first({step: self.scores[step] for step in steps if step in self.scores})
        unknown = set(steps) - self.scores.keys()
        kept = {*steps[-self._keep :], *best[:1], *unknown}
        return [step in kept for step in steps]


class CheckpointWriter:
    """Saves training states into a run folder: the newest few and the best one are kept."""

    def __init__(self, workdir: Path, keep: int, trained_on: Mapping[str, Any] | None = None):
        """Opens the folder for saving; what a killed save left behind is removed.

        Args:
            workdir: the run folder.
            keep: how many of the newest checkpoints stay. The one with the best score stays too,
                and with a warning those whose score cannot be read.
            trained_on: which images the states are trained on (`images.identity`), for
                `trained_on`.
        """
        self._workdir = workdir
        self._trained_on = dict(trained_on or {})
        self._saving: int | None = None
        scores, unknown = _scores(workdir)
        for step, reason in unknown.items():
            logging.warning(
                "The checkpoint of step %d is kept, for it may be the best: %s.", step, reason
            )
        self._policy = _NewestAndBest(keep, scores)
        self._manager = ocp.CheckpointManager(
            _directory(workdir),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._policy,
                cleanup_tmp_directories=True,
                # The policy needs nothing of Orbax's own metadata, and a damaged one is no reason
                # to stop here.
                lightweight_initialize=True,
            ),
        )

    @property
    def last_saved_step(self) -> int | None:
        """The step of the newest complete checkpoint, None where there is none."""
        return max(saved_steps(self._workdir), default=None)

    def resume_advice(self) -> str:
        """A clause for the line that ends a failed run: where it can go on from."""
        # A checkpoint that is being saved will be good, or is the failure being reported.
        try:
            self._manager.wait_until_finished()
        except RunInterrupted:
            raise
        except Exception:
            pass
        try:
            last = self.last_saved_step
        except RunFailed as error:
            return str(error)
        if last is None:
            return "there is no good checkpoint yet"
        return f"the last good checkpoint is of step {last}: the same command goes on from there"

    def save(self, state: PyTree, score: float | None = None) -> None:
        """Starts to save a state under its own step; the state may be donated right after.

        Args:
            state: a pytree of arrays with an attribute `step`.
            score: held-out top-1 of the last exit; the highest one marks the best checkpoint. None
                leaves this checkpoint out of that choice.

        Raises:
            RunFailed: an array is not finite, or the save, or the one before, failed.
        """
        # A copy, because on CPU a view of an array keeps its memory from being donated.
        state = jax.tree.map(lambda array: np.array(jax.device_get(array)), state)
        step = int(state.step)
        for name, array in named_arrays(state).items():
            if not np.all(np.isfinite(array)):
                raise RunFailed(
                    f"step {step}: {name} is not finite, so this state is not saved; "
                    f"{self.resume_advice()}"
                )
        self.wait()
        self._saving = step
        self._policy.scores[step] = score
        with self._failing_clearly():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    record=ocp.args.JsonSave(make_record(state, score, self._trained_on)),
                ),
                force=True,
            )

    def check(self) -> None:
        """Checks, without waiting, how the last save has ended, if it has.

        Raises:
            RunFailed: it failed.
        """
        if not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Returns when everything is on disk.

        Raises:
            RunFailed: it could not be written.
        """
        with self._failing_clearly():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for a save under way and releases Orbax's threads."""
        self._manager.close()

    @contextlib.contextmanager
    def _failing_clearly(self) -> Iterator[None]:
        try:
            yield
        except RunInterrupted:
            raise
        except Exception as error:
            raise RunFailed(
                f"the checkpoint of step {self._saving} could not be saved "
                f"({type(error).__name__}: {first_line(error)}); {self.resume_advice()}"
            ) from error


def restore_newest(workdir: Path, template: PyTree) -> PyTree | None:
    """The state of the newest good checkpoint, to train on from it.

    Damaged newer ones are moved to `damaged_checkpoints/`, each with a warning that names the step
    and the array.

    Args:
        workdir: the run folder.
        template: a state of the wanted structure, shapes and types (arrays or ShapeDtypeStructs).

    Returns:
        The state as numpy arrays, to be placed on any number of devices, or None where no
        checkpoint was ever completed.

    Raises:
        UserError: no checkpoint is good, or the good one is of another network, or the folder's
            path is not UTF-8.
        RunFailed: a checkpoint cannot be read now, or not by all processes of this run.
    """
    steps = processes.of_all(saved_steps(workdir)[::-1])[0]
    if not steps:
        return None
    state, good_step = _restore_first_good(workdir, template, steps)
    if processes.is_first():
        _put_aside(workdir, [step for step in steps if step > good_step])
    processes.wait_for_all()
    return state


def restore_highest_scored(workdir: Path, template: PyTree) -> PyTree | None:
    """The state of the good checkpoint with the highest held-out score, to evaluate it.

    The newest of several equally good ones; where none has a score, the newest. Arguments, result
    and errors are those of `restore_newest`, but the folder stays as it is.
    """
    scores, unknown = _scores(workdir)
    # One without a readable record may have been the best, so it comes first; if it is damaged, it
    # is passed over with a warning. All take the first process's order: others may read other ones.
    steps = processes.of_all([*unknown, *_best_first(scores)])[0]
    if not steps:
        return None
    return _restore_first_good(workdir, template, steps)[0]


def trained_on(workdir: Path, step: int) -> dict[str, Any]:
    """Which images a checkpoint was trained on (`images.identity`), with None for what is unknown.

    Raises:
        RunFailed: its record cannot be read now.
    """
    directory = _directory(workdir) / str(step)
    record: dict[str, Any] = {}
    try:
        record = read_record(directory)
    except DamagedCheckpoint:
        pass
    except UnreadableCheckpoint as error:
        raise RunFailed(_not_read_now(directory, [str(error)])) from error
    return {name: record.get(name) for name in ("num_train", "train_digest", "class_names")}


def has_checkpoint(workdir: Path) -> bool:
    """Whether a run folder holds a checkpoint, good or damaged. Reads directory names only."""
    return bool(saved_steps(workdir))


def _directory(workdir: Path) -> Path:
    check_path(workdir)
    # Orbax notices a relative path only when a save in the background fails.
    return workdir.absolute() / "checkpoints"


def _scores(workdir: Path) -> tuple[dict[int, float | None], dict[int, str]]:
    """The score of each checkpoint whose record is good, and what is wrong with other records."""
    scores, unknown = {}, {}
    for step in saved_steps(workdir):
        try:
            scores[step] = read_record(_directory(workdir) / str(step))["score"]
        except (DamagedCheckpoint, UnreadableCheckpoint) as error:
            unknown[step] = str(error)
    return scores, unknown


def _best_first(scores: dict[int, float | None]) -> list[int]:
    """Steps by falling score, the newer first of equal ones, those without a score last."""

    def rank(step: int) -> tuple[bool, float, int]:
        score = scores[step]
        return (score is not None, score or 0.0, step)

    return sorted(scores, key=rank, reverse=True)


def _put_aside(workdir: Path, steps: list[int]) -> None:
    directory = workdir.absolute() / "damaged_checkpoints"
    for step in steps:
        directory.mkdir(exist_ok=True)
        shutil.rmtree(directory / str(step), ignore_errors=True)
        os.replace(_directory(workdir) / str(step), directory / str(step))


def _restore_first_good(workdir: Path, template: PyTree, steps: list[int]) -> tuple[PyTree, int]:
    """The state and the step of the first checkpoint, in the order of `steps`, that is good.

    All processes of a run, with the same steps, try one after the other together.

    Raises:
        UserError: none is good, or the good one is of another network.
        RunFailed: a process cannot read one now, or one is good in some processes only, so it is
            not damaged.
    """
    damage = []
    for step in steps:
        directory = _directory(workdir) / str(step)
        state, reason, readable = None, "", True
        try:
            state = read_state(directory, template)
        except DamagedCheckpoint as error:
            reason = str(error)
        except UnreadableCheckpoint as error:
            reason, readable = str(error), False
        reasons = processes.of_all(reason)
        if not any(reasons):
            return state, step
        if not all(reasons):
            raise RunFailed(_not_read_by_all(directory, reasons))
        if not all(processes.of_all(readable)):
            raise RunFailed(_not_read_now(directory, reasons))
        logging.warning("The checkpoint of step %d is not used: %s.", step, reason)
        damage.append(f"step {step}: {reason}")
    raise UserError(
        f"{_directory(workdir)}: every checkpoint is damaged ({'; '.join(damage)}); "
        "choose another --workdir to start from scratch"
    )


def _not_read_now(step_directory: Path, reasons: list[str]) -> str:
    """The message that ends a run if no process can read a checkpoint that may be good."""
    return (
        f"{step_directory}: {'; '.join(dict.fromkeys(reasons))}; nothing was moved: once it can be "
        "read, the same command goes on from there"
    )


def _not_read_by_all(step_directory: Path, reasons: list[str]) -> str:
    cannot = "; ".join(
        f"process {index} cannot use it: {reason}" for index, reason in enumerate(reasons) if reason
    )
    return (
        f"{step_directory}: {cannot}; it is intact, for other processes of this run read it well, "
        "and stays where it is: once all can, the same command goes on from there"
    )
