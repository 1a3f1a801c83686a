"""Writing result files so that a reader never sees half of one, and locks."""

import contextlib
import csv
import fcntl
import io
import json
import logging
import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from l2w_jax.errors import UserError

_logger = logging.getLogger(__name__)


def write_atomically(path: Path, content: str | bytes | Iterator[str]) -> None:
    """Replaces a file by new content, or leaves it as it was if anything fails.

    The content goes to a temporary file in the same folder, which is then renamed: a run that is
    killed half-way leaves the old file. Missing folders are made. If the path is a link, the file
    that it leads to is replaced. A pipe or a device such as /dev/null is written into.

    Args:
        path: of the file.
        content: all of it, or its parts, of which only one is in memory at a time.

    Raises:
        OSError: the file cannot be written.
    """
    if path.exists() and not path.is_file():
        with open(path, "wb") as file:
            file.writelines(_encoded(content))
        return
    path = Path(os.path.realpath(path))
    temporary = _write_temporary(path, content)
    try:
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def replace_together(contents: Mapping[Path, str | bytes | None]) -> None:
    """Replaces files, the last of which describes the others; none where one has no room.

    All contents go to temporary files first. The last file is gone while those are renamed, so that
    a process that is killed meanwhile leaves none that describes files other than its own.

    Args:
        contents: the content of each file; None for one that is to be removed.

    Raises:
        OSError: a file cannot be written.
    """
    temporaries = {}
    try:
        for path, content in contents.items():
            if content is not None:
                temporaries[path] = _write_temporary(path, content)
        *_, last = contents
        last.unlink(missing_ok=True)
        for path in contents:
            if path in temporaries:
                os.replace(temporaries[path], path)
                del temporaries[path]
            else:
                path.unlink(missing_ok=True)
    finally:
        for temporary in temporaries.values():
            os.unlink(temporary)


def _write_temporary(path: Path, content: str | bytes | Iterator[str]) -> Path:
    """The path of a new file beside `path`, which holds the content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not a file of `tempfile`, which only its owner may read: the umask says what others may do.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(_encoded(content))
    except BaseException:
        os.unlink(temporary)
        raise
    return temporary


def _encoded(content: str | bytes | Iterator[str]) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
    elif isinstance(content, str):
        yield content.encode()
    else:
        yield from map(str.encode, content)


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


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder for what is written and read within, and gone afterwards.

    Raises:
        UserError: it has no room, or cannot be made.
    """
    try:
        parent = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise UserError(f"TMPDIR: {error.strerror}") from error
    with told_if_unwritable(parent, "TMPDIR="), tempfile.TemporaryDirectory() as name:
        yield Path(name)


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table as CSV; its header is the keys of the first row."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def npz_bytes(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """The bytes of a compressed .npz file of the arrays."""
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()


def json_text(content: Any) -> str:
    """Indented JSON.

    Raises:
        ValueError: a number in it is NaN or infinite, which JSON does not have.
    """
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def write_json(path: Path, content: Any) -> None:
    """Writes indented JSON atomically.

    Raises:
        OSError: the file cannot be written.
        ValueError: a number in it is NaN or infinite, which JSON does not have.
    """
    write_atomically(path, json_text(content))


def lock(file: IO[Any], wait: bool, danger: str) -> None:
    """Locks an open file until it is closed, or the process ends in any way.

    Not every file system has locks: Lustre and NFS only where they are set up for it, and mounted
    object stores often not. There a warning takes the lock's place.

    Args:
        file: what to lock.
        wait: whether to wait until another process lets go of it.
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
