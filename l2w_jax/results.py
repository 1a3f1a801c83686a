"""Reading what training and evaluation left in a run folder."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from numpy.typing import NDArray

from l2w_jax.config import from_json
from l2w_jax.early_exit.budget import checked_thresholds
from l2w_jax.errors import UserError

THRESHOLDS_FILE = "thresholds.json"
LATENCY_FILE = "latency.json"


@dataclasses.dataclass(frozen=True)
class Results:
    """An evaluation, as `evaluate.evaluate` wrote it.

    Attributes:
        summary: what evaluation.json holds.
        arrays: what evaluation.npz holds.
    """

    summary: dict[str, Any]
    arrays: dict[str, NDArray[Any]]

    @property
    def mul_adds(self) -> list[float]:
        """Of stopping at each exit [K]."""
        return [row["mul_adds"] for row in self.summary["anytime"]]


def read_config(workdir: Path) -> ConfigDict:
    """The configuration of a run.

    Raises:
        UserError: the folder is not that of a run.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise UserError(f"{workdir}: not the folder of a run (it has no config.json)")
    return from_json(path.read_text())


def read_results(workdir: Path) -> Results:
    """The last evaluation of a run.

    Raises:
        UserError: the folder is not that of a run, or it was not evaluated, or not completely.
    """
    read_config(workdir)
    try:
        summary = json.loads((workdir / "evaluation.json").read_text())
        with np.load(workdir / "evaluation.npz") as arrays:
            return Results(summary, dict(arrays))
    except FileNotFoundError as error:
        raise UserError(
            f"{workdir}: {Path(error.filename).name} is missing; evaluate the run first "
            "(python -m l2w_jax.main with its --config and --workdir, --mode=evaluate)"
        ) from error


def read_thresholds(path: Path, num_exits: int) -> NDArray[np.float32]:
    """Thresholds that `l2w_jax.thresholds` wrote, float32 [K].

    Raises:
        UserError: there is no such file, or it does not hold a number for each exit.
    """
    try:
        return checked_thresholds(json.loads(path.read_text())["thresholds"], num_exits)
    except FileNotFoundError:
        raise UserError(
            f"{path}: there is no such file; make one with python -m l2w_jax.thresholds"
        ) from None
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: not a file of thresholds for {num_exits} exits: {error}"
        ) from error
