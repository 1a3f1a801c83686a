"""Which classes leave where, and how accurate early exits are on them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l2w_jax.data.splits import positions_by_class
from l2w_jax.early_exit.budget import first_exits, operating_point
from l2w_jax.early_exit.rules import DEFAULT_RULE
from l2w_jax.evaluation.results import Evaluation


def shot_groups(
    labels: NDArray[np.integer], class_counts: NDArray[np.integer]
) -> dict[str, NDArray[np.bool_]]:
    """Which images are of frequent and of rare classes (Liu et al., CVPR 2019, section 5).

    Args:
        labels: of the images [N].
        class_counts: training images of each class [C].

    Returns:
        many, medium and few, [N] each: whether an image's class has over 100, 20 to 100 or under 20
        training images.
    """
    counts = class_counts[labels]
    return {"many": counts > 100, "medium": (counts >= 20) & (counts <= 100), "few": counts < 20}


def leaving_by_class(evaluation: Evaluation) -> list[dict[str, Any]]:
    """A row for each class that has test images, from the one that leaves earliest on average.

    Images leave as `leaving_by_group` says.
    """
    names = evaluation.class_names
    by_class = positions_by_class(evaluation.test.labels, len(names))
    rows = leaving_by_group(evaluation, dict(zip(names, by_class, strict=True)))
    return sorted(rows, key=lambda row: row["mul_adds"])


def leaving_by_shots(evaluation: Evaluation) -> list[dict[str, Any]]:
    """A row for many, medium and few shot classes; none where no long tail was trained on."""
    if evaluation.class_counts is None or evaluation.shots is None:
        return []
    counts = np.asarray(evaluation.class_counts)
    groups = shot_groups(evaluation.test.labels, counts)
    return leaving_by_group(
        evaluation, {name: np.flatnonzero(members) for name, members in groups.items()}
    )


def leaving_by_group(
    evaluation: Evaluation, members: Mapping[str, NDArray[np.integer]]
) -> list[dict[str, Any]]:
    """How groups of test images fare when those that set thresholds leave in equal numbers.

    Args:
        evaluation: with images that set thresholds.
        members: of each group, the places of its images among the test images, ascending.

    Returns:
        For each group that is not empty: name; images, their number; top1 in percent, leaving
        early, and top1_last, all at the last exit; mul_adds, their mean cost; share_1 to share_K.

    Raises:
        UserError: the run was evaluated without images that set thresholds.
    """
    test = evaluation.test
    exits = first_exits(test.scores(DEFAULT_RULE), evaluation.even_thresholds())
    return [
        {
            "name": name,
            "images": len(group),
            "top1_last": 100 * float(test.correct[-1, group].mean()),
            **operating_point(exits[group], test.correct[:, group], evaluation.mul_adds).row(),
        }
        for name, group in members.items()
        if len(group)
    ]
