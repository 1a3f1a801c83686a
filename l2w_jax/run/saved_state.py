"""One checkpoint: a state and the record that it is verified by."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
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


class DamagedCheckpoint(Exception):
    """A checkpoint that cannot be read back as it was saved; the message says what is wrong."""


def make_record(
    state: PyTree, score: float | None, trained_on: Mapping[str, Any]
) -> dict[str, Any]:
    """What a state is verified by when it is read back, and what is chosen by: its score, and which
    images it is trained on (`images.identity`).
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
        UserError: it is intact, but of other arrays than the template's.
    """
    recorded = read_record(step_directory)["arrays"]
    wanted = array_types(template)
    found = {name: entry["type"] for name, entry in recorded.items()}
    if found != wanted:
        raise UserError(
            f"{step_directory}: saved by a run with another config: "
            + first_difference(found, wanted)
        )
    host_template = jax.tree.map(lambda array: np.empty(array.shape, array.dtype), template)
    with (
        _reading("state"),
        ocp.StandardCheckpointer(multiprocessing_options=_this_process_alone()) as checkpointer,
    ):
        state = checkpointer.restore(step_directory / "state", host_template)
    for name, array in named_arrays(state).items():
        if array_checksum(array) != recorded[name]["sha256"]:
            raise DamagedCheckpoint(f"array {name} differs from what was saved")
    return state


def read_record(step_directory: Path) -> dict[str, Any]:
    """The record of one checkpoint.

    Raises:
        DamagedCheckpoint: it is missing or not what was saved.
    """
    with (
        _reading("record"),
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


def _this_process_alone() -> ocp.options.MultiprocessingOptions:
    """Has Orbax not wait for other processes after it read: each reads all for itself.

    Where it waits, what one process cannot read, or its end, is an error in every process, which
    looks like damage.
    """
    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=index, active_processes={index})


@contextlib.contextmanager
def _reading(item: str) -> Iterator[None]:
    """Turns whatever Orbax and TensorStore raise on a damaged file into one exception."""
    try:
        yield
    except Exception as error:
        raise DamagedCheckpoint(
            f"its {item} cannot be read ({type(error).__name__}: {first_line(error)})"
        ) from error


def _json_checksum(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
