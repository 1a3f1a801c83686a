"""Runs of two ways of training, evaluated, to compare."""

import dataclasses

import numpy as np
from written_runs import (
    anytime_rows,
    made_evaluation,
    made_predictions,
    random_predictions,
    write_config,
)

from l2w_jax.evaluation.results import Evaluation


def write_run(folder, seed, kind, top1):
    """A run with two exits, of 1 and 3 million mul-adds, whose early exit gains a point."""
    write_config(folder, seed, kind)
    made_evaluation(
        anytime=anytime_rows([1e6, 3e6], top1),
        budgeted=[
            {"q": 9.0, "mul_adds": 3e6, "top1": top1[1], "share_1": 0.0, "share_2": 1.0},
            {"q": 0.1, "mul_adds": 1e6, "top1": top1[0] + 1, "share_1": 1.0, "share_2": 0.0},
        ],
        test=random_predictions(np.random.default_rng(0), 360, num_exits=2),
        held_out=made_predictions(
            np.array([[0.1, 0.2, 0.8, 0.9], [0.5] * 4]),
            np.array([[False, False, True, True], [True] * 4]),
        ),
    ).save(folder)
    return folder


def evaluate_with(folder, **fields):
    """Leaves a run as if it had been evaluated with other data: these fields of the evaluation."""
    dataclasses.replace(Evaluation.load(folder), **fields).save(folder)


def write_ways(folder):
    """Two runs of each of two ways, "weighted" and "plain"."""
    return [
        write_run(folder / f"{name}-{seed}", seed, kind, (50.0 + 2 * seed, 60.0 + gain))
        for name, kind, gain in (("weighted", "meta", 4), ("plain", "none", 0))
        for seed in (0, 1)
    ]
