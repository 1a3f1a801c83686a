"""Charts as PNG, for papers and slides.

They are drawn with matplotlib's objects, not with pyplot: nothing global is touched, no display is
needed and no figure outlives its function.
"""

import io
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation

from l2w_jax.evaluation.results import Evaluation
from l2w_jax.report import figures
from l2w_jax.report.charts import Chart, Series

# Okabe and Ito's, told apart by every kind of colour vision, the first two in grey too. The page
# has them in its own style.
COLOURS = ("#0072B2", "#D55E00", "#007A5A", "#B0568A", "#8A6D00", "#3B82A6")

GREY = "#555555"

# Between the exits of two ways of training that take as many mul-adds.
_POINTS_APART = 6

# The files that the figures of an evaluation go to, where it has what they show.
FIGURES = ("accuracy", "exits", "weights")

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


def of_run(evaluation: Evaluation) -> dict[str, Figure]:
    """Those of FIGURES that an evaluation has, by name."""
    drawn = {"accuracy": figure([figures.accuracy({"": evaluation})])}
    if evaluation.curve:
        drawn["exits"] = figure([figures.exit_shares(evaluation)])
    if evaluation.sample_weights is not None:
        panels = figures.weight_panels(evaluation.sample_weights)
        drawn["weights"] = figure(panels, "What the method learned: weight over loss")
    return drawn


def figure(charts: Sequence[Chart], title: str = "") -> Figure:
    """Charts side by side, in rows of at most three, with one legend.

    Args:
        charts: of the same axes and series, if there are several.
        title: above them all.
    """
    columns = 2 if len(charts) in (2, 4) else min(len(charts), 3)
    rows = -(-len(charts) // columns)
    size = (7.5, 5.0) if len(charts) == 1 else (1 + 3.2 * columns, 1.4 + 2.7 * rows)
    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=size, layout="constrained")
        grid = drawn.subplots(rows, columns, squeeze=False, sharey=True).ravel()
        told: dict[str, Artist] = {}
        for axes, chart in zip(grid, charts, strict=False):
            for label, artist in _draw(axes, chart).items():
                told.setdefault(label, artist)
            if columns > 1 and not chart.x.logarithmic:
                # The numbers of neighbours would run into each other.
                axes.locator_params(axis="x", nbins=4)
        # Of them all in y, since they stand side by side.
        lows, highs = zip(*(chart.y_limits for chart in charts), strict=True)
        grid[0].set_ylim(min(lows), max(highs))
        for axes in grid[len(charts) :]:
            axes.set_visible(False)
        # The lowest of each column: with a last row that is not full, not all are in the last row.
        for axes, chart in list(zip(grid, charts, strict=False))[-columns:]:
            axes.set_xlabel(chart.x.label)
        for axes, chart in list(zip(grid, charts, strict=False))[::columns]:
            axes.set_ylabel(chart.y.label)
        drawn.suptitle(title, fontweight="bold")
        handles = list(told.values())
        # Between dollars matplotlib sets mathematics.
        labels = [label.replace("$", r"\$") for label in told]
        if charts[0].stacked:
            # The first is the lowest band: reversed, the legend reads in the order of the bands.
            drawn.legend(handles[::-1], labels[::-1], loc="outside right upper")
        else:
            drawn.legend(handles, labels, loc="outside lower left", ncols=columns, markerscale=1.5)
    return drawn


def png(drawn: Figure) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    # Without the version of matplotlib in it, the same figure is the same file.
    drawn.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _draw(axes: Axes, chart: Chart) -> dict[str, Artist]:
    """Draws a chart; returns what its legend tells, by name.

    What belongs to one name, such as a curve and the exits beside it, is told once.
    """
    told: dict[str, Artist] = {}
    axes.set_title(chart.title)
    if chart.x.logarithmic:
        axes.set_xscale("log")
    for rule in chart.rules:
        draw, place = (axes.axvline, rule.x) if rule.y is None else (axes.axhline, rule.y)
        told[rule.label] = draw(place, color=GREY, linestyle=":", label=rule.label)
    if chart.stacked:
        told |= _draw_bands(axes, chart.series)
    else:
        middle = max(series.colour for series in chart.series) / 2
        for series in chart.series:
            told.setdefault(series.label, _draw_series(axes, series, series.colour - middle))
        if any(series.ranges for series in chart.series):
            _draw_key_of_ranges(axes)
    axes.set_xlim(chart.x_limits)
    return {label: artist for label, artist in told.items() if label}


def _draw_key_of_ranges(axes: Axes) -> None:
    line = Line2D([], [], color=GREY, linewidth=2, label="images leave early")
    square = Line2D([], [], color=GREY, linestyle="", marker="s", label="all images at one exit")
    axes.legend(
        handles=[line, square],
        title="means and ranges of runs, side by side",
        loc="lower right",
        alignment="left",
        fontsize=10,
        title_fontsize=10,
    )


def _draw_bands(axes: Axes, bands: Sequence[Series]) -> dict[str, Artist]:
    axes.grid(visible=False)
    labels = [band.label for band in bands]
    drawn = axes.stackplot(
        [x for x, _ in bands[0].points],
        [[y for _, y in band.points] for band in bands],
        labels=labels,
        colors=[tuple(c) for c in matplotlib.colormaps["cividis"](np.linspace(0, 1, len(bands)))],
        edgecolor="white",
        linewidth=0.5,
    )
    return dict(zip(labels, drawn, strict=True))


def _draw_series(axes: Axes, series: Series, place: float) -> Artist:
    """Draws a series; ranges at single points stand side by side, `place` from -n/2 to n/2."""
    colour = COLOURS[series.colour % len(COLOURS)]
    x, y = np.reshape(series.points, (-1, 2)).T
    low, high = np.reshape(series.ranges, (-1, 2)).T
    if not series.joined and not series.marked:
        return axes.scatter(
            x, y, s=7, alpha=0.3, linewidths=0, color=colour, rasterized=True, label=series.label
        )
    beside = axes.transData
    if series.ranges and not series.joined:
        beside += ScaledTranslation(_POINTS_APART * place / 72, 0, axes.figure.dpi_scale_trans)
    (line,) = axes.plot(
        x,
        y,
        linestyle=("--" if series.dashed else "-") if series.joined else "",
        marker="s" if series.marked else "" if series.ranges else ".",
        markersize=6 if series.marked else 5,
        linewidth=2,
        color=colour,
        label=series.label,
        transform=beside,
    )
    if series.ranges and series.joined:
        axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    elif series.ranges:
        axes.errorbar(
            x,
            y,
            yerr=[y - low, high - y],
            fmt="none",
            color=colour,
            capsize=3,
            transform=beside,
        )
    for name, point in zip(series.names, series.points, strict=False):
        axes.annotate(
            name,
            point,
            xytext=(7, -7),
            textcoords="offset points",
            va="top",
            color=colour,
            fontsize=10,
        )
    return line
