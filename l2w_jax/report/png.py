"""Figures of a run: accuracy over compute, where samples exit, what the weights depend on.

Figures are built with matplotlib's objects, not with pyplot: nothing global is touched, no display
is needed and no figure outlives its function.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

# Two of Okabe and Ito's colours, told apart by every kind of colour vision, and in grey.
ANYTIME_COLOUR = "#D55E00"
BUDGETED_COLOUR = "#0072B2"

# A loss below this is as good as none: the network gives the true class 99.99%.
SMALLEST_LOSS_SHOWN = 1e-4

# Fewer percent of accuracy than this would make a drama of single images.
LEAST_ACCURACY_RANGE = 2.0

STYLE = {
    "font.size": 12,
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "figure.dpi": 150,
}


def accuracy_figure(
    anytime: Sequence[Mapping[str, float]], budgeted: Sequence[Mapping[str, float]]
) -> Figure:
    """Top-1 accuracy over mul-adds: of every fixed exit, and with samples leaving early.

    Args:
        anytime: rows with exit, mul_adds and top1 (percent).
        budgeted: rows with mul_adds and top1 (percent), if any.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 5), layout="constrained")
        axes = figure.add_subplot()
        divisor, unit = _mul_adds_unit(anytime[-1]["mul_adds"])
        x = [row["mul_adds"] / divisor for row in anytime]
        y = [row["top1"] for row in anytime]
        axes.plot(
            x, y, "s--", color=ANYTIME_COLOUR, markersize=8, label="all images stop at one exit"
        )
        for row, xi, yi in zip(anytime, x, y, strict=True):
            axes.annotate(
                f"exit {row['exit']}",
                (xi, yi),
                xytext=(7, -7),
                textcoords="offset points",
                va="top",
                color=ANYTIME_COLOUR,
                fontsize=10,
            )
        if curve := sorted(budgeted, key=lambda row: row["mul_adds"]):
            axes.plot(
                [row["mul_adds"] / divisor for row in curve],
                [row["top1"] for row in curve],
                "o-",
                color=BUDGETED_COLOUR,
                markersize=4,
                label="each image stops when confident (budgeted batch)",
            )
        axes.set_title("Accuracy over compute")
        axes.set_xlabel(f"mean mul-adds per image [{unit}]")
        axes.set_ylabel("top-1 accuracy on test images [%]")
        # Room for the names of the exits, which stand below and right of their markers.
        axes.margins(x=0.1, y=0.1)
        _widen_accuracy(axes)
        _legend_below(figure, axes)
    return figure


def exit_shares_figure(budgeted: Sequence[Mapping[str, float]]) -> Figure:
    """Share of the test samples that leave at each exit, over the budget.

    Args:
        budgeted: rows with mul_adds and share_1 to share_K (0 to 1).
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 4.5), layout="constrained")
        axes = figure.add_subplot()
        curve = sorted(budgeted, key=lambda row: row["mul_adds"])
        divisor, unit = _mul_adds_unit(curve[-1]["mul_adds"])
        num_exits = sum(name.startswith("share_") for name in curve[0])
        shares = [[100 * row[f"share_{k}"] for row in curve] for k in range(1, num_exits + 1)]
        axes.stackplot(
            [row["mul_adds"] / divisor for row in curve],
            shares,
            labels=[f"exit {k}" for k in range(1, num_exits + 1)],
            colors=_ordered_colours(num_exits),
            edgecolor="white",
            linewidth=0.5,
        )
        axes.set_title("Where images leave the network")
        axes.set_xlabel(f"mean mul-adds per image [{unit}]")
        axes.set_ylabel("share of test images [%]")
        axes.set_ylim(0, 100)
        axes.margins(x=0)
        axes.grid(visible=False)
        # Exit 1 is the lowest band: reversed, the legend reads in the order of the bands.
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], loc="outside right upper")
    return figure


def weights_figure(losses: NDArray[np.floating], weights: NDArray[np.floating]) -> Figure:
    """The learned weight of each sample against its loss, one panel for each exit.

    Args:
        losses: cross-entropy in nats [N, K].
        weights: weight in the training loss [N, K]; 1 is that of plain training.
    """
    num_exits = losses.shape[1]
    with matplotlib.rc_context(STYLE):
        columns = 2 if num_exits in (2, 4) else min(num_exits, 3)
        rows = -(-num_exits // columns)
        figure = Figure(figsize=(1 + 3 * columns, 1.2 + 2.6 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        # Logarithmic: of a trained network most losses are tiny, and a few are large.
        losses = np.maximum(losses, SMALLEST_LOSS_SHOWN)
        edges = np.geomspace(losses.min(), max(losses.max(), 2 * losses.min()), 13)
        for k, axes in enumerate(grid[:num_exits]):
            _weights_panel(axes, losses[:, k], weights[:, k], edges)
            axes.set_title(f"exit {k + 1}")
        for axes in grid[num_exits:]:
            axes.set_visible(False)
        # The lowest of each column: with a last row that is not full, not all are in the last row.
        for axes in grid[num_exits - columns : num_exits]:
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("loss at the exit [nats]")
        for axes in grid[0:num_exits:columns]:
            axes.set_ylabel("weight")
        figure.suptitle("What the method learned: weight over loss", fontweight="bold")
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, markerscale=2.5)
    return figure


def latency_figure(timed: Sequence[Mapping[str, Any]]) -> Figure:
    """Top-1 accuracy over measured time, one panel for each batch size.

    Args:
        timed: entries with batch_size, full_ms, and exits and budgeted, rows with ms and top1.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1 + 4 * len(timed), 4.5), layout="constrained")
        panels = figure.subplots(1, len(timed), sharey=True, squeeze=False)[0]
        for axes, entry in zip(panels, timed, strict=True):
            fixed = entry["exits"]
            early = sorted(entry["budgeted"], key=lambda row: row["ms"])
            axes.plot(
                [row["ms"] for row in fixed],
                [row["top1"] for row in fixed],
                "s--",
                color=ANYTIME_COLOUR,
                markersize=7,
                label="all images stop at one exit",
            )
            axes.plot(
                [row["ms"] for row in early],
                [row["top1"] for row in early],
                "o-",
                color=BUDGETED_COLOUR,
                markersize=4,
                label="each image stops when confident",
            )
            axes.axvline(
                entry["full_ms"], color="#555555", linestyle=":", label="full network in one piece"
            )
            axes.set_title(f"batch of {entry['batch_size']}")
            axes.set_xlabel("time per image [ms]")
            axes.set_xlim(left=0)
            _widen_accuracy(axes)
        panels[0].set_ylabel("top-1 accuracy on test images [%]")
        _legend_below(figure, panels[0])
    return figure


class WayOfTraining(Protocol):
    """What `comparison_figure` shows of several runs; see `l2w_jax.compare.Way`."""

    name: str
    mul_adds: NDArray[np.float64]
    anytime: NDArray[np.float64]

    def top1_at(self, mul_adds: NDArray[np.float64]) -> NDArray[np.float64]:
        """Top-1 with samples leaving early, in percent, [runs, n]."""


def comparison_figure(ways: Sequence[WayOfTraining]) -> Figure:
    """Top-1 over mul-adds of several ways of training: means over runs, and their range.

    Squares and bars are samples that all stop at one exit; lines and bands, samples that leave
    early.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 5), layout="constrained")
        axes = figure.add_subplot()
        largest = max(way.mul_adds[-1] for way in ways)
        divisor, unit = _mul_adds_unit(largest)
        budgets = np.linspace(0, largest, 400)
        colours = [BUDGETED_COLOUR, ANYTIME_COLOUR, *_ordered_colours(max(len(ways) - 2, 0))]
        for way, colour in zip(ways, colours, strict=False):
            early = way.top1_at(budgets)
            everywhere = ~np.isnan(early).any(axis=0)
            x, early = budgets[everywhere] / divisor, early[:, everywhere]
            number = f"{len(early)} runs" if len(early) > 1 else "1 run"
            axes.plot(x, early.mean(axis=0), color=colour, label=f"{way.name} ({number})")
            axes.fill_between(
                x, early.min(axis=0), early.max(axis=0), color=colour, alpha=0.2, linewidth=0
            )
            mean = way.anytime.mean(axis=0)
            axes.errorbar(
                way.mul_adds / divisor,
                mean,
                yerr=[mean - way.anytime.min(axis=0), way.anytime.max(axis=0) - mean],
                fmt="s",
                color=colour,
                capsize=3,
            )
        axes.set_title("Accuracy over compute")
        axes.set_xlabel(f"mean mul-adds per image [{unit}]")
        axes.set_ylabel("top-1 accuracy on test images [%]")
        axes.set_xlim(left=0)
        _widen_accuracy(axes)
        _legend_below(figure, axes)
    return figure


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    # Without the version of matplotlib in it, the same figure is the same file.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _weights_panel(
    axes: Axes,
    losses: NDArray[np.floating],
    weights: NDArray[np.floating],
    edges: NDArray[np.floating],
) -> None:
    """Samples as dots, and as a line the means of the samples between two edges."""
    axes.set_xscale("log")
    axes.axhline(1, color="#555555", linestyle=":", label="plain training")
    axes.scatter(
        losses,
        weights,
        s=7,
        alpha=0.3,
        linewidths=0,
        color=BUDGETED_COLOUR,
        rasterized=True,
        label="one sample",
    )
    of_range = np.digitize(losses, edges[1:-1])
    # A mean of one or two is no mean.
    filled = [i for i in range(len(edges) - 1) if np.count_nonzero(of_range == i) >= 3]
    axes.plot(
        [losses[of_range == i].mean() for i in filled],
        [weights[of_range == i].mean() for i in filled],
        color=ANYTIME_COLOUR,
        linewidth=2,
        marker=".",
        label="mean of samples of like loss",
    )


def _mul_adds_unit(largest: float) -> tuple[float, str]:
    return (1e9, "billions") if largest >= 1e10 else (1e6, "millions")


def _ordered_colours(count: int) -> list[tuple[float, ...]]:
    """From dark to light, in an order that every kind of colour vision sees."""
    return [tuple(colour) for colour in matplotlib.colormaps["cividis"](np.linspace(0, 1, count))]


def _widen_accuracy(axes: Axes) -> None:
    """At least LEAST_ACCURACY_RANGE, and no more above 100% than a mark takes."""
    low, high = axes.get_ylim()
    border = max(LEAST_ACCURACY_RANGE - (high - low), 0) / 2
    above = max(high + border - (100 + 0.03 * (high - low + 2 * border)), 0)
    axes.set_ylim(low - border - above, high + border - above)


def _legend_below(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left")
