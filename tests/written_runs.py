"""Run folders as training and evaluation leave them, without training."""

import dataclasses
import json

import numpy as np

from l2w_jax.config import default_config, to_json
from l2w_jax.evaluation.exit_examples import ExitExamples
from l2w_jax.evaluation.predictions import Predictions
from l2w_jax.evaluation.results import Evaluation, SampleWeights


def made_predictions(confidences, correct):
    """Answers [K, N] to N images of class 0: class 0 where they are right, class 1 elsewhere."""
    return Predictions(
        positions=np.arange(confidences.shape[1], dtype=np.int32),
        labels=np.zeros(confidences.shape[1], np.int32),
        losses=-np.log(np.clip(confidences, 1e-6, 1)).astype(np.float32),
        confidences=confidences.astype(np.float32),
        predicted=np.where(correct, 0, 1).astype(np.int32),
        correct=correct,
        correct_top5=np.ones_like(correct),
    )


def random_predictions(rng, num_images, num_exits=3):
    """Answers that are right as often as they are confident, the later exits more often."""
    strength = rng.normal(1, 1.5, num_images) + 0.6 * np.arange(num_exits)[:, None]
    confidences = (1 / (1 + np.exp(-strength))).astype(np.float32)
    luck = 0.8 * rng.random(num_images) + 0.2 * rng.random((num_exits, num_images))
    return made_predictions(confidences, luck < confidences)


def anytime_rows(mul_adds, top1):
    """The anytime table of exits of this cost and this accuracy in percent."""
    return [
        {"exit": k, "mul_adds": cost, "top1": right, "top5": 90.5, "loss": 0.5 / k}
        for k, (cost, right) in enumerate(zip(mul_adds, top1, strict=True), start=1)
    ]


def made_evaluation(**fields):
    """An evaluation of a network with three exits of 1.5, 3 and 4.5 million mul-adds."""
    rng = np.random.default_rng(0)
    given = Evaluation(
        step=40,
        dataset="digits",
        class_names=["cat", "<dog>"],
        thresholds_from="holdout",
        anytime=anytime_rows([1.5e6, 3e6, 4.5e6], [71.25, 72.25, 73.25]),
        budgeted=[
            {
                "q": q,
                "mul_adds": 1e6 * (1 + q),
                "top1": 75 + q,
                "share_1": 0.5,
                "share_2": 0.3,
                "share_3": 0.2,
            }
            for q in (0.5, 1.0, 1.5)
        ],
        test=random_predictions(rng, 360),
        held_out=random_predictions(rng, 180),
    )
    return dataclasses.replace(given, **fields)


def made_examples(rng):
    """Two images that left at the first exit, and two at the second."""
    return ExitExamples(
        images=rng.integers(0, 256, (4, 8, 8, 3)).astype(np.uint8),
        exits=np.array([0, 0, 1, 1]),
        kinds=np.array(["sure", "unsure", "sure", "unsure"]),
        labels=np.array([0, 1, 0, 1]),
        predicted=np.array([0, 1, 1, 1]),
        confidences=np.float32([0.9, 0.8, 0.7, 0.6]),
    )


def write_config(folder, seed=0, kind="meta"):
    config = default_config()
    config.seed = seed
    config.weighting.kind = kind
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(to_json(config))


def write_run(folder, seed=0, kind="meta"):
    """A run with three exits, as training and evaluation leave it; more accurate by its seed."""
    rng = np.random.default_rng(seed)
    write_config(folder, kind=kind)
    losses = rng.exponential(size=(30, 3)).astype(np.float32)
    evaluation = made_evaluation(
        examples=made_examples(rng),
        sample_weights=None if kind == "none" else SampleWeights(losses, 1 + losses / 10),
    )
    for row in evaluation.anytime:
        row["top1"] += seed
    evaluation.save(folder)
    lines = [
        {"step": 20, "loss": [1.0, 0.9, 0.8], "top1": [50, 60, 70]},
        {"step": 40, "loss": [0.5, 0.4, 0.3], "top1": [70, 80, 90]},
        {"step": 40, "holdout_top1": [60, 70, 80]},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"step": 60, "lo')
    return folder
