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

    Locks, atomic renames and reading from any byte on are a file system's; none of the libraries
    here does all of that on an object store.

    Args:
        text: what was given.
        argument: what it was given with, such as "--workdir=".

    Raises:
        UserError: it is the address of something elsewhere, such as gs://bucket/folder, which
            would be taken for a folder named "gs:", or in the home folder of nobody. Or it is
            empty, as where a variable of a shell is not set, and would be the current folder.
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
    """Whether a name that was given earlier and one that is given now may be of one folder.

    The earlier one counted from another folder than this, where it was relative, and what it named
    may have been moved since: they are of two only if it leads to another folder here.
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
