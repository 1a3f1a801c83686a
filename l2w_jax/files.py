"""Writing result files so that a reader never sees half of one, and locks."""

import contextlib
import csv
import fcntl
import io
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from l2w_jax.errors import UserError

_logger = logging.getLogger(__name__)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replaces a file by new content, or leaves it as it was if anything fails.

    The content goes to a temporary file in the same folder, which is then renamed: a run that is
    killed half-way leaves the old file. Missing folders are made. Of a link that is replaced which
    it leads to. What is no regular file, such as a pipe or /dev/null, is written into.

    Raises:
        OSError: the file cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        # mkstemp makes files that only their owner may read.
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


@contextlib.contextmanager
def told_if_unwritable(path: Path, argument: str = "") -> Iterator[None]:
    """Turns the OSError of writing a file into a UserError.

    Args:
        path: the file or folder.
        argument: what the user gave it with, such as "--output=".
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{argument}{path}: cannot be written: {error.strerror}") from error


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a table atomically; its header is the keys of the first row.

    Raises:
        OSError: the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Writes a compressed .npz file atomically.

    Raises:
        OSError: the file cannot be written.
    """
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    write_atomically(path, content.getvalue())


def write_json(path: Path, content: Any) -> None:
    """Writes indented JSON atomically.

    Raises:
        OSError: the file cannot be written.
        ValueError: a number in it is NaN or infinite, which JSON does not have.
    """
    write_atomically(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def lock(file: IO[Any], wait: bool, danger: str) -> None:
    """Locks an open file until it is closed, or the process ends in any way.

    Not every file system has locks: Lustre and NFS only where they are set up for it, and what
    mounts an object store often not. There a warning takes the lock's place.

    Args:
        file: what to lock.
        wait: for another process to let go of it.
        danger: what the lock would have kept from happening, for the warning.

    Raises:
        BlockingIOError: another process holds it, and this one is not to wait.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError as error:
        _logger.warning(
            "%s: cannot be locked on this file system (%s): %s", file.name, error.strerror, danger
        )
