"""Charts as SVG for a web page: they take the page's colours and scale with it.

Series are told apart by colour and pattern, and by marks where a chart says so; colours are the CSS
classes s0, s1 ... of the page, those of bands e0, e1 ... No chart of the page has ranges, so they
are not drawn.
"""

import dataclasses
import itertools
import math
import operator
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from l2w_jax.report.charts import Axis, Chart, Series
from l2w_jax.report.templating import render

WIDTH, HEIGHT = 440, 300
LEFT, RIGHT, TOP, BOTTOM = 60, 14, 10, 44

# At most this many points of a series say their values: more would lie on each other.
MOST_MARKS = 100

# At most at this many places bands say their values: tenths of a unit are the least that is drawn.
MOST_TOLD = 10 * WIDTH


@dataclasses.dataclass(frozen=True)
class Scale:
    """From values of an axis to places on the drawing."""

    axis: Axis
    limits: tuple[float, float]
    start: float
    end: float

    def place(self, value: float) -> float:
        """Where a value stands, in the drawing's units."""
        low, high = self.limits
        if self.axis.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return round(self.start + (value - low) / (high - low) * (self.end - self.start), 1)

    @property
    def ticks(self) -> list[tuple[str, float]]:
        """The values that stand along the axis, and where."""
        return [(text, self.place(value)) for value, text in self.axis.ticks(self.limits)]


def svg(chart: Chart) -> Markup:
    """The chart as an element of a page; its points say their values when pointed at."""
    x = Scale(chart.x, chart.x_limits, LEFT, WIDTH - RIGHT)
    y = Scale(chart.y, chart.y_limits, HEIGHT - BOTTOM, TOP)
    return render(
        "chart.svg",
        chart=chart,
        x=x,
        y=y,
        width=WIDTH,
        height=HEIGHT,
        middle=((x.start + x.end) / 2, (y.start + y.end) / 2),
        rules=_rules(chart, x, y),
        bands=_bands(chart, x, y) if chart.stacked else [],
        lines=[] if chart.stacked else [_line(chart, each, x, y) for each in chart.series],
    )


def style_of(series: Series, stacked: bool = False) -> str:
    """The CSS classes that say how a series looks, in the chart and in its legend."""
    if stacked:
        return f"band e{series.colour}"
    return f"s{series.hue} {series.pattern}" + (" marked" if series.marked else "")


def _rules(chart: Chart, x: Scale, y: Scale) -> list[dict[str, Any]]:
    return [
        {"x1": x.place(rule.x), "x2": x.place(rule.x), "y1": y.start, "y2": y.end}
        if rule.y is None
        else {"x1": x.start, "x2": x.end, "y1": y.place(rule.y), "y2": y.place(rule.y)}
        for rule in chart.rules
    ]


def _line(chart: Chart, series: Series, x: Scale, y: Scale) -> dict[str, Any]:
    places = [(x.place(a), y.place(b)) for a, b in series.points]
    step = max(1, math.ceil(len(places) / MOST_MARKS))
    return {
        "style": style_of(series),
        "path": _path(_outline(places)) if series.joined else "",
        "marked": series.marked or not series.joined,
        "marks": [(*places[i], chart.told(series, i)) for i in range(0, len(places), step)],
    }


def _bands(chart: Chart, x: Scale, y: Scale) -> list[dict[str, Any]]:
    """The outline of each band, and for the last band what stands at each x."""
    xs = [x.place(value) for value, _ in chart.series[0].points]
    floor, bands = [0.0] * len(xs), []
    for band in chart.series:
        ceiling = [low + thickness for low, (_, thickness) in zip(floor, band.points, strict=True)]
        upper = list(zip(xs, map(y.place, ceiling), strict=True))
        lower = list(zip(xs, map(y.place, floor), strict=True))
        style = style_of(band, stacked=True)
        path = _path(_outline(upper) + _outline(lower)[::-1])
        bands.append({"style": style, "path": path, "told": []})
        floor = ceiling
    step = max(1, math.ceil(len(xs) / MOST_TOLD))
    bands[-1]["told"] = [(xs[i], chart.told_at(i)) for i in range(0, len(xs), step)]
    return bands


def _outline(places: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The places, of those above one another only the first, highest, lowest and last.

    A line through these looks the same, and a million points make no larger page than places that
    can be told apart.
    """
    kept: list[tuple[float, float]] = []
    for _, run in itertools.groupby(places, key=operator.itemgetter(0)):
        column = [*run]
        heights = [y for _, y in column]
        ends = {0, heights.index(min(heights)), heights.index(max(heights)), len(column) - 1}
        kept += [column[i] for i in sorted(ends)]
    return kept


def _path(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x},{y}" for x, y in places)
