"""What a chart draws stands where the values say."""

import math
import xml.etree.ElementTree as ElementTree

import pytest
from written_runs import made_evaluation

from l2w_jax.report import figures
from l2w_jax.report.charts import Axis, Chart, Rule, Series
from l2w_jax.report.svg import (
    BOTTOM,
    HEIGHT,
    LEFT,
    MOST_MARKS,
    MOST_TOLD,
    RIGHT,
    TOP,
    WIDTH,
    Scale,
    style_of,
    svg,
)

RIGHT_EDGE, LOWER_EDGE = WIDTH - RIGHT, HEIGHT - BOTTOM
X, Y = Axis("x", "s"), Axis("y", "%")


def drawn(*series, x=X, y=Y, **fields):
    return ElementTree.fromstring(svg(Chart("Title", x, y, series, **fields)))


def places(element):
    return [tuple(map(float, pair.split(","))) for pair in element.get("points").split()]


def ticks(drawing, anchor):
    """(value, place) of the numbers of the "end" (y) or "middle" (x) anchored axis."""
    coordinate = "y" if anchor == "end" else "x"
    return [
        (float(text.text), float(text.get(coordinate)))
        for text in drawing.iter("text")
        if text.get("text-anchor") == anchor and text.get("class") != "label"
    ]


def test_points_lie_between_the_numbers_of_the_axes():
    drawing = drawn(Series("a", [(0, 10), (5, 20), (10, 40)]))
    (line,) = drawing.iter("polyline")
    xs, ys = zip(*places(line), strict=True)
    assert LEFT < xs[0] < xs[1] < xs[2] < RIGHT_EDGE
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)
    assert LOWER_EDGE > ys[0] > ys[1] > ys[2] > TOP
    assert (ys[0] - ys[1]) * 2 == pytest.approx(ys[1] - ys[2], abs=0.3)
    by_value = dict(ticks(drawing, "middle"))
    assert by_value[0] == pytest.approx(xs[0], abs=0.2)
    assert by_value[10] == pytest.approx(xs[2], abs=0.2)


def test_a_logarithmic_axis_puts_equal_ratios_at_equal_distances():
    drawing = drawn(Series("a", [(0.01, 1), (0.1, 1), (1, 1)]), x=Axis("loss", logarithmic=True))
    (line,) = drawing.iter("polyline")
    first, second, third = (x for x, _ in places(line))
    assert second - first == pytest.approx(third - second, abs=0.2)
    assert {0.01, 0.1, 1} <= {value for value, _ in ticks(drawing, "middle")}


@pytest.mark.parametrize("points", [[(3, 5)], [(3, 5), (3, 5)], [(0, 0)]])
def test_a_single_point_is_drawn_inside(points):
    (line,) = drawn(Series("a", points)).iter("polyline")
    for x, y in places(line):
        assert LEFT < x < RIGHT_EDGE and TOP < y < LOWER_EDGE
        assert math.isfinite(x + y)


def test_marks_say_their_values_and_texts_are_escaped():
    drawing = drawn(Series("<a & b>", [(1, 2.5)], marked=True))
    (title,) = drawing.iter("title")
    assert title.text == "<a & b>\nx: 1 s\ny: 2.5%"


def test_axes_and_chart_are_named():
    drawing = drawn(Series("a", [(1, 2)]))
    assert drawing.get("aria-label") == "Title"
    labels = [text.text for text in drawing.iter("text") if text.get("class") == "label"]
    assert labels == ["x [s]", "y [%]"]


def test_points_of_a_line_without_marks_are_unseen_but_say_their_values():
    drawing = drawn(Series("a", [(1, 2), (3, 4)]))
    assert [mark.get("class") for mark in drawing.iter("circle")] == 2 * ["mark s0 solid unseen"]
    assert len(list(drawing.iter("title"))) == 2


def test_long_lines_have_only_so_many_marks():
    marks = list(drawn(Series("a", [(i, i) for i in range(1234)])).iter("circle"))
    assert MOST_MARKS / 2 < len(marks) <= MOST_MARKS


def columns(places):
    """Where a line comes to, how high and how low it is, and where it goes on from, at each x."""
    found = {}
    for x, y in places:
        found.setdefault(x, []).append(y)
    return {x: (ys[0], min(ys), max(ys), ys[-1]) for x, ys in found.items()}


@pytest.mark.parametrize("stacked", [False, True])
def test_a_million_points_look_the_same_and_make_no_larger_page(stacked):
    points = [(step, 50 + 40 * math.sin(step * step)) for step in range(30_000)]
    series = Series("a", points, marked=True)
    drawing = drawn(series, x=Axis("x", whole=True), stacked=stacked)
    outline = places(next(drawing.iter("polygon" if stacked else "polyline")))
    # The floor of the band is not what is looked at.
    outline = [(x, y) for x, y in outline if y < LOWER_EDGE]
    chart = Chart("Title", Axis("x", whole=True), Y, [series], stacked=stacked)
    x = Scale(chart.x, chart.x_limits, LEFT, WIDTH - RIGHT)
    y = Scale(chart.y, chart.y_limits, HEIGHT - BOTTOM, TOP)
    assert columns(outline) == columns((x.place(a), y.place(b)) for a, b in points)
    most = 10 * (WIDTH - LEFT - RIGHT) + 1
    assert len(outline) <= 4 * most < len(points)
    assert len(list(drawing.iter("title"))) <= MOST_TOLD


def test_rules_cross_the_chart():
    rules = [Rule("full", x=2.0), Rule("plain", y=15.0)]
    drawing = drawn(Series("a", [(1, 10), (3, 20)]), rules=rules)
    upright, level = (line for line in drawing.iter("line") if line.get("class") == "rule")
    assert upright.get("x1") == upright.get("x2")
    assert {float(upright.get("y1")), float(upright.get("y2"))} == {TOP, LOWER_EDGE}
    assert level.get("y1") == level.get("y2")
    assert {float(level.get("x1")), float(level.get("x2"))} == {LEFT, RIGHT_EDGE}


def test_bands_lie_on_each_other_and_fill_the_height():
    bands = [Series("low", [(1, 30), (2, 60)]), Series("high", [(1, 70), (2, 40)], colour=1)]
    polygons = list(drawn(*bands, stacked=True).iter("polygon"))
    assert [polygon.get("class") for polygon in polygons] == ["band e0", "band e1"]
    low, high = map(places, polygons)
    assert low[:2] == high[2:][::-1]
    assert {y for _, y in high[:2]} == {TOP}
    assert {y for _, y in low[2:]} == {LOWER_EDGE}
    assert low[0][1] == pytest.approx(LOWER_EDGE - 0.3 * (LOWER_EDGE - TOP), abs=0.1)


def test_bands_say_their_shares_at_each_x():
    bands = [Series("low", [(1, 30), (2, 60)]), Series("high", [(1, 70), (2, 40)], colour=1)]
    drawing = drawn(*bands, stacked=True)
    titles = [title.text for title in drawing.iter("title")]
    assert titles == ["x: 1 s\nhigh: 70%\nlow: 30%", "x: 2 s\nhigh: 40%\nlow: 60%"]


def test_series_of_one_colour_are_told_apart_by_patterns():
    styles = [style_of(Series("a", [], colour)) for colour in range(18)]
    assert len(set(styles)) == 18
    assert (styles[0], styles[6], styles[12]) == ("s0 solid", "s0 dashed", "s0 dotted")
    assert style_of(Series("a", [], 0, dashed=True)) == "s0 dashed"


def test_exits_and_curves_of_many_runs_are_told_apart():
    runs = {f"run {i}": made_evaluation() for i in range(18)}
    styles = [style_of(series) for series in figures.accuracy(runs).series]
    assert len(set(styles)) == len(styles) == 36


@pytest.mark.parametrize("last", [1, 2, 3, 7, 300])
def test_between_whole_numbers_none_stand_along_an_axis(last):
    points = [(x, 1.0) for x in range(1, last + 1)]
    found = ticks(drawn(Series("a", points), x=Axis("rank", whole=True)), "middle")
    assert found and all(value == round(value) for value, _ in found)


@pytest.mark.parametrize("limits", [(4.0, 9.0), (0.2, 0.8), (1.2, 2.5), (0.01, 100.0)])
def test_an_axis_of_any_range_has_numbers(limits):
    scale = Scale(Axis("loss", logarithmic=True), limits, 0, 100)
    assert len(scale.ticks) >= 2
    assert all(limits[0] <= float(text) <= limits[1] for text, _ in scale.ticks)
