"""Evaluation of a trained network: every exit by itself, and with images leaving early."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from numpy.typing import NDArray

from l2w_jax.arrays import tree_checksum
from l2w_jax.data import Source
from l2w_jax.early_exit import mul_adds_per_exit
from l2w_jax.early_exit.budget import budgeted_curve_from_confidences
from l2w_jax.early_exit.calibration import calibration_table
from l2w_jax.early_exit.selection import are_shifted, percentages, shares_of
from l2w_jax.errors import RunFailed, UserError
from l2w_jax.evaluation.classes import shot_groups
from l2w_jax.evaluation.exit_examples import read_examples
from l2w_jax.evaluation.predictions import Predictions, predict_all
from l2w_jax.evaluation.results import Evaluation, SampleWeights
from l2w_jax.models import MultiExitNetwork, create_network
from l2w_jax.training.state import TrainState
from l2w_jax.training.weighting import create_weighting

# How many images the learned weights are shown for: more dots would hide one another.
MAX_IMAGES_WEIGHTED = 5000


def evaluate(config: ConfigDict, state: TrainState, source: Source, workdir: Path) -> Evaluation:
    """Evaluates a state on the test images; the first process saves the results in the workdir.

    Without images to set thresholds from, as when only test images are at hand, those of the last
    evaluation in the workdir are used if it is of the same network; otherwise all but the anytime
    table is left out.

    Args:
        config: a run's configuration.
        state: its parameters, statistics and weight-prediction network.
        source: the data.
        workdir: the folder of the run.

    Returns:
        The results; only the first process's have examples and what is kept from an earlier
        evaluation.

    Raises:
        UserError: an answer is not finite.
        RunFailed: the results cannot be written; where the disk is full, those of an earlier
            evaluation stay.
    """
    thresholds_split = config.dataset.thresholds_from
    model = create_network(config)
    test = predict_all(config, model, state.variables, source, "test")
    mul_adds = mul_adds_per_exit(model, config.dataset.image_size)
    evaluation = Evaluation(
        step=int(state.step),
        network=tree_checksum(state.variables),
        dataset=config.dataset.name,
        class_names=list(source.class_names),
        splits={split: str(origin) for split, origin in source.origins.items()},
        digests=dict(source.digests) or None,
        thresholds_from=thresholds_split,
        anytime=anytime_table(test, mul_adds),
        budgeted=[],
        test=test,
        calibration=calibration_table(test.confidences, test.correct),
    )
    if config.dataset.imbalance_factor and source.num_train:
        counts = source.train_class_counts
        evaluation = dataclasses.replace(
            evaluation, shots=shots_table(test, counts), class_counts=counts.tolist()
        )
    if {"train": source.num_train, "holdout": source.num_holdout}[thresholds_split]:
        held_out = predict_all(config, model, state.variables, source, thresholds_split)
        evaluation = dataclasses.replace(
            _with_curve(evaluation, held_out),
            sample_weights=sample_weights(config, model, state, held_out),
        )
    if jax.process_index() == 0:
        if evaluation.held_out is None:
            evaluation = _with_answers_kept(evaluation, workdir)
        if evaluation.held_out is not None:
            examples = read_examples(source, test, evaluation.even_thresholds())
            evaluation = dataclasses.replace(evaluation, examples=examples)
        try:
            evaluation.save(workdir)
        except OSError as error:
            raise RunFailed(
                f"{workdir}: the evaluation cannot be written: {error.strerror}; once it can, the "
                "same command evaluates the run again"
            ) from error
    return evaluation


def _with_curve(evaluation: Evaluation, held_out: Predictions) -> Evaluation:
    """The evaluation with answers to images that set thresholds, and the curve that they make."""
    test = evaluation.test
    curve = budgeted_curve_from_confidences(
        held_out.log_odds, test.log_odds, test.correct, evaluation.mul_adds
    )
    return dataclasses.replace(evaluation, held_out=held_out, budgeted=curve)


def _with_answers_kept(evaluation: Evaluation, workdir: Path) -> Evaluation:
    """The evaluation with what the last one in the workdir holds on images that set thresholds.

    It stays as it is if that one has no such images or is of another network.
    """
    try:
        last = Evaluation.load(workdir)
    except UserError:
        return evaluation
    if last.held_out is None or not evaluation.is_of(last.step, last.network):
        return evaluation
    split = last.thresholds_from
    return dataclasses.replace(
        _with_curve(evaluation, last.held_out),
        thresholds_from=split,
        sample_weights=last.sample_weights,
        splits=_with_split_of(evaluation.splits, last.splits, split),
        digests=_with_split_of(evaluation.digests, last.digests, split),
        held_out_kept=True,
    )


def _with_split_of(
    texts: Mapping[str, str] | None, last: Mapping[str, str] | None, split: str
) -> dict[str, str] | None:
    """The texts, with that of a split as in the last evaluation; without it where it has none."""
    merged = {**(texts or {}), split: (last or {}).get(split)}
    return {name: text for name, text in merged.items() if text is not None} or None


def anytime_table(
    predictions: Predictions, mul_adds: NDArray[np.floating]
) -> list[dict[str, float]]:
    """One row for each exit: exit (from 1), mul_adds, top1 and top5 in percent, mean loss."""
    return [
        {
            "exit": k + 1,
            "mul_adds": float(mul_adds[k]),
            "top1": float(predictions.top1[k]),
            "top5": float((100.0 * predictions.correct_top5[k]).mean()),
            "loss": float(predictions.losses[k].mean(dtype=np.float64)),
        }
        for k in range(len(predictions.losses))
    ]


def shots_table(
    predictions: Predictions, class_counts: NDArray[np.integer]
) -> list[dict[str, float | None]]:
    """Accuracy of each exit on frequent and on rare classes (Liu et al., CVPR 2019, section 5).

    Args:
        predictions: of the test images.
        class_counts: training images of each class [C].

    Returns:
        One row for each exit: exit (from 1); many, medium and few, top-1 in percent on the classes
        with over 100, 20 to 100 and under 20 training images; None where there are none.
    """
    groups = shot_groups(predictions.labels, class_counts)
    return [
        {"exit": k + 1}
        | {
            name: 100 * float(correct[members].mean()) if members.any() else None
            for name, members in groups.items()
        }
        for k, correct in enumerate(predictions.correct)
    ]


def sample_weights(
    config: ConfigDict, model: MultiExitNetwork, state: TrainState, predictions: Predictions
) -> SampleWeights | None:
    """Weights that training with this state would give some of these images, as one batch.

    Args:
        config: a run's configuration.
        model: its network.
        state: with the parameters of the weight-prediction network.
        predictions: of the images, of which at most MAX_IMAGES_WEIGHTED are chosen at random.

    Returns:
        The weights of the chosen images; None for plain training.
    """
    if config.weighting.kind == "none":
        return None
    chosen = np.random.default_rng(0).permutation(len(predictions.labels))[:MAX_IMAGES_WEIGHTED]
    read = predictions.smoothed_losses
    losses = (predictions.losses if read is None else read)[:, chosen].T
    weighting = create_weighting(config.weighting, model, axis_name=None)
    wpn_params = jax.device_get(state.wpn_params)
    weights = weighting(wpn_params, losses, predictions.confidences[:, chosen].T)
    return SampleWeights(losses, np.asarray(weights, dtype=np.float32))


def summary_lines(evaluation: Evaluation) -> list[str]:
    """The results for a person to read: every exit, and what stopping early saves without loss."""
    lines = ["exit  mul-adds [M]  top-1 [%]  top-5 [%]  loss"]
    for row in evaluation.anytime:
        lines.append(
            f"{row['exit']:4d}  {row['mul_adds'] / 1e6:12.2f}  {row['top1']:9.2f}  "
            f"{row['top5']:9.2f}  {row['loss']:.4f}"
        )
    if evaluation.held_out is None:
        lines.append(
            f"no images of {evaluation.thresholds_from!r} are at hand: without them no thresholds "
            "for early exit, no budgeted curve, no examples and no sample weights can be made"
        )
        return lines
    # Chosen without the test images: the best point of the curve on them would flatter.
    choice = evaluation.without_loss
    point = evaluation.outcome(evaluation.test, choice.thresholds)
    lines.append(
        f"images leaving early: {point['top1']:.2f}% (last exit: "
        f"{100 * evaluation.test.correct[-1].mean():.2f}%) with {point['mul_adds'] / 1e6:.2f} M "
        f"mul-adds ({100 * point['mul_adds'] / evaluation.mul_adds[-1]:.0f}% of the last exit's), "
        f"with the cheapest thresholds that lose no accuracy on the "
        f"{len(evaluation.held_out.labels):,} images of {evaluation.thresholds_from!r}"
        + (", kept from an earlier evaluation" if evaluation.held_out_kept else "")
    )
    asked = shares_of(choice.q, len(evaluation.mul_adds))
    found = np.array([point[f"share_{k}"] for k in range(1, len(asked) + 1)])
    if are_shifted(asked, found):
        lines.append(
            f"at exits 1 to {len(asked)} leave {', '.join(percentages(found))} of the test "
            f"images, where {', '.join(percentages(asked))} were asked for"
        )
    return lines
