"""Calibrates the exits of an evaluated network on some of its held-out images."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from numpy.typing import NDArray

from l2w_jax.data import Source
from l2w_jax.early_exit.calibration import (
    calibrated,
    calibration_table,
    fit_temperature,
    reliability,
)
from l2w_jax.errors import UserError
from l2w_jax.evaluation.predictions import Predictions, logits_of, predict_all
from l2w_jax.evaluation.results import Evaluation
from l2w_jax.models import create_network

# The part of the held-out images that temperatures are fitted on; thresholds are set on the others.
FITTING_SHARE = 1 / 3

# More would fill the memory with logits, and fewer are enough to find one number for each exit.
MAX_FITTING_IMAGES = 10_000

# The fewest held-out images. With fewer, neither part says anything.
MIN_IMAGES = 30


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Temperatures, and the network evaluated with them.

    Attributes:
        temperatures: one for each exit [K].
        fitting_images: how many held-out images they were fitted on.
        evaluation: with answers by the calibrated network, and `Evaluation.calibrated`; the
            held-out images are those that no temperature was fitted on.
    """

    temperatures: tuple[float, ...]
    fitting_images: int
    evaluation: Evaluation


def calibrate(
    config: ConfigDict,
    variables: Mapping[str, Any],
    source: Source,
    evaluation: Evaluation,
    seed: int = 0,
) -> Calibration:
    """Fits temperatures and evaluates the network with them.

    Args:
        config: of the run.
        variables: {"params", "batch_stats"} of what was evaluated.
        source: the data.
        evaluation: of the network without temperatures.
        seed: of the division of the held-out images.

    Raises:
        UserError: the held-out images are too few, or the network was trained on them.
    """
    if evaluation.thresholds_from != "holdout":
        raise UserError(
            "--calibrate: needs images that the network was not trained on; train and evaluate "
            "with --config.dataset.thresholds_from=holdout"
        )
    held_out = evaluation.threshold_images()
    num_images = len(held_out.labels)
    if num_images < MIN_IMAGES:
        raise UserError(
            f"--calibrate: {num_images} held-out images are too few; must be {MIN_IMAGES} or more"
        )
    num_fitting = min(math.floor(num_images * FITTING_SHARE), MAX_FITTING_IMAGES)
    shuffled = np.random.default_rng(seed).permutation(held_out.positions)
    fitting, rest = np.sort(shuffled[:num_fitting]), np.sort(shuffled[num_fitting:])

    network = create_network(config)
    logits, labels = logits_of(config, network, variables, source, fitting)
    temperatures = tuple(fit_temperature(of_exit, labels) for of_exit in logits)
    cooled = calibrated(network, temperatures)
    test = predict_all(config, cooled, variables, source, "test")
    all_held_out = predict_all(config, cooled, variables, source, "holdout")
    table = [
        {**row, "temperature": temperature, "reliability": reliability(confidences, correct)}
        for row, temperature, confidences, correct in zip(
            calibration_table(test.confidences, test.correct),
            temperatures,
            test.confidences,
            test.correct,
            strict=True,
        )
    ]
    return Calibration(
        temperatures,
        num_fitting,
        dataclasses.replace(
            evaluation, test=test, held_out=_at(all_held_out, rest), calibrated=table
        ),
    )


def _at(predictions: Predictions, positions: NDArray[np.integer]) -> Predictions:
    """The answers to the images at these positions of their split."""
    chosen = np.isin(predictions.positions, positions)
    return Predictions.of_arrays(
        {name: array[..., chosen] for name, array in predictions.arrays().items()}
    )
