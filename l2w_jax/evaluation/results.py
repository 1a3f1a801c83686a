"""Reading what training and evaluation left in a run folder."""

import dataclasses
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l2w_jax.config import stored
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

    def check_thresholds(self) -> None:
        """Raises UserError if there were no images to choose thresholds from."""
        if "thresholds_confidences" not in self.arrays:
            raise UserError(
                "the run was evaluated without images of "
                f"{self.summary['thresholds_from']!r}, which thresholds are chosen on: give a file "
                "of thresholds, or evaluate the run with such images"
            )

    def check_step(self, step: int, what: str) -> None:
        """Raises UserError if `what` is of another step than the one that was evaluated."""
        evaluated = self.summary["step"]
        if step != evaluated:
            raise UserError(
                f"{what} is of step {step}, but the run was last evaluated at step {evaluated}; "
                "evaluate the run (python -m l2w_jax.main with its --config and --workdir, "
                "--mode=evaluate), then choose thresholds anew"
            )


def read_results(workdir: Path) -> Results:
    """The last evaluation of a run.

    Raises:
        UserError: the folder is not that of a run, or it was not evaluated, or not completely.
    """
    stored.read_config(workdir)
    name = "evaluation.json"
    try:
        summary = json.loads((workdir / name).read_text())
        name = "evaluation.npz"
        with np.load(workdir / name) as arrays:
            return Results(summary, dict(arrays))
    except FileNotFoundError as error:
        raise UserError(
            f"{workdir}: {Path(error.filename).name} is missing; evaluate the run first "
            "(python -m l2w_jax.main with its --config and --workdir, --mode=evaluate)"
        ) from error
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{workdir / name} is damaged ({error}); evaluate the run "
            "again (python -m l2w_jax.main with its --config and --workdir, --mode=evaluate)"
        ) from error


def read_latency(workdir: Path, evaluation: Results) -> dict[str, Any] | None:
    """What was measured on the network that was evaluated; None if it was not, or on another.

    Raises:
        UserError: the file is damaged.
    """
    path = workdir / LATENCY_FILE
    try:
        latency = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: is damaged ({error}); delete it or measure again") from error
    return latency if latency.get("step") == evaluation.summary["step"] else None


def read_thresholds(path: Path, evaluation: Results) -> NDArray[np.float32]:
    """Thresholds that `l2w_jax.thresholds` wrote for what was evaluated, float32 [K].

    Raises:
        UserError: there is no such file, it does not hold a number for each exit, or it was written
            for another step.
    """
    num_exits = len(evaluation.mul_adds)
    try:
        content = json.loads(path.read_text())
        thresholds = checked_thresholds(content["thresholds"], num_exits)
    except FileNotFoundError:
        raise UserError(
            f"{path}: there is no such file; make one with python -m l2w_jax.thresholds"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: not a file of thresholds for {num_exits} exits: {error}"
        ) from error
    evaluation.check_step(content.get("step", evaluation.summary["step"]), str(path))
    return thresholds
