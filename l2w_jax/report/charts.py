"""What a chart is, before it is drawn: series over a pair of axes, and how far the axes reach.

`png` and `svg` draw the same charts. They choose looks; what is shown, and between which limits,
stands here.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence

from matplotlib.ticker import Locator, LogLocator, MaxNLocator

# Share of an axis's span that is left free at each end, so that no mark is cut.
MARGIN = 0.09

# Colours that tell series apart; after them they come again, with the next of PATTERNS.
SERIES_COLOURS = 6

# Patterns of lines, named as in CSS and in matplotlib.
PATTERNS = ("solid", "dashed", "dotted")

# Share of an axis's span beyond the highest and the lowest possible value: room for half a mark.
ROOM = 0.03

# Multiples of powers of ten that stand along a logarithmic axis: the first set that yields two.
_MULTIPLES = ((1,), (1, 2, 5), (1, 2, 3, 5, 7))


@dataclasses.dataclass(frozen=True)
class Axis:
    """One of the two axes of a chart.

    Attributes:
        name: what its values are.
        unit: of the values.
        digits: how a value is written, as a format of Python's.
        whole: whether its values are whole numbers, and no others stand along it.
        logarithmic: whether equal ratios stand at equal distances; values must be positive.
        from_zero: whether it begins at 0.
        least_range: what it spans at least.
        lowest: what no value is below; the axis begins just below it or higher.
        highest: what no value exceeds; the axis ends just above it or lower.
        shown: values that it reaches in any case, so that several charts can be compared.
        note: on its values, in a line of its own.
    """

    name: str
    unit: str = ""
    digits: str = ".4g"
    whole: bool = False
    logarithmic: bool = False
    from_zero: bool = False
    least_range: float = 0.0
    lowest: float = -math.inf
    highest: float = math.inf
    shown: tuple[float, ...] = ()
    note: str = ""

    @property
    def label(self) -> str:
        """Name, unit and note, as they stand along the axis."""
        name = f"{self.name} [{self.unit}]" if self.unit else self.name
        return f"{name}\n({self.note})" if self.note else name

    def told(self, value: float) -> str:
        """A value in words."""
        space = "" if self.unit in ("", "%") else " "
        return f"{self.name}: {value:{self.digits}}{space}{self.unit}"

    def limits(self, values: Iterable[float]) -> tuple[float, float]:
        """The lowest and the highest value on it, to show these values: never an empty range."""
        values = [*values, *self.shown]
        low, high = min(values), max(values)
        if self.logarithmic:
            high = max(high, 2 * low)
            border = (high / low) ** MARGIN
            return low / border, high * border
        if self.from_zero:
            low = min(low, 0.0)
        missing = max(self.least_range - (high - low), 0) or (0 if high > low else 1)
        border = MARGIN * (high - low) + missing / 2
        bottom, top = low - border, high + border
        room = ROOM * (top - bottom)
        above = max(top - (self.highest + room), 0)
        bottom, top = bottom - above, top - above
        below = max(self.lowest - room - bottom, 0)
        bottom, top = bottom + below, min(top + below, self.highest + room)
        return (max(bottom, 0.0) if self.from_zero else bottom), top

    def ticks(self, limits: tuple[float, float]) -> list[tuple[float, str]]:
        """The values that stand along it between these limits, and how they are written."""
        low, high = limits
        slack = 1e-9 * (high - low)
        found: list[float] = []
        for locator in self._locators():
            found = [v for v in locator.tick_values(low, high) if low - slack <= v <= high + slack]
            if len(found) > 1:
                break
        return [(value, f"{value:g}") for value in found]

    def _locators(self) -> Sequence[Locator]:
        """What finds its ticks, the first that finds two."""
        if not self.logarithmic:
            least = 1 if self.whole else 3
            return [MaxNLocator(5, min_n_ticks=least, integer=self.whole)]
        return [LogLocator(subs=subs, numticks=5 * len(subs)) for subs in _MULTIPLES]


@dataclasses.dataclass(frozen=True)
class Series:
    """Points that belong together.

    Attributes:
        label: its name.
        points: (x, y), in the order in which a line joins them; those of a band, whose y is its
            thickness, by rising x.
        colour: which of the colours, from 0, told apart up to SERIES_COLOURS · len(PATTERNS).
        joined: whether a line joins the points; without one they are a cloud of small dots.
        dashed: whether the line has the pattern after that of other series of its colour.
        marked: whether each point has a mark.
        names: of the points, if they have any.
        ranges: (low, high) around each y, where a point is a mean.
    """

    label: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    joined: bool = True
    dashed: bool = False
    marked: bool = False
    names: Sequence[str] = ()
    ranges: Sequence[tuple[float, float]] = ()

    @property
    def hue(self) -> int:
        """Which of SERIES_COLOURS colours."""
        return self.colour % SERIES_COLOURS

    @property
    def turn(self) -> int:
        """How often all colours were used up before, starting again at 0 after all PATTERNS."""
        return self.colour // SERIES_COLOURS % len(PATTERNS)

    @property
    def pattern(self) -> str:
        """The pattern of its line, one of PATTERNS."""
        return PATTERNS[(self.turn + self.dashed) % len(PATTERNS)]


@dataclasses.dataclass(frozen=True)
class Rule:
    """A straight line across a chart, at an x or at a y."""

    label: str
    x: float | None = None
    y: float | None = None


@dataclasses.dataclass(frozen=True)
class Chart:
    """Series over one pair of axes, or bands on top of each other that reach 100 together.

    Attributes:
        title: of the chart.
        x: its axis.
        y: likewise.
        series: what is shown.
        stacked: whether the series are bands, from the lowest up, known at the same x.
        rules: what the series are to be compared with.
    """

    title: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    stacked: bool = False
    rules: Sequence[Rule] = ()

    @property
    def x_limits(self) -> tuple[float, float]:
        """The lowest and the highest value on the x-axis; bands fill it."""
        values = [x for each in self.series for x, _ in each.points]
        values += [rule.x for rule in self.rules if rule.x is not None]
        if self.stacked and min(values) < max(values):
            return min(values), max(values)
        return self.x.limits(values)

    @property
    def y_limits(self) -> tuple[float, float]:
        """The lowest and the highest value on the y-axis."""
        if self.stacked:
            return 0.0, 100.0
        values = [y for each in self.series for _, y in each.points]
        values += [end for each in self.series for ends in each.ranges for end in ends]
        values += [rule.y for rule in self.rules if rule.y is not None]
        return self.y.limits(values)

    def told(self, series: Series, index: int) -> str:
        """A point in words: its series and its values, a line each."""
        x, y = series.points[index]
        name = f"{series.label}, {series.names[index]}" if series.names else series.label
        return "\n".join([name, self.x.told(x), self.y.told(y)])

    def told_at(self, index: int) -> str:
        """All bands at one x, or at one name, in words, from the highest down as they are seen."""
        x, _ = self.series[0].points[index]
        shares = [
            f"{band.label}: {band.points[index][1]:{self.y.digits}}{self.y.unit}"
            for band in self.series
        ]
        names = self.series[0].names
        place = names[index] if names else self.x.told(x)
        return "\n".join([place, *reversed(shares)])
