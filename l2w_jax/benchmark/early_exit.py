"""Time, not only mul-adds: what stopping early saves on this machine, on a run's test images."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from l2w_jax.benchmark.runtimes import RUNTIMES, Runtime
from l2w_jax.config import stored
from l2w_jax.early_exit import rules
from l2w_jax.early_exit.latency import all_leave_at, milliseconds
from l2w_jax.early_exit.selection import thresholds_of
from l2w_jax.evaluation import results
from l2w_jax.files import told_if_unwritable, write_atomically, write_json
from l2w_jax.interop.exported_folder import ImageFormat
from l2w_jax.models import create_network
from l2w_jax.models.preprocessing import channel_statistics
from l2w_jax.report import figures, png
from l2w_jax.run.images import open_evaluated
from l2w_jax.run.restore import restore_evaluated

BATCH_SIZES = (1, 32, 256)

LATENCY_PICTURE = Path("plots", "latency.png")

# Points of the budgeted curve that are timed.
TIMED_QS = (0.1, 0.3, 0.5, 0.7, 0.9, 1.1, 1.3, 1.6, 1.9)

# For each batch size at least this many images are timed, so that not all leave at one exit.
LEAST_IMAGES = 64


def benchmark_early_exit(
    workdir: Path,
    runtimes: Sequence[str] = ("jax",),
    batch_sizes: Sequence[int] = BATCH_SIZES,
    repeats: int = 5,
) -> dict[str, Any]:
    """Times the network of an evaluated run.

    Args:
        workdir: folder of the run.
        runtimes: keys of `runtimes.RUNTIMES`; they take turns.
        batch_sizes: images that are classified together.
        repeats: how often each is timed; the median counts.

    Returns:
        What latency.json holds: device, step and checksum of the network, and for each batch size
        and runtime the time per image in ms of the full network (full_ms; in JAX in one piece), of
        stopping at each exit (exits: exit, ms, top1) and along the budgeted curve (budgeted: q, ms,
        mul_adds, top1). The timed images come from all over the test split; mul-adds and accuracies
        are those of the whole split, in JAX.

    Raises:
        UserError: the folder is not that of an evaluated run, its data are not there, or a runtime
            is not installed or cannot run this network.
    """
    config = stored.read_config(workdir)
    evaluation = results.Evaluation.load(workdir)
    state = restore_evaluated(config, workdir, evaluation)
    model = create_network(config)
    mean, deviation = channel_statistics(config.dataset.name)
    # The whole image, since images of a split are already cropped.
    image_format = ImageFormat(config.dataset.image_size, 1.0, mean.tolist(), deviation.tolist())
    made = [RUNTIMES[name](model, state.variables, image_format) for name in runtimes]
    source = open_evaluated(config, workdir, evaluation, ("test",))
    timed = []
    for batch_size in batch_sizes:
        count = batch_size * -(-LEAST_IMAGES // batch_size)
        spread = np.concatenate([image["image"] for image in source.spread_images("test", count)])
        images = np.resize(spread, (count, *spread.shape[1:]))
        timed += time_network(made, images, batch_size, evaluation, repeats)
    return {
        "device": jax.devices()[0].device_kind,
        "step": int(state.step),
        "network": evaluation.network,
        "batch_sizes": timed,
    }


def write_latency(workdir: Path, latency: Mapping[str, Any]) -> None:
    """Writes what `benchmark_early_exit` measured, and its figure, into the folder of the run.

    Raises:
        UserError: it cannot be written to.
    """
    picture = png.png(png.figure(figures.latency(latency["batch_sizes"])))
    with told_if_unwritable(workdir):
        write_json(workdir / results.LATENCY_FILE, latency)
        write_atomically(workdir / LATENCY_PICTURE, picture)


def time_network(
    runtimes: Sequence[Runtime],
    images: NDArray[Any],
    batch_size: int,
    evaluation: results.Evaluation,
    repeats: int,
) -> list[dict[str, Any]]:
    """The entries of latency.json's batch_sizes for one batch size, one for each runtime.

    Args:
        runtimes: they take turns.
        images: [N, H, W, 3], a multiple of the batch size.
        batch_size: images that are classified together.
        evaluation: has the held-out scores, which set thresholds, and the accuracies.
        repeats: how often each is timed.
    """

    def in_batches(predict: Callable[[NDArray[Any]], Any]) -> Callable[[NDArray[Any]], None]:
        def one_pass(images: NDArray[Any]) -> None:
            for start in range(0, len(images), batch_size):
                predict(images[start : start + batch_size])

        return one_pass

    num_exits = len(evaluation.mul_adds)
    of_exits = [all_leave_at(k, num_exits) for k in range(num_exits)]
    held_out = evaluation.threshold_images().scores(rules.DEFAULT_RULE)
    of_budgets = [thresholds_of(q, held_out) for q in TIMED_QS]
    ways = [
        way
        for runtime in runtimes
        for way in (
            runtime.full_network,
            *map(runtime.with_thresholds, [*of_exits, *of_budgets]),
        )
    ]
    measured = milliseconds(list(map(in_batches, ways)), images, repeats)
    outcomes = [evaluation.outcome(evaluation.test, thresholds) for thresholds in of_budgets]
    points = [{"mul_adds": point["mul_adds"], "top1": point["top1"]} for point in outcomes]
    entries = []
    for runtime, times in zip(runtimes, np.split(measured, len(runtimes)), strict=True):
        full_ms, *rest = times.tolist()
        exits = [
            {"exit": k + 1, "ms": rest[k], "top1": evaluation.anytime[k]["top1"]}
            for k in range(num_exits)
        ]
        budgeted = [
            {"q": q, "ms": ms, **point}
            for q, ms, point in zip(TIMED_QS, rest[num_exits:], points, strict=True)
        ]
        entries.append(
            {
                "runtime": runtime.name,
                "batch_size": batch_size,
                "full_ms": full_ms,
                "exits": exits,
                "budgeted": budgeted,
            }
        )
    return entries
