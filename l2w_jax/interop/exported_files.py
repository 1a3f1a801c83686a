"""The files of the folder that a network was exported to, each checked before it is used."""

import functools
import hashlib
import json
import math
import os
import sys

# The version of network.json and of what the stages take and give; programs read no other.
FORMAT = 2


def _is_number(value):
    # In Python true and false are numbers too, and whole ones may be larger than any float.
    is_whole = type(value) is int and abs(value) <= sys.float_info.max
    return is_whole or (type(value) is float and not math.isnan(value))


def _is_count(value):
    return type(value) is int and value > 0


def _is_text(value):
    return isinstance(value, str)


def _is_object(value):
    return isinstance(value, dict)


def _are(kind, value):
    return isinstance(value, list) and all(map(kind, value))


def _one_each(kind, count):
    return lambda value: _are(kind, value) and len(value) == count


# What a field must be: a function that says whether a value is that, and the same in words.
TEXT = _is_text, "text"
TEXTS = functools.partial(_are, _is_text), "a list of texts"
FILE = (
    lambda value: _is_text(value) and os.path.basename(value) == value,
    "the name of a file beside it",
)
OBJECT = _is_object, "an object"
OBJECT_OR_NULL = (lambda value: value is None or _is_object(value)), "an object or null"
COUNT = _is_count, "a whole number from 1"
ASCENDING_COUNTS = (
    lambda value: value != [] and _are(_is_count, value) and value == sorted(value),
    "a list of ascending whole numbers from 1, not empty",
)

_FIELDS = {
    "num_classes": (lambda value: type(value) is int and value >= 0, "a whole number from 0"),
    "image_format": OBJECT,
    "stages": (
        lambda value: value != [] and _are(_is_object, value),
        "a list of objects, not empty",
    ),
}

_IMAGE_FIELDS = {
    "size": COUNT,
    "centre_share": (lambda value: _is_number(value) and 0 < value <= 1, "above 0, at most 1"),
    "max_pixels": COUNT,
}


def read_description(folder, fields, stage_fields):
    """What network.json says; a ValueError names the field that is missing or wrong.

    `fields`, and `stage_fields` of each stage, are what the program needs besides what all programs
    need: {name: what it must be}.
    """
    path = folder / "network.json"
    content = contents(path)
    try:
        description = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged: {error}") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ValueError(f"{path}: is not of format {FORMAT}; export again")
    check(path, "", description, _FIELDS | fields)
    check(path, "image_format.", description["image_format"], _IMAGE_FIELDS)
    for k, stage in enumerate(description["stages"]):
        check(path, f"stages[{k}].", stage, {"file": FILE} | stage_fields)
    num_classes, num_stages = description["num_classes"], len(description["stages"])
    one_each = {
        "class_names": (
            _one_each(_is_text, num_classes),
            f"{num_classes} texts, one for each class",
        ),
        "thresholds": (
            _one_each(_is_number, num_stages),
            f"{num_stages} numbers, one for each stage",
        ),
    }
    check(path, "", description, one_each)
    return description


def check_size(folder, description, shape):
    """Refuses an image size other than that of the first stage's images, [n, size, size, 3]."""
    size = description["image_format"]["size"]
    if tuple(shape[1:]) != (size, size, 3):
        taken = f"{shape[1]}, the size of the images that the first stage takes"
        raise ValueError(f"{folder / 'network.json'}: 'image_format.size' must be {taken}")


def check(path, place, values, fields):
    """Refuses values that lack one of the fields {name: what it must be}, or have a wrong one."""
    for name, (is_allowed, allowed) in fields.items():
        if name not in values:
            raise ValueError(f"{path}: damaged: '{place}{name}' is missing; export again")
        if not is_allowed(values[name]):
            raise ValueError(f"{path}: '{place}{name}' must be {allowed}")


def load(path, sha256, make, library):
    """What a library's `make` returns for a file's bytes, if they are those that were exported."""
    content = contents(path)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{path}: damaged, or of another export")
    try:
        return make(content)
    except Exception as error:
        name = f"{library.__name__} {library.__version__}"
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: {name} cannot load it: {reason}") from error


def contents(path):
    """The bytes of a file of the folder."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; the folder needs it") from error
