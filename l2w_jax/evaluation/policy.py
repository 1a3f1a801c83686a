"""Which images leave a run's network where: as its files say, or else without loss of accuracy."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l2w_jax.early_exit import rules
from l2w_jax.early_exit.calibration import checked_temperatures
from l2w_jax.errors import UserError
from l2w_jax.evaluation.results import Evaluation

THRESHOLDS_FILE = "thresholds.json"


@dataclasses.dataclass(frozen=True)
class ExitPolicy:
    """Who leaves where.

    Attributes:
        thresholds: T_k, float32 [K].
        rule: key in `rules.RULES` of the scores that the thresholds are for.
        temperatures: those of the exits with which the scores were made (`early_exit.calibration`)
            [K]; None if there are none.
        has_promise: whether the thresholds come with a promise on the loss
            (`early_exit.guarantee`).
    """

    thresholds: NDArray[np.float32]
    rule: str = rules.DEFAULT_RULE
    temperatures: tuple[float, ...] | None = None
    has_promise: bool = False


def choose_policy(workdir: Path, given: Path | None, evaluation: Evaluation) -> ExitPolicy:
    """Who leaves where: as given, as set for the run, or so that no accuracy is lost.

    Raises:
        UserError: a file of thresholds is missing or wrong, or there is none and the run was
            evaluated without images to choose thresholds from.
    """
    of_run = workdir / THRESHOLDS_FILE
    if given is not None or of_run.exists():
        return read_policy(given or of_run, evaluation)
    return ExitPolicy(evaluation.without_loss.thresholds)


def read_policy(path: Path, evaluation: Evaluation) -> ExitPolicy:
    """Thresholds that `l2w_jax.thresholds` wrote for what was evaluated, and their rule.

    A file without a rule dates from before there were others, and holds probabilities.

    Raises:
        UserError: there is no such file, it does not hold a number for each exit and a known rule,
            or it was written for another network.
    """
    num_exits = len(evaluation.mul_adds)
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict) or "thresholds" not in content:
            raise ValueError("must be an object that has 'thresholds'")
        for name in ("thresholds", "temperatures"):
            if not _may_be_numbers(content.get(name)):
                raise ValueError(f"{name!r} must be a list of numbers")
        rule = rules.checked_rule(content.get("rule", rules.confidence.__name__))
        thresholds = rules.thresholds_for(rules.RULES[rule], content["thresholds"], num_exits)
        temperatures = checked_temperatures(content.get("temperatures"), num_exits)
        has_promise = "risk" in content.get("chosen_by", {})
    except FileNotFoundError:
        raise UserError(
            f"{path}: there is no such file; make one with python -m l2w_jax.thresholds"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a file of thresholds: is no text") from None
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(
            f"{path}: not a file of thresholds for {num_exits} exits: {error}"
        ) from error
    evaluation.check_network(
        content.get("step", evaluation.step), content.get("network"), str(path)
    )
    return ExitPolicy(thresholds, rule, temperatures, has_promise)


def _may_be_numbers(values: Any) -> bool:
    """Whether a value read from JSON is null or a list of numbers, infinite ones included."""
    is_list = isinstance(values, list) and all(type(value) in (int, float) for value in values)
    return values is None or is_list
