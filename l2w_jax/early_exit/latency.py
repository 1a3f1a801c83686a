"""How long a network takes on this machine, exit by exit."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l2w_jax.early_exit.budget import EVERYBODY_LEAVES, NOBODY_LEAVES
from l2w_jax.early_exit.predictor import EarlyExitPredictor
from l2w_jax.models import MultiExitNetwork


def milliseconds_per_exit(
    model: MultiExitNetwork,
    variables: Mapping[str, Any],
    images: NDArray[np.floating],
    repeats: int = 15,
) -> NDArray[np.float64]:
    """Time per image when a whole batch stops at exit k, [K] in ms, without compilation.

    Args:
        model: the network.
        variables: its {"params", "batch_stats"}.
        images: one batch [N, H, W, 3] as the network takes them; N is one of the sizes that
            stages are compiled for.
        repeats: how often each is timed; the median counts.
    """
    num_exits = model.num_exits
    predictor = EarlyExitPredictor(
        model, variables, all_leave_at(0, num_exits), batch_sizes=[len(images)]
    )
    by_exit = [predictor.with_thresholds(all_leave_at(k, num_exits)) for k in range(num_exits)]
    return milliseconds(by_exit, images, repeats)


def milliseconds(
    functions: Sequence[Callable[[NDArray[Any]], Any]], images: NDArray[Any], repeats: int = 15
) -> NDArray[np.float64]:
    """Median time per image of functions of a batch, float [functions] in ms.

    They take turns, so that whatever else the machine does slows all alike; a first round, which
    compiles them, is not timed.
    """
    durations = np.empty((repeats + 1, len(functions)))
    for of_round in durations:
        for i, function in enumerate(functions):
            start = time.perf_counter()
            function(images)
            of_round[i] = time.perf_counter() - start
    return 1000 * np.median(durations[1:], axis=0) / len(images)


def all_leave_at(k: int, num_exits: int) -> list[np.float32]:
    """Thresholds with which every image goes to exit k, from 0, and stops there: [K]."""
    return [NOBODY_LEAVES] * k + [EVERYBODY_LEAVES] * (num_exits - k)
