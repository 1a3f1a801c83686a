"""The files of the folder that a network was exported to, each checked before it is used."""

import hashlib
import json
from pathlib import Path

FOLDER = Path(__file__).parent

# Of network.json and of what the stages take and give; programs read no other.
FORMAT = 2


def read_description(folder):
    """What network.json says."""
    path = folder / "network.json"
    try:
        description = json.loads(contents(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: damaged: {error}") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ValueError(f"{path}: is not of format {FORMAT}; export again")
    for name in ("class_names", "image_format", "stages", "thresholds"):
        if name not in description:
            raise ValueError(f"{path}: damaged: {name!r} is missing; export again")
    if not isinstance(description["stages"], list):
        raise ValueError(f"{path}: damaged: 'stages' is no list; export again")
    thresholds, num_stages = description["thresholds"], len(description["stages"])
    if not (
        isinstance(thresholds, list)
        and len(thresholds) == num_stages
        and all(type(threshold) in (int, float) for threshold in thresholds)
    ):
        raise ValueError(f"{path}: 'thresholds' must be {num_stages} numbers, one for each stage")
    return description


def load(path, sha256, make, library):
    """What `make`, of a library, makes of a file's bytes, if they are those that were exported."""
    content = contents(path)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{path}: damaged, or of another export")
    try:
        return make(content)
    except Exception as error:
        name = f"{library.__name__} {library.__version__}"
        raise ValueError(f"{path}: {name} cannot load it") from error


def contents(path):
    """The bytes of a file of the folder."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; the folder needs it") from error
