"""What a chart draws stands where the values say."""

import math
import xml.etree.ElementTree as ElementTree

import pytest

from l2w_jax.report.svg import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Series,
    line_chart,
    stacked_chart,
)

RIGHT_EDGE, LOWER_EDGE = WIDTH - RIGHT, HEIGHT - BOTTOM


def chart_of(series, **options):
    return ElementTree.fromstring(line_chart(series, "x [s]", "y [%]", "Title", **options))


def places(element):
    return [tuple(map(float, pair.split(","))) for pair in element.get("points").split()]


def ticks(svg, anchor):
    """(value, place) of the numbers of the "end" (y) or "middle" (x) anchored axis."""
    coordinate = "y" if anchor == "end" else "x"
    return [
        (float(text.text), float(text.get(coordinate)))
        for text in svg.iter("text")
        if text.get("text-anchor") == anchor and not text.text.endswith("]")
    ]


def test_points_lie_between_the_numbers_of_the_axes():
    svg = chart_of([Series("a", [(0, 10), (5, 20), (10, 40)])])
    (line,) = svg.iter("polyline")
    xs, ys = zip(*places(line), strict=True)
    assert LEFT < xs[0] < xs[1] < xs[2] < RIGHT_EDGE
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)
    assert LOWER_EDGE > ys[0] > ys[1] > ys[2] > TOP
    assert (ys[0] - ys[1]) * 2 == pytest.approx(ys[1] - ys[2], abs=0.3)
    by_value = dict(ticks(svg, "middle"))
    assert by_value[0] == pytest.approx(xs[0], abs=0.2)
    assert by_value[10] == pytest.approx(xs[2], abs=0.2)


def test_a_logarithmic_axis_puts_equal_ratios_at_equal_distances():
    svg = chart_of([Series("a", [(0.01, 1), (0.1, 1), (1, 1)])], log_x=True)
    (line,) = svg.iter("polyline")
    first, second, third = (x for x, _ in places(line))
    assert second - first == pytest.approx(third - second, abs=0.2)
    assert {0.01, 0.1, 1} <= {value for value, _ in ticks(svg, "middle")}


def test_the_y_axis_spans_what_is_asked_and_ends_where_values_must():
    svg = chart_of([Series("a", [(0, 99.9), (1, 99.8)])], least_y_range=2, highest_y=100)
    values = [value for value, _ in ticks(svg, "end")]
    assert max(values) <= 100
    assert max(values) - min(values) >= 1


@pytest.mark.parametrize("points", [[(3, 5)], [(3, 5), (3, 5)], [(0, 0)]])
def test_a_single_point_is_drawn_inside(points):
    (line,) = chart_of([Series("a", points)]).iter("polyline")
    for x, y in places(line):
        assert LEFT < x < RIGHT_EDGE and TOP < y < LOWER_EDGE
        assert math.isfinite(x + y)


def test_marks_say_their_values_and_labels_are_escaped():
    svg = chart_of([Series("<a & b>", [(1, 2.5)], marks=True)])
    (title,) = svg.iter("title")
    assert title.text == "<a & b>: 1, 2.5"
    assert svg.get("aria-label") == "Title"
    assert "x [s]" in {text.text for text in svg.iter("text")}


def test_bands_lie_on_each_other_and_fill_the_height():
    x = [1, 2]
    bands = [Series("low", [(1, 30), (2, 60)]), Series("high", [(1, 70), (2, 40)], colour=1)]
    svg = ElementTree.fromstring(stacked_chart(x, bands, "x", "y", "Title"))
    low, high = (places(polygon) for polygon in svg.iter("polygon"))
    assert low[:2] == high[2:][::-1]
    assert {y for _, y in high[:2]} == {TOP}
    assert {y for _, y in low[2:]} == {LOWER_EDGE}
    assert low[0][1] == pytest.approx(LOWER_EDGE - 0.3 * (LOWER_EDGE - TOP), abs=0.1)
