"""One checkpoint: a state, and the record by which it is verified."""

import asyncio
import contextlib
import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from l2w_jax.arrays import (
    PyTree,
    array_checksum,
    array_type,
    array_types,
    first_difference,
    named_arrays,
)
from l2w_jax.errors import UserError, first_line

# System errors for files that are missing, are folders, or should be folders.
_NUMBERS_OF_DAMAGE = (errno.ENOENT, errno.EISDIR, errno.ENOTDIR)

_BYTES_AT_ONCE = 2**20


class DamagedCheckpoint(Exception):
    """A checkpoint that cannot be read back as it was saved; the message says what is wrong."""


class UnreadableCheckpoint(Exception):
    """A checkpoint that may be good, but that the system does not allow to be read now.

    The user may lack the permission, the disk or the network may fail, or memory or open files may
    have run out. The message names the file and the reason.
    """


def make_record(
    state: PyTree, score: float | None, trained_on: Mapping[str, Any]
) -> dict[str, Any]:
    """A record by which a state is verified when it is read back, with its score, by which the best
    is chosen, and which images it was trained on (`images.identity`).
    """
    record = {
        "score": score,
        **trained_on,
        "arrays": {
            name: {"type": array_type(array), "sha256": array_checksum(array)}
            for name, array in named_arrays(state).items()
        },
    }
    return record | {"sha256": _json_checksum(record)}


def read_state(step_directory: Path, template: PyTree) -> PyTree:
    """The verified state of one checkpoint.

    Raises:
        DamagedCheckpoint: its arrays or its record are not what was saved.
        UnreadableCheckpoint: the system does not allow it to be read now.
        UserError: it is intact, but holds other arrays than the template.
    """
    recorded = read_record(step_directory)["arrays"]
    wanted = array_types(template)
    found = {name: entry["type"] for name, entry in recorded.items()}
    if found != wanted:
        raise UserError(
            f"{step_directory}: saved by another config or other code: "
            + first_difference(found, wanted)
        )
    host_template = jax.tree.map(lambda array: np.empty(array.shape, array.dtype), template)
    with (
        _reading(step_directory, "state"),
        ocp.Checkpointer(
            ocp.PyTreeCheckpointHandler(
                multiprocessing_options=_this_process_alone(),
                type_handler_registry=ocp.type_handlers.create_type_handler_registry(
                    (np.ndarray, _ReadToTheEnd()),
                    (jax.Array, ocp.type_handlers.ArrayHandler()),  # else Orbax warns
                ),
            ),
            multiprocessing_options=_this_process_alone(),
        ) as checkpointer,
    ):
        restore_args = ocp.checkpoint_utils.construct_restore_args(host_template)
        state = checkpointer.restore(
            step_directory / "state",
            args=ocp.args.PyTreeRestore(host_template, restore_args=restore_args),
        )
    for name, array in named_arrays(state).items():
        if array_checksum(array) != recorded[name]["sha256"]:
            raise DamagedCheckpoint(f"array {name} differs from what was saved")
    return state


def read_record(step_directory: Path) -> dict[str, Any]:
    """The record of one checkpoint.

    Raises:
        DamagedCheckpoint: it is missing or not what was saved.
        UnreadableCheckpoint: the system does not allow it to be read now.
    """
    with (
        _reading(step_directory, "record"),
        ocp.Checkpointer(
            ocp.JsonCheckpointHandler(), multiprocessing_options=_this_process_alone()
        ) as checkpointer,
    ):
        record = checkpointer.restore(step_directory / "record", args=ocp.args.JsonRestore())
        saved_checksum = record.pop("sha256")
        checksum = _json_checksum(record)
    if checksum != saved_checksum:
        raise DamagedCheckpoint("its record of checksums differs from what was saved")
    return record


class _ReadToTheEnd(ocp.type_handlers.NumpyHandler):
    """Waits for all arrays before it raises the error of one.

    Orbax closes its event loop at the first error, and each array that is still being read then
    prints a traceback.
    """

    async def deserialize(
        self,
        infos: Sequence[ocp.type_handlers.ParamInfo],
        args: Sequence[ocp.RestoreArgs] | None = None,
    ) -> list[np.ndarray]:
        args = args or [ocp.RestoreArgs()] * len(infos)
        read_one = super().deserialize
        outcomes = await asyncio.gather(
            *(read_one([info], [arg]) for info, arg in zip(infos, args, strict=True)),
            return_exceptions=True,
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return [array for (array,) in outcomes]


def _this_process_alone() -> ocp.options.MultiprocessingOptions:
    """Keeps Orbax from waiting for other processes after reading: each reads all for itself.

    If it waited, one process that cannot read, or ends, would cause an error in every process that
    looks like damage.
    """
    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=index, active_processes={index})


@contextlib.contextmanager
def _reading(step_directory: Path, item: str) -> Iterator[None]:
    """Sorts whatever Orbax and TensorStore raise into damage and what merely cannot be read now.

    They may report either in the same words, so all files are read once more without them.
    """
    try:
        yield
    except Exception as error:
        _read_plainly(step_directory)
        number = _system_error_number(error)
        if number is not None and number not in _NUMBERS_OF_DAMAGE:
            raise _unreadable(step_directory / item, number) from error
        raise DamagedCheckpoint(
            f"its {item} cannot be read ({type(error).__name__}: {first_line(error)})"
        ) from error


def _read_plainly(path: Path) -> None:
    """Reads a file, or all files below a folder, whatever they hold.

    Raises:
        UnreadableCheckpoint: the system refuses to read one.
    """
    inside: list[str] = []
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            inside = sorted(os.listdir(path))
        elif stat.S_ISREG(mode):
            with path.open("rb", buffering=0) as file:
                while file.read(_BYTES_AT_ONCE):
                    pass
    except OSError as error:
        if error.errno not in _NUMBERS_OF_DAMAGE:
            raise _unreadable(path, error.errno) from error
    for name in inside:
        _read_plainly(path / name)


def _system_error_number(error: Exception) -> int | None:
    """The `errno` of what a library raised; None where the system was not the cause."""
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    if isinstance(error, OSError):
        return error.errno
    # From the text of TensorStore's errors, which are all of one type.
    number = re.search(r"os_error_code='(\d+)'", str(error))
    return int(number[1]) if number else None


def _unreadable(path: Path, number: int) -> UnreadableCheckpoint:
    return UnreadableCheckpoint(f"{path} cannot be read now ({os.strerror(number)})")


def _json_checksum(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
