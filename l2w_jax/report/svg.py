"""Charts as SVG for a web page: they take the page's colours and scale with it.

Series are told apart by colour, and by dashes and marks where a chart says so; colours are the CSS
classes s0, s1 ... of the page.
"""

import dataclasses
import html
import math
from collections.abc import Sequence

from matplotlib.ticker import LogLocator, MaxNLocator

WIDTH, HEIGHT = 440, 300
LEFT, RIGHT, TOP, BOTTOM = 60, 14, 10, 44


@dataclasses.dataclass(frozen=True)
class Series:
    """Points that belong together.

    Attributes:
        label: its name.
        points: (x, y), in the order in which a line joins them.
        colour: which of the page's colours, from 0.
        dashed: whether the line is dashed.
        marks: whether each point has a mark, which says its values when pointed at.
    """

    label: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    dashed: bool = False
    marks: bool = False


@dataclasses.dataclass(frozen=True)
class _Axis:
    """From values to places on a chart."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def place(self, value: float) -> float:
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        locator = LogLocator(numticks=6) if self.logarithmic else MaxNLocator(5, min_n_ticks=3)
        found = locator.tick_values(self.low, self.high)
        slack = 1e-9 * (self.high - self.low)
        return [float(v) for v in found if self.low - slack <= v <= self.high + slack]


def line_chart(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    title: str,
    log_x: bool = False,
    least_y_range: float = 0.0,
    highest_y: float = math.inf,
) -> str:
    """Lines over one pair of axes.

    Args:
        series: what to draw; x must be positive where log_x is set.
        x_label: with unit.
        y_label: with unit.
        title: read out in place of the picture.
        log_x: whether the x-axis is logarithmic.
        least_y_range: the y-axis spans at least this much,
        highest_y: but ends at what can be no higher.
    """
    xs = [x for each in series for x, _ in each.points]
    ys = [y for each in series for _, y in each.points]
    x_axis = _Axis(*_widened(xs, 0, log_x), LEFT, WIDTH - RIGHT, log_x)
    low, high = _widened(ys, least_y_range)
    # Room for half a mark stays above the highest value there can be.
    above = max(high - (highest_y + 0.02 * (high - low)), 0)
    y_axis = _Axis(low - above, high - above, HEIGHT - BOTTOM, TOP)
    body = [_frame(x_axis, y_axis, x_label, y_label)]
    for each in series:
        places = [(x_axis.place(x), y_axis.place(y)) for x, y in each.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        dashes = ' stroke-dasharray="5 4"' if each.dashed else ""
        body.append(f'<polyline class="line s{each.colour}"{dashes} points="{path}"/>')
        if each.marks:
            for (x, y), (x_value, y_value) in zip(places, each.points, strict=True):
                body.append(
                    f'<circle class="mark s{each.colour}" cx="{x:.1f}" cy="{y:.1f}" r="3.5">'
                    f"<title>{_escaped(each.label)}: {x_value:.4g}, {y_value:.4g}</title></circle>"
                )
    return _svg(body, title)


def stacked_chart(
    x: Sequence[float], bands: Sequence[Series], x_label: str, y_label: str, title: str
) -> str:
    """Bands on top of each other that together reach 100%.

    Args:
        x: where the bands are known, rising.
        bands: from the lowest up; the y of their points, in percent, are their thicknesses.
        x_label: with unit.
        y_label: with unit.
        title: read out in place of the picture.
    """
    x_axis = _Axis(*_widened(x, 0, margin=0), LEFT, WIDTH - RIGHT)
    y_axis = _Axis(0, 100, HEIGHT - BOTTOM, TOP)
    body = [_frame(x_axis, y_axis, x_label, y_label)]
    floor = [0.0] * len(x)
    for band in bands:
        ceiling = [low + y for low, (_, y) in zip(floor, band.points, strict=True)]
        outline = list(zip(x, ceiling, strict=True)) + list(zip(x, floor, strict=True))[::-1]
        path = " ".join(f"{x_axis.place(a):.1f},{y_axis.place(b):.1f}" for a, b in outline)
        label = _escaped(band.label)
        body.append(
            f'<polygon class="band e{band.colour}" points="{path}"><title>{label}</title></polygon>'
        )
        floor = ceiling
    return _svg(body, title)


def _widened(
    values: Sequence[float], least_range: float, log: bool = False, margin: float = 0.05
) -> tuple[float, float]:
    """The range of an axis: that of the values, with a margin, and never empty."""
    low, high = min(values), max(values)
    if log:
        return low, max(high, 2 * low)
    missing = max(least_range - (high - low), 0) or (0 if high > low else 1)
    border = margin * (high - low) + missing / 2
    return low - border, high + border


def _frame(x_axis: _Axis, y_axis: _Axis, x_label: str, y_label: str) -> str:
    """Grid, numbers and labels of both axes."""
    parts = []
    bottom, middle = HEIGHT - BOTTOM, (LEFT + WIDTH - RIGHT) / 2
    for value in y_axis.ticks():
        y = y_axis.place(value)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in x_axis.ticks():
        x = x_axis.place(value)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{value:g}</text>')
    parts.append(
        f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{_escaped(x_label)}</text>'
    )
    height = (TOP + bottom) / 2
    parts.append(
        f'<text transform="rotate(-90)" x="{-height}" y="13" text-anchor="middle">'
        f"{_escaped(y_label)}</text>"
    )
    return "".join(parts)


def _svg(body: Sequence[str], title: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{_escaped(title)}">'
        + "".join(body)
        + "</svg>"
    )


def _escaped(text: str) -> str:
    return html.escape(text, quote=True)
