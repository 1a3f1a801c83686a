"""Folders that a user names: what is read and written here lies on this machine's file systems."""

import re
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from l2w_jax.errors import UserError

_FIELDS = ("dataset.data_dir", "init.checkpoint", "weighting.checkpoint", "imta.checkpoint")
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
            would be taken for a folder named "gs:".
    """
    if _is_elsewhere(text):
        raise UserError(f"{argument}{text} is not allowed: {_ADVICE}")
    return Path(text).expanduser()


def elsewhere_faults(config: ConfigDict) -> Iterator[str]:
    """Yields a line for each field that names a folder which is not on this machine."""
    for field in _FIELDS:
        section, name = field.split(".")
        if _is_elsewhere(config[section][name]):
            yield f"config.{field}: {config[section][name]!r} is not allowed: {_ADVICE}"


def _is_elsewhere(path: str) -> bool:
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path) is not None
