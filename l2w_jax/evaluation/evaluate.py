"""Evaluation of a trained network: every exit by itself, and with images leaving early."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from numpy.typing import NDArray

from l2w_jax.data import Source
from l2w_jax.early_exit import exit_shares, find_thresholds, mul_adds_per_exit
from l2w_jax.early_exit.budget import budgeted_curve_from_confidences
from l2w_jax.evaluation.exit_examples import read_examples
from l2w_jax.evaluation.predictions import Arrays, Predictions, predict_all
from l2w_jax.files import write_arrays, write_atomically, write_csv, write_json
from l2w_jax.models import MultiExitNetwork, create_network
from l2w_jax.report import png as plots
from l2w_jax.training.state import TrainState
from l2w_jax.training.weighting import create_weighting

# How many images the learned weights are shown for: more dots would hide one another.
MAX_IMAGES_WEIGHTED = 5000


def evaluate(
    config: ConfigDict, state: TrainState, source: Source, workdir: str | Path
) -> dict[str, Any]:
    """Evaluates a state on the test images and leaves the results in the workdir.

    Written by the first process, each file atomically: anytime.csv (exit, mul_adds, top1, top5,
    loss), budgeted.csv (q, mul_adds, top1, share_1 to share_K), for a long-tailed data set
    shots.csv (`shots_table`), evaluation.json (the same numbers
    and which images they come from), evaluation.npz (`Predictions` of the test images as test_*, of
    those that set the thresholds as thresholds_*; `sample_weights` as weighted_*; test images that
    leave at each exit, when about as many leave at each, as examples_*) and plots/*.png.
    Percentages are 0 to 100, shares 0 to 1, losses in nats. Without images to set thresholds from,
    as where only test images are at hand, all but the anytime table is left out.

    Args:
        config: a run's configuration.
        state: its parameters, statistics and weight-prediction network.
        source: the data.
        workdir: the folder of the run.

    Returns:
        What evaluation.json holds.

    Raises:
        UserError: an answer is not finite.
    """
    thresholds_split = config.dataset.thresholds_from
    model = create_network(config)
    variables = state.variables
    test = predict_all(config, model, variables, source, "test")
    held_out = None
    if {"train": source.num_train, "holdout": source.num_holdout}[thresholds_split]:
        held_out = predict_all(config, model, variables, source, thresholds_split)
    mul_adds = mul_adds_per_exit(model, config.dataset.image_size)

    results = {
        "step": int(state.step),
        "dataset": config.dataset.name,
        "class_names": list(source.class_names),
        "splits": dict(source.origins),
        "test_images": len(test.labels),
        "thresholds_from": thresholds_split,
        "thresholds_images": len(held_out.labels) if held_out else 0,
        "anytime": anytime_table(test, mul_adds),
        "budgeted": [],
    }
    if config.dataset.imbalance_factor and source.num_train:
        results["shots"] = shots_table(test, source.train_class_counts)
    groups = {"test": vars(test)}
    if held_out:
        results["budgeted"] = budgeted_curve_from_confidences(
            held_out.confidences, test.confidences, test.correct, mul_adds
        )
        groups["thresholds"] = vars(held_out)
        groups["weighted"] = sample_weights(config, model, state, held_out)
    if jax.process_index() == 0:
        if held_out:
            even_thresholds = find_thresholds(held_out.confidences, exit_shares(1, model.num_exits))
            groups["examples"] = read_examples(source, vars(test), even_thresholds)
        _write(Path(workdir), results, groups)
    return results


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
    counts = class_counts[predictions.labels]
    groups = {"many": counts > 100, "medium": (counts >= 20) & (counts <= 100), "few": counts < 20}
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
) -> dict[str, NDArray[np.float32]]:
    """Weights that training with this state would give some of these images, as one batch.

    Args:
        config: a run's configuration.
        model: its network.
        state: with the parameters of the weight-prediction network.
        predictions: of the images, of which at most MAX_IMAGES_WEIGHTED are chosen at random.

    Returns:
        losses and weights of the chosen images, each [n, K]; empty for plain training.
    """
    if config.weighting.kind == "none":
        return {}
    chosen = np.random.default_rng(0).permutation(len(predictions.labels))[:MAX_IMAGES_WEIGHTED]
    losses = predictions.losses[:, chosen].T
    weighting = create_weighting(config.weighting, model, axis_name=None)
    wpn_params = jax.device_get(state.wpn_params)
    weights = weighting(wpn_params, losses, predictions.confidences[:, chosen].T)
    return {"losses": losses, "weights": np.asarray(weights, dtype=np.float32)}


def summary_lines(results: Mapping[str, Any]) -> list[str]:
    """The results for a person to read: the anytime table, and the best of the budgeted curve."""
    lines = ["exit  mul-adds [M]  top-1 [%]  top-5 [%]  loss"]
    for row in results["anytime"]:
        lines.append(
            f"{row['exit']:4d}  {row['mul_adds'] / 1e6:12.2f}  {row['top1']:9.2f}  "
            f"{row['top5']:9.2f}  {row['loss']:.4f}"
        )
    last = results["anytime"][-1]
    if not results["budgeted"]:
        lines.append(
            f"no images of {results['thresholds_from']!r} are at hand: without them no thresholds "
            "for early exit, no budgeted curve, no examples and no sample weights can be made"
        )
        return lines
    best = max(results["budgeted"], key=lambda row: (row["top1"], -row["mul_adds"]))
    lines.append(
        f"images leaving early: up to {best['top1']:.2f}% with {best['mul_adds'] / 1e6:.2f} M "
        f"mul-adds ({100 * best['mul_adds'] / last['mul_adds']:.0f}% of the last exit's), "
        f"thresholds from {results['thresholds_images']} images of "
        f"{results['thresholds_from']!r}"
    )
    return lines


def _write(workdir: Path, results: Mapping[str, Any], groups: Mapping[str, Arrays]) -> None:
    write_csv(workdir / "anytime.csv", results["anytime"])
    figures = {"accuracy": plots.accuracy_figure(results["anytime"], results["budgeted"])}
    if results["budgeted"]:
        write_csv(workdir / "budgeted.csv", results["budgeted"])
        figures["exits"] = plots.exit_shares_figure(results["budgeted"])
    else:
        # Of an earlier evaluation: they would pass for this one's.
        for stale in ("budgeted.csv", "plots/exits.png", "plots/weights.png"):
            (workdir / stale).unlink(missing_ok=True)
    if "shots" in results:
        write_csv(workdir / "shots.csv", results["shots"])
    write_arrays(
        workdir / "evaluation.npz",
        {
            f"{group}_{field}": array
            for group, fields in groups.items()
            for field, array in fields.items()
        },
    )
    if weighted := groups.get("weighted"):
        figures["weights"] = plots.weights_figure(weighted["losses"], weighted["weights"])
    for name, figure in figures.items():
        write_atomically(workdir / "plots" / f"{name}.png", plots.png(figure))
    # Last: whoever finds it finds the others too.
    write_json(workdir / "evaluation.json", results)
