"""Folders that a user names: what is read and written here lies on this machine's file systems."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from l2w_jax.config.choices import EARLIER_RUNS
from l2w_jax.errors import UserError

_FIELDS = ("dataset.data_dir", *EARLIER_RUNS)
_ADVICE = (
    "must be a folder of this machine: mount the storage (gcsfuse for gs://, as launch/tpu_pod.sh "
    "does; mount-s3 for s3://) and name the folder where it is mounted"
)


def local_path(text: str, argument: str = "") -> Path:
    """The path that a command line gives; ~ is the home folder.

    Locks, atomic renames and reading from any byte on take a file system; none of the libraries
    here does all of that on an object store.

    Args:
        text: what was given.
        argument: what it was given with, such as "--workdir=".

    Raises:
        UserError: it is the address of something elsewhere, such as gs://bucket/folder, which
            would be taken for a folder named "gs:", or in the home folder of an unknown user. Or it
            is empty, as when a shell variable is not set, and would be the current folder.
    """
    if not text:
        raise UserError(f"{argument}'' is not allowed: must not be empty")
    if fault := _fault(text):
        raise UserError(f"{argument}{text} is not allowed: {fault}")
    return Path(text).expanduser()


def path_faults(config: ConfigDict) -> Iterator[str]:
    """Yields a line for each field that names a folder which cannot be on this machine."""
    for field in _FIELDS:
        section, name = field.split(".")
        if fault := _fault(config[section][name]):
            yield f"config.{field}: {config[section][name]!r} is not allowed: {fault}"


def may_be_one_folder(before: str, now: str) -> bool:
    """Whether a name that was given earlier and one that is given now may mean the same folder.

    The earlier one, if relative, may have started from another folder than this one, and what it
    named may have been moved since: they mean two folders only if it leads to another one here.
    """
    # Not `Path.expanduser`, which raises for a home folder of another machine.
    before, now = os.path.expanduser(before), os.path.expanduser(now)
    return not os.path.exists(before) or (os.path.exists(now) and os.path.samefile(before, now))


def _fault(path: str) -> str:
    """What is wrong with a path, and what is allowed; "" where nothing is."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path):
        return _ADVICE
    try:
        Path(path).expanduser()
    except RuntimeError:
        return "there is no such user's home folder: must be a folder"
    return ""
