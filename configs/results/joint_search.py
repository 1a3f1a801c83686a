"""What is gained by searching the thresholds of all exits jointly, on held-out images.

python configs/results/joint_search.py RUN ...

Coordinate descent over quantiles on one half of the held-out images, kept where the other half
agrees; judged on the test images.
"""

import sys
from pathlib import Path

import numpy as np

from l2w_jax.early_exit.budget import first_exits
from l2w_jax.early_exit.selection import candidates
from l2w_jax.evaluation.results import Evaluation


def worth(thresholds, scores, correct, costs, price):
    """Accuracy less what the mul-adds are worth, `price` a mul-add."""
    exits = first_exits(scores, thresholds)
    return correct[exits, np.arange(len(exits))].mean() - price * costs[exits].mean()


def descend(thresholds, *images):
    """Sets threshold by threshold to the best of 50 quantiles, until none moves."""
    best, moved = thresholds.copy(), True
    while moved:
        moved = False
        for k in range(len(best) - 1):
            for score in np.quantile(images[0][k], np.arange(50) / 50):
                trial = best.copy()
                trial[k] = score
                if worth(trial, *images) > worth(best, *images):
                    best, moved = trial, True
    return best


def gain(run):
    """Points of top-1 on the test images at equal mul-adds, mean over eleven budgets."""
    costs, held_out = np.array(run.mul_adds), run.held_out
    family = candidates(held_out.log_odds, held_out.correct, costs)
    points = [run.outcome(run.test, member.thresholds) for member in family]
    curve = np.array(sorted((point["mul_adds"], point["top1"]) for point in points)).T
    fitted, checked = np.array_split(np.random.default_rng(0).permutation(len(held_out.labels)), 2)
    gains = []
    for budget in costs[-1] * np.linspace(0.3, 0.8, 11):
        member = min(family, key=lambda member: abs(member.cost - budget))
        # What accuracy costs near here, by the family's own curve.
        near = [c for c in family if abs(c.cost - budget) < 0.1 * costs[-1]]
        slope = np.polyfit([c.cost for c in near], [c.top1 / 100 for c in near], 1)[0]
        parts = [
            (held_out.log_odds[:, part], held_out.correct[:, part], costs, max(slope, 0))
            for part in (fitted, checked)
        ]
        found = descend(member.thresholds, *parts[0])
        if worth(found, *parts[1]) <= worth(member.thresholds, *parts[1]):
            found = member.thresholds
        point = run.outcome(run.test, found)
        gains.append(point["top1"] - np.interp(point["mul_adds"], *curve))
    return np.mean(gains)


for workdir in sys.argv[1:]:
    points = gain(Evaluation.load(Path(workdir)))
    print(f"{workdir}: {points:+.3f} points of top-1 at equal mul-adds")
