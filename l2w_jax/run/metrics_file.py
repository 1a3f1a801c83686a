"""The metrics of a run that goes on, metrics.jsonl: of a long run hundreds of megabytes."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from l2w_jax.files import write_atomically

_logger = logging.getLogger(__name__)


def reopened(path: Path, last_step: int) -> TextIO:
    """The file, to go on after a step; lines of later steps and damaged lines are dropped.

    Raises:
        OSError: it cannot be read or written.
    """
    if path.exists():
        write_atomically(path, _kept_lines(path, last_step))
    return open(path, "a", encoding="utf-8")


def _kept_lines(path: Path, last_step: int) -> Iterator[str]:
    """The lines up to a step, one by one. Warns of damaged ones when all have been read."""
    damaged = 0
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            # A killed run may have left half a line at the end.
            if not line.endswith("\n"):
                break
            step = _step_of(line)
            if step is None:
                damaged += 1
            elif step <= last_step:
                yield line
    if damaged:
        _logger.warning("%s: %d lines that cannot be read are dropped.", path, damaged)


def _step_of(line: str) -> int | None:
    """The step of a line of metrics; None if the line is damaged, as by a loss of power."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
