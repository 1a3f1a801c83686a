"""A run folder belongs to one configuration for good, and to one process at a time."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from ml_collections import ConfigDict

from l2w_jax import config as run_config
from l2w_jax.config.choices import EARLIER_RUNS
from l2w_jax.config.paths import may_be_one_folder
from l2w_jax.errors import RunFailed, UserError
from l2w_jax.files import lock, told_if_unwritable, write_atomically


def check(config: ConfigDict, workdir: Path) -> None:
    """Checks, without writing, that a run of this configuration can use a folder.

    Raises:
        UserError: it is a file, or belongs to a run with another configuration, or no checkpoint
            can be in it.
    """
    check_path(workdir, "--workdir=")
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir={workdir}: is a file; give a folder, which need not exist")
    if not _has_results(workdir):
        return
    if not (workdir / "config.json").exists():
        raise UserError(
            f"--workdir={workdir}: holds what a run left, but not its config.json; "
            "choose another --workdir"
        )
    before = run_config.read_config(workdir)
    free = (*run_config.stored.FREE_FIELDS, *_earlier_runs_kept(before, config, workdir))
    changes = [
        change
        for change in run_config.changes(before, config)
        if not change.field.startswith(free)
        # In a folder in which no step has run yet, such as that of an imported network.
        and (change.field, change.old) != ("optimizer.accumulation", "0")
    ]
    if changes:
        longer = any(change.field == "optimizer.epochs" for change in changes)
        advice = (
            "; to train longer, start a new run from it with "
            f"--config.init.checkpoint={workdir} and another --workdir"
            if longer
            else ""
        )
        raise UserError(
            f"--workdir={workdir}: belongs to a run with another config; "
            "choose another --workdir, or undo: " + ", ".join(map(str, changes)) + advice
        )


def check_path(workdir: Path, argument: str = "") -> None:
    """Checks by its path alone that checkpoints can be in a folder: TensorStore takes UTF-8.

    Args:
        workdir: the run folder.
        argument: what the user gave it with, such as "--workdir=".

    Raises:
        UserError: the path, from the root on, is not UTF-8.
    """
    try:
        str(workdir.absolute()).encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{argument}{workdir}: is not allowed for a run with checkpoints: the path "
            f"{str(workdir.absolute())!r} must be UTF-8; rename the folder"
        ) from error


def _earlier_runs_kept(before: ConfigDict, now: ConfigDict, workdir: Path) -> list[str]:
    """The fields that may name the same earlier run as before; with a checkpoint none is read."""
    if not saved_steps(workdir):
        return []
    old, new = (dict(run_config.stored.fields(config)) for config in (before, now))
    return [
        field
        for field in EARLIER_RUNS
        if old[field] and new[field] and may_be_one_folder(old[field], new[field])
    ]


def with_parts_found(config: ConfigDict, workdir: Path) -> ConfigDict:
    """The configuration with the `optimizer.accumulation` that the run found, if it asks for that.

    Raises:
        UserError: the folder's config.json cannot be read.
    """
    if config.optimizer.accumulation or not _has_results(workdir):
        return config
    if not (workdir / "config.json").exists():
        # `check` refuses it.
        return config
    config = config.copy_and_resolve_references()
    config.optimizer.accumulation = run_config.read_config(workdir).optimizer.accumulation
    return config


def _has_results(workdir: Path) -> bool:
    """Whether a folder belongs to a run; one stopped before its first checkpoint leaves it free."""
    return bool(saved_steps(workdir)) or (workdir / "evaluation.json").exists()


def saved_steps(workdir: Path) -> list[int]:
    """The steps of all checkpoints of a run folder, good or damaged, rising.

    Raises:
        RunFailed: the folder cannot be listed now.
    """
    checkpoints = workdir / "checkpoints"
    try:
        with os.scandir(checkpoints) as found:
            return sorted(
                int(entry.name) for entry in found if entry.name.isdecimal() and entry.is_dir()
            )
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise RunFailed(
            f"{checkpoints}: cannot be listed now ({error.strerror}); nothing was moved: once it "
            "can be, the same command goes on from the checkpoints there"
        ) from error


@contextlib.contextmanager
def exclusive_use(config: ConfigDict, workdir: Path) -> Iterator[None]:
    """Holds a run folder as `locked` does; writes its config.json where needed.

    A folder whose run ended in any way before its first checkpoint belongs to no configuration yet:
    the corrected command can use it.

    Raises:
        UserError: another process holds the folder, `check` fails, or it cannot be written to.
    """
    with locked(workdir):
        check(config, workdir)
        if not _has_results(workdir):
            with told_if_unwritable(workdir, "--workdir="):
                write_atomically(workdir / "config.json", run_config.to_json(config))
        yield


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds a run folder for this process alone; makes it where needed.

    The lock ends with the process, however that ends, so a killed run leaves nothing to clean up.
    Where the file system has no locks, a warning says so and nothing keeps a second run out.

    Raises:
        UserError: another process holds the folder, or it cannot be written to.
    """
    with _open_lock(workdir) as holder:
        try:
            lock(holder, wait=False, danger="take care that no second run uses this folder")
        except BlockingIOError:
            holder.seek(0)
            raise UserError(
                f"--workdir={workdir}: in use by another run ({holder.read().strip()}); "
                "wait for it to end or choose another --workdir"
            ) from None
        with told_if_unwritable(workdir, "--workdir="):
            holder.truncate(0)
            holder.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            holder.flush()
        yield


def _open_lock(workdir: Path) -> TextIO:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        return open(workdir / ".lock", "a+", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--workdir={workdir}: cannot be written to: {error.strerror}") from error
