"""Run folders as training and evaluation leave them, without training."""

import json

import numpy as np

from l2w_jax.config import default_config, to_json
from l2w_jax.files import write_arrays, write_json


def write_run(folder, seed=0, kind="meta", class_names=("cat", "<dog>")):
    """A run with three exits, as training and evaluation leave it."""
    rng = np.random.default_rng(seed)
    config = default_config()
    config.weighting.kind = kind
    folder.mkdir()
    (folder / "config.json").write_text(to_json(config))
    anytime = [
        {"exit": k, "mul_adds": 1.5e6 * k, "top1": 70.25 + seed + k, "top5": 90.5, "loss": 0.5 / k}
        for k in (1, 2, 3)
    ]
    budgeted = [
        {
            "q": q,
            "mul_adds": 1e6 * (1 + q),
            "top1": 75 + q,
            "share_1": 0.5,
            "share_2": 0.3,
            "share_3": 0.2,
        }
        for q in (0.5, 1.0, 1.5)
    ]
    write_json(
        folder / "evaluation.json",
        {
            "step": 40,
            "class_names": list(class_names),
            "test_images": 360,
            "thresholds_from": "holdout",
            "thresholds_images": 180,
            "anytime": anytime,
            "budgeted": budgeted,
        },
    )
    arrays = {
        "examples_images": rng.integers(0, 256, (4, 8, 8, 3)).astype(np.uint8),
        "examples_exits": np.array([0, 0, 1, 1]),
        "examples_kinds": np.array(["sure", "unsure", "sure", "unsure"]),
        "examples_labels": np.array([0, 1, 0, 1]),
        "examples_predicted": np.array([0, 1, 1, 1]),
        "examples_confidences": np.float32([0.9, 0.8, 0.7, 0.6]),
    }
    if kind != "none":
        losses = rng.exponential(size=(30, 3)).astype(np.float32)
        arrays |= {"weighted_losses": losses, "weighted_weights": 1 + losses / 10}
    write_arrays(folder / "evaluation.npz", arrays)
    lines = [
        {"step": 20, "loss": [1.0, 0.9, 0.8], "top1": [50, 60, 70]},
        {"step": 40, "loss": [0.5, 0.4, 0.3], "top1": [70, 80, 90]},
        {"step": 40, "holdout_top1": [60, 70, 80]},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"step": 60, "lo')
    return folder
