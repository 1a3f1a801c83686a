"""Whether the files of an evaluation hold a possible one, before anything relies on it."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l2w_jax.early_exit.budget import NOBODY_LEAVES

# What is in an array, by the letters of its dtype's kind.
_CONTENTS = {"f": "finite numbers", "iu": "whole numbers", "b": "truth values", "U": "texts"}

# Kinds of the arrays of `predictions.Predictions`; those not named are the scores of a rule.
_OF_IMAGES = ("positions", "labels")
_LOSSES = ("losses", "smoothed_losses")
_KINDS = {
    "positions": "iu",
    "labels": "iu",
    "predicted": "iu",
    "correct": "b",
    "correct_top5": "b",
}


def is_number(value: Any) -> bool:
    """Whether a value read from JSON is a finite number."""
    # In Python true and false are numbers too, and whole numbers may be larger than any float.
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _are(kind: Callable[[Any], bool], values: Any) -> bool:
    return isinstance(values, list) and all(map(kind, values))


def _are_numbers(values: Any) -> bool:
    return _are(is_number, values)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_row(value: Any) -> bool:
    return isinstance(value, dict)


def _are_texts_by_name(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


def _or_none(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or kind(value)


# For each field, a function that says whether a value is allowed, and what is allowed in words.
_ROWS = (lambda value: _are(_is_row, value)), "a list of objects"
_ROWS_OR_NULL = _or_none(_ROWS[0]), "a list of objects or null"
_TEXTS_BY_NAME_OR_NULL = _or_none(_are_texts_by_name), "an object of texts or null"
_FIELDS = {
    "step": (_is_count, "a whole number from 0"),
    "dataset": (_is_text, "a text"),
    "class_names": (lambda value: _are(_is_text, value), "a list of texts"),
    "thresholds_from": (lambda value: value in ("holdout", "train"), "'holdout' or 'train'"),
    "anytime": (lambda value: value != [] and _ROWS[0](value), "a list of objects, not empty"),
    "budgeted": _ROWS,
    "shots": _ROWS_OR_NULL,
    "calibration": _ROWS_OR_NULL,
    "calibrated": _ROWS_OR_NULL,
    "splits": _TEXTS_BY_NAME_OR_NULL,
    "class_counts": (_or_none(lambda value: _are(_is_count, value)), "a list of whole numbers"),
    "network": (_or_none(_is_text), "a text or null"),
    "digests": _TEXTS_BY_NAME_OR_NULL,
    "held_out_kept": (lambda value: isinstance(value, bool), "true or false"),
}


def check_summary(fields: Mapping[str, Any]) -> None:
    """Checks the fields of `results.Evaluation` that are not arrays; those with defaults may be
    missing.

    Raises:
        ValueError: one is not what the class says.
    """
    for name, (is_allowed, allowed) in _FIELDS.items():
        if name in fields and not is_allowed(fields[name]):
            raise ValueError(f"{name!r} must be {allowed}")
    num_exits = len(fields["anytime"])
    shares = [f"share_{k + 1}" for k in range(num_exits)]
    _check_rows(fields, "anytime", ("exit", "mul_adds", "top1", "top5", "loss"))
    _check_rows(fields, "budgeted", ("q", "mul_adds", "top1", *shares))
    _check_rows(fields, "calibration", ("exit", "ece", "adaptive_ece"))
    _check_rows(fields, "calibrated", ("exit", "temperature", "ece", "adaptive_ece"))
    _check_rows(fields, "shots", ("exit", "many", "medium", "few"), _or_none(is_number))
    for name in ("calibration", "calibrated"):
        if fields.get(name) is not None and len(fields[name]) != num_exits:
            raise ValueError(f"{name!r} must have {num_exits} rows, one for each exit")
    for row in fields.get("calibrated") or ():
        points = row.get("reliability")
        if not _are(_are_numbers, points) or any(len(point) != 2 for point in points):
            raise ValueError("'reliability' must be a list of pairs of finite numbers")
    counts = fields.get("class_counts")
    if counts is not None and len(counts) != len(fields["class_names"]):
        raise ValueError("'class_counts' must be as many as 'class_names'")


def check_predictions(arrays: Mapping[str, NDArray[Any]], num_exits: int, num_classes: int) -> None:
    """Checks the arrays of `predictions.Predictions`, of K exits and C classes.

    Raises:
        ValueError: one is not what the class says.
    """
    num_images = np.size(arrays["labels"])
    if not num_images:
        raise ValueError("there are no images")
    for name, array in arrays.items():
        shape = (num_images,) if name in _OF_IMAGES else (num_exits, num_images)
        _check_array(name, array, _KINDS.get(name, "f"), shape)
        is_score = name not in (*_LOSSES, *_KINDS)
        if is_score and not (np.abs(array) < NOBODY_LEAVES).all():
            raise ValueError(f"{name} must be below {NOBODY_LEAVES:g}, the threshold of nobody")
    for name in ("labels", "predicted"):
        _check_below(name, arrays[name], num_classes)


def check_sample_weights(arrays: Mapping[str, NDArray[Any]], num_exits: int) -> None:
    """Checks the arrays of `results.SampleWeights`, of K exits.

    Raises:
        ValueError: one is not what the class says.
    """
    for name, array in arrays.items():
        _check_array(name, array, "f", (len(np.atleast_1d(array)), num_exits))
    if not 0 < len(arrays["losses"]) == len(arrays["weights"]):
        raise ValueError("there must be as many weights as losses")


def check_examples(arrays: Mapping[str, NDArray[Any]], num_exits: int, num_classes: int) -> None:
    """Checks the arrays of `exit_examples.ExitExamples`, of K exits and C classes.

    Raises:
        ValueError: one is not what the class says.
    """
    images = arrays["images"]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError("images must be bytes [n, h, w, 3]")
    for name in ("exits", "labels", "predicted"):
        _check_array(name, arrays[name], "iu", (len(images),))
    _check_array("kinds", arrays["kinds"], "U", (len(images),))
    _check_array("confidences", arrays["confidences"], "f", (len(images),))
    _check_below("exits", arrays["exits"], num_exits)
    for name in ("labels", "predicted"):
        _check_below(name, arrays[name], num_classes)


def check_latency(latency: Mapping[str, Any]) -> None:
    """Checks that a measured latency has what the report shows of it.

    Raises:
        ValueError, KeyError, TypeError: it does not.
    """
    if not isinstance(latency["device"], str) or not isinstance(latency["batch_sizes"], list):
        raise ValueError("'device' must be a text, 'batch_sizes' a list")
    for entry in latency["batch_sizes"]:
        if not entry["exits"]:
            raise ValueError("an entry of 'batch_sizes' has no 'exits'")
        numbers = [entry["batch_size"], entry["full_ms"]]
        numbers += [row["exit"] for row in entry["exits"]]
        numbers += [
            row[name] for row in (*entry["exits"], *entry["budgeted"]) for name in ("ms", "top1")
        ]
        if not _are_numbers(numbers):
            raise ValueError("an entry of 'batch_sizes' has something else in a number's place")


def _check_rows(
    fields: Mapping[str, Any],
    table: str,
    columns: Sequence[str],
    is_allowed: Callable[[Any], bool] = is_number,
) -> None:
    for row in fields.get(table) or ():
        for name in columns:
            if not is_allowed(row.get(name)):
                raise ValueError(f"{name!r} of {table!r} must be a finite number in every row")
        if row.get("mul_adds", 1) <= 0:
            raise ValueError(f"'mul_adds' of {table!r} must be above 0 in every row")


def _check_array(name: str, array: NDArray[Any], kind: str, shape: tuple[int, ...]) -> None:
    if array.dtype.kind not in kind or array.shape != shape:
        raise ValueError(
            f"{name} must be {_CONTENTS[kind]} {list(shape)}, is {array.dtype} {list(array.shape)}"
        )
    if kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"{name} has a number that is not finite")


def _check_below(name: str, array: NDArray[np.integer], bound: int) -> None:
    if not ((array >= 0) & (array < bound)).all():
        raise ValueError(f"{name} must be from 0 and below {bound}")
