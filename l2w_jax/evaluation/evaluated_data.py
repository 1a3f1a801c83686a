"""The data that a run was evaluated with, and in what that of another run is known to differ."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from l2w_jax.evaluation.results import Evaluation


class EvaluatedData(NamedTuple):
    """Classes and images; None for what is not known.

    Attributes:
        class_names: by class index.
        test: digest of the test images (`Source.digests`).
        holdout: digest of the held-out images that set thresholds.
        num_holdout: how many of these there are.
    """

    class_names: tuple[str, ...] | None = None
    test: str | None = None
    holdout: str | None = None
    num_holdout: int | None = None


# For numbers that an earlier version kept.
NOTHING_KNOWN = EvaluatedData()


def data_of(evaluation: Evaluation) -> EvaluatedData:
    """What is known of the data of an evaluation."""
    digests = evaluation.digests or {}
    num_holdout = num_held_out(evaluation) or None
    return EvaluatedData(
        class_names=tuple(evaluation.class_names),
        test=digests.get("test"),
        holdout=digests.get("holdout") if num_holdout else None,
        num_holdout=num_holdout,
    )


def num_held_out(evaluation: Evaluation) -> int:
    """How many images were held out: those that set thresholds, unless they are training images."""
    if evaluation.held_out is None or evaluation.thresholds_from != "holdout":
        return 0
    return len(evaluation.held_out.labels)


def differences(one: EvaluatedData, other: EvaluatedData) -> dict[str, str]:
    """In words, which of "class_names", "test" and "holdout" are known of both and differ.

    Held-out images go by their number where nothing else is known of them.
    """
    texts = {}
    if _differ(one.class_names, other.class_names):
        texts["class_names"] = "other class names"
    if _differ(one.test, other.test):
        texts["test"] = "other test images"
    has_digests = None not in (one.holdout, other.holdout)
    counts_differ = _differ(one.num_holdout, other.num_holdout)
    if one.holdout != other.holdout if has_digests else counts_differ:
        counts = f" ({one.num_holdout} -> {other.num_holdout})" if counts_differ else ""
        texts["holdout"] = f"other held-out images{counts}"
    return texts


def _differ(one: Any, other: Any) -> bool:
    return None not in (one, other) and one != other


def in_common(of_runs: Sequence[EvaluatedData]) -> EvaluatedData:
    """What is known of at least one of the runs, and not different in any other."""
    known = [
        {value for value in of_field if value is not None}
        for of_field in zip(*of_runs, strict=True)
    ]
    return EvaluatedData(*(values.pop() if len(values) == 1 else None for values in known))
