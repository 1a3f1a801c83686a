"""What each figure shows, computed once for every way of drawing it.

Builders turn evaluations, timings and metrics into charts. With one run, a chart's two series
have a colour each; with several, each run has its own.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l2w_jax.early_exit import calibration
from l2w_jax.evaluation.results import Evaluation, SampleWeights
from l2w_jax.evaluation.ways import Way
from l2w_jax.report.charts import Axis, Chart, Rule, Series

# Colours of a run's curve, and of its exits where it is the only run.
EARLY_COLOUR, FIXED_COLOUR = 0, 1

# A smaller range of accuracy, in percent, would make much of single images.
LEAST_ACCURACY_RANGE = 2.0

# A loss below this is as good as none: the network gives the true class 99.99% probability.
SMALLEST_LOSS_SHOWN = 1e-4

# Ranges of loss over which the mean weight is taken; one or two samples make no mean.
LOSS_RANGES = 12
LEAST_SAMPLES = 3

# Between these lies what is told in percent.
_OF_PERCENT = {"lowest": 0.0, "highest": 100.0}

ACCURACY = Axis("top-1 on test images", "%", ".2f", least_range=LEAST_ACCURACY_RANGE, **_OF_PERCENT)

_TOP1 = Axis("top-1", "%", ".2f", **_OF_PERCENT)

# Fields of metrics.jsonl, lists of a number for each exit, and how the last one is shown.
TRAINING = (
    ("loss", "Training loss of the last exit", Axis("loss", "nats")),
    ("top1", "Training accuracy of the last exit", _TOP1),
    ("holdout_top1", "Held-out accuracy of the last exit", _TOP1),
)


def accuracy(evaluations: Mapping[str, Evaluation]) -> Chart:
    """Top-1 over mul-adds: of every fixed exit, and with images leaving early.

    The curve ends where all images leave at the first or at the last exit, so these exits lie on
    it. Any other exit above the curve is labelled so: there, early exit gains nothing.

    Args:
        evaluations: by the names of their runs.
    """
    divisor, unit = _mul_adds_unit(max(each.mul_adds[-1] for each in evaluations.values()))
    series = []
    for i, (run, evaluation) in enumerate(evaluations.items()):
        alone = len(evaluations) == 1
        above = exits_above_curve(evaluation)
        names = [
            f"exit {row['exit']}" + (", above the curve" if row["exit"] in above else "")
            for row in evaluation.anytime
        ]
        series.append(
            Series(
                "all images stop at one exit" if alone else f"{run}, one exit",
                _points(evaluation.anytime, "mul_adds", "top1", divisor),
                FIXED_COLOUR if alone else i,
                dashed=True,
                marked=True,
                names=names,
            )
        )
        if curve := evaluation.curve:
            series.append(
                Series(
                    "each image stops when confident" if alone else f"{run}, early exit",
                    _points(curve, "mul_adds", "top1", divisor),
                    EARLY_COLOUR if alone else i,
                )
            )
    return Chart("Accuracy over compute", _mul_adds_axis(unit), ACCURACY, series)


def exits_above_curve(evaluation: Evaluation) -> list[int]:
    """Exits, from 1, at which all images do better than early exits of the same mean cost."""
    curve = [(row["mul_adds"], row["top1"]) for row in evaluation.curve]
    if not curve:
        return []
    above = []
    for row in evaluation.anytime:
        # Several points of the curve may share one cost, with the first or the last exit.
        there = [top1 for cost, top1 in curve if cost == row["mul_adds"]]
        if row["top1"] > max(there, default=np.interp(row["mul_adds"], *np.transpose(curve))):
            above.append(int(row["exit"]))
    return above


def exit_shares(evaluation: Evaluation) -> Chart | None:
    """Share of the test images that leave at each exit, over their mean cost along the curve.

    None where there is no curve, or a single exit, whose curve is a point.
    """
    curve = evaluation.curve
    if not curve or len(evaluation.anytime) == 1:
        return None
    divisor, unit = _mul_adds_unit(evaluation.mul_adds[-1])
    bands = [
        Series(
            f"exit {k}",
            [(row["mul_adds"] / divisor, 100 * row[f"share_{k}"]) for row in curve],
            k - 1,
        )
        for k in range(1, len(evaluation.anytime) + 1)
    ]
    share = Axis("share of test images", "%", ".1f")
    return Chart("Where images leave the network", _mul_adds_axis(unit), share, bands, stacked=True)


def reliability(evaluation: Evaluation) -> Chart:
    """Accuracy of each exit on test images of like confidence (Guo et al., ICML 2017)."""
    test = evaluation.test
    points = map(calibration.reliability, test.confidences, test.correct)
    return _reliability("Accuracy over confidence", points)


def calibrated_reliability(evaluation: Evaluation) -> Chart | None:
    """`reliability` with the temperatures that were fitted; None where none were."""
    if evaluation.calibrated is None:
        return None
    points = (row["reliability"] for row in evaluation.calibrated)
    return _reliability("Accuracy over confidence, with temperatures", points)


def _reliability(title: str, points: Iterable[Sequence[Sequence[float]]]) -> Chart:
    """The points of each exit, (confidence, accuracy) from 0 to 1."""
    series = [
        Series(f"exit {k + 1}", [(100 * x, 100 * y) for x, y in of_exit], k, marked=True)
        for k, of_exit in enumerate(points)
    ]
    calibrated = Series(
        "perfectly calibrated", [(0.0, 0.0), (100.0, 100.0)], len(series), dashed=True
    )
    percent = {"unit": "%", "digits": ".1f", **_OF_PERCENT}
    return Chart(
        title,
        Axis("confidence", **percent),
        Axis("accuracy", **percent),
        [*series, calibrated],
    )


def class_shares(rows: Sequence[Mapping[str, Any]]) -> Chart:
    """Share of each class's test images that leaves at each exit.

    Args:
        rows: of `classes.leaving_by_class`, at least two.
    """
    num_exits = sum(name.startswith("share_") for name in rows[0])
    bands = [
        Series(
            f"exit {k}",
            [(i, 100 * row[f"share_{k}"]) for i, row in enumerate(rows, start=1)],
            k - 1,
            names=[row["name"] for row in rows],
        )
        for k in range(1, num_exits + 1)
    ]
    place = Axis("rank of the class, from the one that leaves earliest", digits=".0f", whole=True)
    share = Axis("share of its test images", "%", ".1f")
    return Chart("Which classes leave where", place, share, bands, stacked=True)


def weight_panels(sampled: SampleWeights) -> list[Chart]:
    """The learned weight of each image over its loss, a chart for each exit, and its mean.

    The mean is taken over the images in each of LOSS_RANGES ranges of loss of equal ratio, where
    there are at least LEAST_SAMPLES.
    """
    # Logarithmic: most losses of a trained network are tiny, and a few are large.
    losses = np.maximum(sampled.losses, SMALLEST_LOSS_SHOWN)
    edges = np.geomspace(losses.min(), max(losses.max(), 2 * losses.min()), LOSS_RANGES + 1)
    shown = (float(losses.min()), float(losses.max()))
    is_cut = bool((sampled.losses < SMALLEST_LOSS_SHOWN).any())
    note = f"below {SMALLEST_LOSS_SHOWN:g}: drawn at it" if is_cut else ""
    x = Axis("loss at the exit", "nats", ".2g", logarithmic=True, shown=shown, note=note)
    return [
        Chart(
            f"exit {k + 1}",
            x,
            Axis("weight", digits=".3f"),
            _weights_of_exit(losses[:, k], sampled.weights[:, k], edges),
            rules=[Rule("plain training", y=1.0)],
        )
        for k in range(losses.shape[1])
    ]


def _weights_of_exit(
    losses: NDArray[np.floating], weights: NDArray[np.floating], edges: NDArray[np.floating]
) -> list[Series]:
    """All images [n] by themselves, and the means of those between two edges."""
    of_range = np.digitize(losses, edges[1:-1])
    ranges = [of_range == i for i in range(LOSS_RANGES)]
    means = [
        (float(losses[members].mean()), float(weights[members].mean()))
        for members in ranges
        if np.count_nonzero(members) >= LEAST_SAMPLES
    ]
    images = list(zip(losses.tolist(), weights.tolist(), strict=True))
    return [
        Series("one image", images, EARLY_COLOUR, joined=False),
        Series("mean of images of similar loss", means, FIXED_COLOUR, marked=True),
    ]


def mean_weights(sampled: SampleWeights) -> Chart | None:
    """The means of `weight_panels` in one chart, to compare the exits; None without any."""
    panels = weight_panels(sampled)
    series = [
        Series(panel.title, panel.series[-1].points, k, marked=True)
        for k, panel in enumerate(panels)
        if panel.series[-1].points
    ]
    if not series:
        return None
    first = panels[0]
    return Chart("Mean weight over loss", first.x, first.y, series, rules=first.rules)


def latency(timed: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Top-1 over measured time, a chart for each batch size and runtime.

    Args:
        timed: entries with batch_size, runtime where several were timed, full_ms, and exits and
            budgeted, rows with ms and top1.
    """
    names = {
        "jax": "JAX",
        "onnx": "ONNX Runtime",
        "onnx_1_thread": "ONNX Runtime with one thread",
        "torch": "PyTorch",
        "torch_channels_last": "PyTorch, channels last",
    }

    def runtime(entry: Mapping[str, Any]) -> str:
        name = entry.get("runtime")
        return f" in {names.get(name, name)}" if name else ""

    return [
        Chart(
            f"Batch of {entry['batch_size']}{runtime(entry)}",
            Axis("time per image", "ms", from_zero=True),
            ACCURACY,
            [
                Series(
                    "all images stop at one exit",
                    _points(entry["exits"], "ms", "top1"),
                    FIXED_COLOUR,
                    dashed=True,
                    marked=True,
                ),
                Series(
                    "each image stops when confident",
                    sorted(_points(entry["budgeted"], "ms", "top1")),
                    EARLY_COLOUR,
                ),
            ],
            rules=[Rule("full network", x=entry["full_ms"])],
        )
        for entry in timed
    ]


def training(metrics: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Chart]:
    """What was logged for the last exit, over the steps; no chart where nothing was logged.

    Args:
        metrics: the lines of metrics.jsonl, by the names of their runs.
    """
    charts = []
    for field, title, y in TRAINING:
        series = [
            # One point makes no line that could be seen.
            Series(run, points, i, marked=field == "holdout_top1" or len(points) == 1)
            for i, (run, lines) in enumerate(metrics.items())
            if (points := _logged(lines, field))
        ]
        if series:
            charts.append(Chart(title, Axis("step", digits=".0f", whole=True), y, series))
    return charts


def _logged(lines: Sequence[Mapping[str, Any]], field: str) -> list[tuple[float, float]]:
    """(step, value) of the last exit, where one was logged and was a number."""
    values = [(line["step"], line[field][-1]) for line in lines if field in line]
    return [(step, value) for step, value in values if value is not None]


def comparison(ways: Sequence[Way]) -> Chart:
    """Top-1 over mul-adds of several ways of training: means over runs, and their range.

    For each way, first the curve of images that leave early, then exits at which all images stop.
    """
    largest = max(way.mul_adds[-1] for way in ways)
    divisor, unit = _mul_adds_unit(largest)
    budgets = np.linspace(0, largest, 400)
    series = []
    for i, way in enumerate(ways):
        early = way.top1_at(budgets)
        everywhere = ~np.isnan(early).any(axis=0)
        number = f"{len(early)} runs" if len(early) > 1 else "1 run"
        label = f"{way.name} ({number})"
        series.append(_spread(label, budgets[everywhere] / divisor, early[:, everywhere], i))
        series.append(_spread(label, way.mul_adds / divisor, way.anytime, i, joined=False))
    axis = _mul_adds_axis(unit, from_zero=True)
    return Chart("Accuracy over compute", axis, ACCURACY, series)


def _spread(
    label: str,
    x: NDArray[np.floating],
    values: NDArray[np.floating],
    colour: int,
    joined: bool = True,
) -> Series:
    """Means of values [runs, n] at x [n], with their range."""
    lows, highs = values.min(axis=0).tolist(), values.max(axis=0).tolist()
    return Series(
        label,
        list(zip(x.tolist(), values.mean(axis=0).tolist(), strict=True)),
        colour,
        joined=joined,
        marked=not joined,
        ranges=list(zip(lows, highs, strict=True)),
    )


def _points(
    rows: Sequence[Mapping[str, float]], x: str, y: str, divisor: float = 1.0
) -> list[tuple[float, float]]:
    return [(row[x] / divisor, row[y]) for row in rows]


def _mul_adds_axis(unit: str, from_zero: bool = False) -> Axis:
    return Axis("mean mul-adds per image", unit, from_zero=from_zero)


def _mul_adds_unit(largest: float) -> tuple[float, str]:
    return (1e9, "G") if largest >= 1e10 else (1e6, "M")
