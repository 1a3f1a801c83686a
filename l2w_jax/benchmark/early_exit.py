"""Time, not only mul-adds: what stopping early saves on this machine, on a run's test images."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from l2w_jax.config import stored
from l2w_jax.data import open_source
from l2w_jax.early_exit import EarlyExitPredictor
from l2w_jax.early_exit.budget import first_exits, operating_point
from l2w_jax.early_exit.latency import all_leave_at, milliseconds
from l2w_jax.early_exit.selection import thresholds_of
from l2w_jax.evaluation import results
from l2w_jax.files import told_if_unwritable, write_atomically, write_json
from l2w_jax.models import MultiExitNetwork, create_network
from l2w_jax.models.preprocessing import channel_statistics, normalize
from l2w_jax.report import png as plots
from l2w_jax.run.restore import restore_evaluated

BATCH_SIZES = (1, 32, 256)

# Points of the budgeted curve that are timed.
TIMED_QS = (0.1, 0.3, 0.5, 0.7, 0.9, 1.1, 1.3, 1.6, 1.9)

# Of each batch size, at least so many images are timed: they do not all leave at one exit.
LEAST_IMAGES = 64


def benchmark_early_exit(
    workdir: Path, batch_sizes: Sequence[int] = BATCH_SIZES, repeats: int = 5
) -> dict[str, Any]:
    """Times the network of an evaluated run; writes latency.json and plots/latency.png beside it.

    Args:
        workdir: folder of the run.
        batch_sizes: images that are classified together.
        repeats: how often each is timed; the median counts.

    Returns:
        What latency.json holds: device, step of the network, and for each batch size the time per
        image in ms of the full network in one piece (full_ms), of stopping at each exit (exits:
        exit, ms, top1) and along the budgeted curve (budgeted: q, ms, mul_adds, top1). Timed are
        images from all over the test split; mul-adds and accuracies are those of all of it.

    Raises:
        UserError: the folder is not that of an evaluated run, or its data are not there.
    """
    config = stored.read_config(workdir)
    evaluation = results.read_results(workdir)
    evaluation.check_thresholds()
    state = restore_evaluated(config, workdir, evaluation)
    variables = state.variables
    model = create_network(config)
    mean, deviation = channel_statistics(config.dataset.name)

    def preprocess(images: jax.Array) -> jax.Array:
        return normalize(images, mean, deviation)

    predictor = EarlyExitPredictor(model, variables, all_leave_at(0, model.num_exits), preprocess)
    full_network = _full_network(model, variables, preprocess)
    source = open_source(config)
    timed = []
    for batch_size in batch_sizes:
        count = batch_size * -(-LEAST_IMAGES // batch_size)
        spread = np.concatenate([image["image"] for image in source.spread_images("test", count)])
        images = np.resize(spread, (count, *spread.shape[1:]))
        timed.append(time_network(predictor, full_network, images, batch_size, evaluation, repeats))
    latency = {
        "device": jax.devices()[0].device_kind,
        "step": int(state.step),
        "batch_sizes": timed,
    }
    figure = plots.latency_figure(timed)
    with told_if_unwritable(workdir):
        write_json(workdir / results.LATENCY_FILE, latency)
        write_atomically(workdir / "plots" / "latency.png", plots.png(figure))
    return latency


def time_network(
    predictor: EarlyExitPredictor,
    full_network: Callable[[NDArray[Any]], Any],
    images: NDArray[Any],
    batch_size: int,
    evaluation: results.Results,
    repeats: int,
) -> dict[str, Any]:
    """One entry of latency.json's batch_sizes.

    Args:
        predictor: with any thresholds.
        full_network: all exits at once.
        images: [N, H, W, 3], a multiple of the batch size.
        batch_size: images that are classified together.
        evaluation: held-out confidences, that set thresholds, and the accuracies.
        repeats: how often each is timed.
    """

    def in_batches(predict: Callable[[NDArray[Any]], Any]) -> Callable[[NDArray[Any]], None]:
        def one_pass(images: NDArray[Any]) -> None:
            for start in range(0, len(images), batch_size):
                predict(images[start : start + batch_size])

        return one_pass

    num_exits = len(evaluation.mul_adds)
    of_exits = [all_leave_at(k, num_exits) for k in range(num_exits)]
    of_budgets = [thresholds_of(q, evaluation.arrays["thresholds_confidences"]) for q in TIMED_QS]
    ways = [full_network, *map(predictor.with_thresholds, [*of_exits, *of_budgets])]
    full_ms, *measured = milliseconds(list(map(in_batches, ways)), images, repeats).tolist()
    exits = [
        {"exit": k + 1, "ms": measured[k], "top1": evaluation.summary["anytime"][k]["top1"]}
        for k in range(num_exits)
    ]
    budgeted = []
    for q, thresholds, ms in zip(TIMED_QS, of_budgets, measured[num_exits:], strict=True):
        left_at = first_exits(evaluation.arrays["test_confidences"], thresholds)
        point = operating_point(left_at, evaluation.arrays["test_correct"], evaluation.mul_adds)
        budgeted.append(
            {
                "q": q,
                "ms": ms,
                "mul_adds": point["mul_adds"],
                "top1": point["top1"],
            }
        )
    return {
        "batch_size": batch_size,
        "full_ms": full_ms,
        "exits": exits,
        "budgeted": budgeted,
    }


def _full_network(
    model: MultiExitNetwork,
    variables: Mapping[str, Any],
    preprocess: Callable[[jax.Array], jax.Array],
) -> Callable[[NDArray[Any]], Any]:
    """All exits of the network, compiled in one piece."""
    placed = jax.device_put(variables)

    @jax.jit
    def probabilities(variables: Mapping[str, Any], images: jax.Array) -> jax.Array:
        return jax.nn.softmax(model.apply(variables, preprocess(images), train=False))

    return lambda images: jax.device_get(probabilities(placed, images))
