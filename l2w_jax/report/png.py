"""Charts as PNG, for papers and slides.

They are drawn with matplotlib's objects, not with pyplot: nothing global is touched, no display is
needed and no figure outlives its function.
"""

import io
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation

from l2w_jax.evaluation.results import Evaluation
from l2w_jax.report import figures, labels
from l2w_jax.report.charts import Chart, Series
from l2w_jax.standard_output import in_one_line

# Okabe and Ito's colours, distinct for every kind of colour vision, the first two in grey too. The
# page has them in its own style.
COLOURS = ("#0072B2", "#D55E00", "#007A5A", "#B0568A", "#8A6D00", "#3B82A6")

GREY = "#555555"

# Points between exits of two ways of training that take as many mul-adds, and between the first and
# the last of many ways, which should not reach the exits of the next cost.
_POINTS_APART = 6
_MOST_POINTS_APART = 60

# Marks, by `Series.turn`: points have no pattern to tell apart series of the same colour.
_MARKS = ("s", "^", "D")

# Width of a chart by itself, and its height without the legend.
_WIDTH, _HEIGHT = 7.5, 4.2
_MOST_COLUMNS = 3

# Bands that the legend beside a chart has room for, one below the other.
_BANDS_BESIDE = 16

# Letters of a title that the width of a chart beside others has room for.
_TITLE_LENGTH = 24

# Letters of a name that a line of the legend has room for.
_NAME_LENGTH = 60

# The files of an evaluation's figures, for those that it has the data of.
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
    if shares := figures.exit_shares(evaluation):
        drawn["exits"] = figure([shares])
    if evaluation.sample_weights is not None:
        panels = figures.weight_panels(evaluation.sample_weights)
        drawn["weights"] = figure(panels, "What the method learned: weight over loss")
    return drawn


def figure(charts: Sequence[Chart], title: str = "") -> Figure:
    """Charts side by side, in rows of at most three, with one legend that the height grows with.

    Args:
        charts: of the same axes and series, if there are several.
        title: above them all.
    """
    columns = 2 if len(charts) in (2, 4) else min(len(charts), 3)
    rows = -(-len(charts) // columns)
    size = (_WIDTH, _HEIGHT) if len(charts) == 1 else (1 + 3.2 * columns, 0.8 + 2.7 * rows)
    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=size, layout="constrained")
        grid = drawn.subplots(rows, columns, squeeze=False, sharey=True).ravel()
        told: dict[str, tuple[Artist, ...]] = {}
        for axes, chart in zip(grid, charts, strict=False):
            for label, artists in _draw(axes, chart).items():
                told.setdefault(label, artists)
            if columns > 1:
                # Else it would run into the neighbour's.
                axes.set_title(textwrap.fill(chart.title, _TITLE_LENGTH))
            if columns > 1 and not chart.x.logarithmic:
                # The numbers of neighbours would run into each other.
                axes.locator_params(axis="x", nbins=4)
        # The same limits in y for all charts, since they stand side by side.
        lows, highs = zip(*(chart.y_limits for chart in charts), strict=True)
        grid[0].set_ylim(min(lows), max(highs))
        for axes in grid[len(charts) :]:
            axes.set_visible(False)
        # The lowest chart of each column; if the last row is not full, not all of these are in it.
        for axes, chart in list(zip(grid, charts, strict=False))[-columns:]:
            axes.set_xlabel(chart.x.label)
        for axes, chart in list(zip(grid, charts, strict=False))[::columns]:
            axes.set_ylabel(chart.y.label)
        drawn.suptitle(title, fontweight="bold")
        handles = list(told.values())
        told_as = list(map(_as_drawn, told))
        if charts[0].stacked:
            # The first is the lowest band: reversed, the legend reads in the order of the bands.
            columns = -(-len(told) // _BANDS_BESIDE)
            place = "outside right upper"
            drawn.legend(handles[::-1], told_as[::-1], loc=place, ncols=columns)
        else:
            _draw_legend(drawn, handles, told_as, _MOST_COLUMNS if len(charts) == 1 else columns)
        _place_names(drawn)
    return drawn


def _as_drawn(name: str) -> str:
    """A name in lines that the legend has room for, of letters that can be drawn."""
    # The name of a folder need not be UTF-8.
    text = in_one_line(name.encode(errors="replace").decode())
    # Between dollars matplotlib sets mathematics.
    return textwrap.fill(text, _NAME_LENGTH).replace("$", r"\$")


def _draw_legend(
    drawn: Figure, handles: Sequence[Any], names: Sequence[str], most_columns: int
) -> None:
    """Draws the legend below the charts, in as many columns as fit, and makes the figure taller."""
    for columns in range(most_columns, 0, -1):
        legend = drawn.legend(
            handles,
            names,
            loc="outside lower left",
            ncols=columns,
            markerscale=1.5,
            # Long enough for dashes to show beside a mark.
            handlelength=3,
        )
        size = legend.get_window_extent()
        if size.width <= drawn.bbox.width or columns == 1:
            break
        legend.remove()
    drawn.set_figheight(drawn.get_figheight() + size.height / drawn.dpi)


def _place_names(drawn: Figure) -> None:
    """Places the names of points, once it is known where their axes lie."""
    named = [axes for axes in drawn.axes if axes.texts]
    if named:
        drawn.draw_without_rendering()
    for axes in named:
        labels.place(axes, axes.texts)


def png(drawn: Figure) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    # Without the version of matplotlib in it, the same figure is the same file.
    drawn.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _draw(axes: Axes, chart: Chart) -> dict[str, tuple[Artist, ...]]:
    """Draws a chart; returns what its legend shows, by name.

    What belongs to one name, such as a curve and the exits beside it, shares one line of it.
    """
    told: dict[str, tuple[Artist, ...]] = {}
    axes.set_title(chart.title)
    if chart.x.logarithmic:
        axes.set_xscale("log")
    for rule in chart.rules:
        draw, place = (axes.axvline, rule.x) if rule.y is None else (axes.axhline, rule.y)
        told[rule.label] = (draw(place, color=GREY, linestyle=":", label=rule.label),)
    if chart.stacked:
        told |= _draw_bands(axes, chart.series)
    else:
        last = max(series.colour for series in chart.series)
        apart = min(_POINTS_APART, _MOST_POINTS_APART / max(last, 1))
        for series in chart.series:
            artist = _draw_series(axes, series, apart * (series.colour - last / 2))
            told[series.label] = (*told.get(series.label, ()), artist)
        if any(series.ranges for series in chart.series):
            _draw_key_of_ranges(axes, sorted({series.turn for series in chart.series}))
    axes.set_xlim(chart.x_limits)
    if chart.x.logarithmic:
        # Matplotlib's own numbers between powers of ten run into each other.
        values, texts = zip(*chart.x.ticks(chart.x_limits), strict=True)
        axes.set_xticks(values, texts)
        axes.set_xticks([], minor=True)
    return {label: artists for label, artists in told.items() if label}


def _draw_key_of_ranges(axes: Axes, turns: Sequence[int]) -> None:
    line = Line2D([], [], color=GREY, linewidth=2)
    marks = tuple(Line2D([], [], color=GREY, linestyle="", marker=_MARKS[turn]) for turn in turns)
    axes.legend(
        [line, marks],
        ["images leave early", "all images at one exit"],
        title="means and ranges of runs, side by side",
        loc="best",
        alignment="left",
        fontsize=10,
        title_fontsize=10,
        handler_map={tuple: HandlerTuple(ndivide=None)},
    )


def _draw_bands(axes: Axes, bands: Sequence[Series]) -> dict[str, tuple[Artist, ...]]:
    axes.grid(visible=False)
    names = [band.label for band in bands]
    drawn = axes.stackplot(
        [x for x, _ in bands[0].points],
        [[y for _, y in band.points] for band in bands],
        labels=names,
        colors=[tuple(c) for c in matplotlib.colormaps["cividis"](np.linspace(0, 1, len(bands)))],
        edgecolor="white",
        linewidth=0.5,
    )
    return {name: (band,) for name, band in zip(names, drawn, strict=True)}


def _draw_series(axes: Axes, series: Series, aside: float) -> Artist:
    """Draws a series; ranges at single points are moved sideways by `aside` points."""
    colour = COLOURS[series.hue]
    x, y = np.reshape(series.points, (-1, 2)).T
    low, high = np.reshape(series.ranges, (-1, 2)).T
    if not series.joined and not series.marked:
        return axes.scatter(
            x, y, s=7, alpha=0.3, linewidths=0, color=colour, rasterized=True, label=series.label
        )
    beside = axes.transData
    if series.ranges and not series.joined:
        beside += ScaledTranslation(aside / 72, 0, axes.figure.dpi_scale_trans)
    (line,) = axes.plot(
        x,
        y,
        linestyle=series.pattern if series.joined else "",
        marker=_MARKS[series.turn] if series.marked else "" if series.ranges else ".",
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
        written = axes.annotate(
            name, point, xytext=(0, 0), textcoords="offset points", color=colour, fontsize=10
        )
        # It is placed once the axes have their size, which it must not change again.
        written.set_in_layout(False)
    return line
