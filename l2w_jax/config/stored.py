"""A configuration as a run folder holds it, and in what two of them differ."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from l2w_jax.config.choices import has_type, type_name
from l2w_jax.config.defaults import default_config
from l2w_jax.errors import UserError, first_line

# Fields that change no number in training, as long as the images are the same.
FREE_FIELDS = (
    "checkpoint.",
    "dataset.data_dir",
    "dataset.eval_batch_size",
    "dataset.max_bad_share",
    "dataset.thresholds_from",
    "log.",
)


def to_json(config: ConfigDict) -> str:
    """Writes `config` as indented JSON with its fields in alphabetical order."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def from_json(text: str) -> ConfigDict:
    """Reads what `to_json` wrote. Fields that the text lacks have their default values.

    Fields unknown to `default_config` are kept, so that `validate` and `changes` can name them.

    Raises:
        UserError: the text is no JSON object, or a field has another type than by default.
    """
    try:
        stored = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"config.json: line {error.lineno} is not JSON: {error.msg}") from error
    if not isinstance(stored, dict):
        raise UserError("config.json: must hold one JSON object")
    # Equal to dataset.num_classes in every checked configuration; setting it would not break the
    # reference but would overwrite the data set's own field with it.
    if isinstance(stored.get("model"), dict):
        stored["model"].pop("num_classes", None)
    config = default_config()
    for fault in _mistyped(stored, config):
        raise UserError(f"config.json: {fault}")
    try:
        config.update(_with_tuples(stored))
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"config.json: not what a run wrote: {first_line(error)}") from error
    return config


def read_config(workdir: Path) -> ConfigDict:
    """The configuration of a run.

    Raises:
        UserError: the folder is not that of a run.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise UserError(f"{workdir}: not the folder of a run (it has no config.json)")
    try:
        return from_json(path.read_text(encoding="utf-8"))
    except UserError as error:
        raise UserError(f"{workdir}: {error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{workdir}: config.json: is no text") from error
    except RecursionError as error:
        raise UserError(f"{workdir}: config.json: is nested too deeply") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error


class Change(NamedTuple):
    """A field in which two configurations differ, and its values as text."""

    field: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.field}: {self.old} -> {self.new}"


def changes(old: ConfigDict, new: ConfigDict) -> list[Change]:
    """Every field in which the two differ, in alphabetical order."""
    old_fields, new_fields = dict(fields(old)), dict(fields(new))
    found = []
    for field in sorted(old_fields.keys() | new_fields.keys()):
        before = repr(old_fields[field]) if field in old_fields else "(absent)"
        after = repr(new_fields[field]) if field in new_fields else "(absent)"
        if before != after:
            found.append(Change(field, before, after))
    return found


def fields(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the name of every field, such as "model.name", with its value."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _mistyped(content: Mapping[str, Any], defaults: ConfigDict, prefix: str = "") -> Iterator[str]:
    """Yields a line for each value, read from JSON, that has another type than by default."""
    for name, value in content.items():
        default = defaults.get(name)
        if isinstance(default, ConfigDict) and isinstance(value, dict):
            yield from _mistyped(value, default, f"{prefix}{name}.")
        elif isinstance(default, ConfigDict):
            yield f"{prefix}{name}: {json.dumps(value)} is not allowed: must be a section of fields"
        elif default is not None and not has_type(_with_tuples(value), default):
            allowed = type_name(default)
            yield f"{prefix}{name}: {json.dumps(value)} is not allowed: must be {allowed}"


def _with_tuples(value: Any) -> Any:
    """Turns JSON's arrays into tuples, which are what the command line can override."""
    if isinstance(value, dict):
        return {name: _with_tuples(item) for name, item in value.items()}
    if isinstance(value, list):
        return tuple(_with_tuples(item) for item in value)
    return value
