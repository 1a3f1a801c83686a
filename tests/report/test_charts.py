"""How far the axes of a chart reach, and how its points are told."""

import pytest

from l2w_jax.report.charts import Axis, Chart, Rule, Series

X, Y = Axis("time", "s"), Axis("top-1", "%", ".2f")


def test_an_axis_reaches_beyond_its_values_on_both_sides():
    low, high = X.limits([2.0, 12.0])
    assert 0 < low < 2 and 12 < high < 14


@pytest.mark.parametrize("values", [[3.0], [3.0, 3.0], [0.0]])
@pytest.mark.parametrize("axis", [X, Axis("share", from_zero=True)])
def test_equal_values_lie_within_a_range(axis, values):
    low, high = axis.limits(values)
    assert low <= values[0] < high


def test_a_logarithmic_axis_widens_by_the_same_ratio():
    low, high = Axis("loss", logarithmic=True).limits([0.01, 1.0])
    assert 0 < low < 0.01
    assert 0.01 / low == pytest.approx(high / 1.0)


def test_one_image_is_no_cliff():
    low, high = Axis("top-1", least_range=2.0).limits([99.1, 99.2])
    assert high - low >= 2


def test_an_axis_hardly_reaches_beyond_what_can_be():
    low, high = Axis("top-1", least_range=2.0, highest=100.0).limits([99.9, 100.0])
    assert 100 < high < 100.1
    assert high - low >= 2


@pytest.mark.parametrize("values", [[0.0, 0.0], [0.0, 0.4], [0.0, 30.0], [0.0, 100.0]])
def test_an_axis_hardly_begins_below_what_can_be(values):
    axis = Axis("top-1", least_range=2.0, lowest=0.0, highest=100.0)
    low, high = axis.limits(values)
    span = high - low
    assert -0.04 * span < low < 0
    assert values[1] < high < 100 + 0.04 * span
    assert span >= 2


def test_an_axis_from_zero_begins_there():
    assert Axis("time", from_zero=True).limits([5.0, 6.0])[0] == 0


def test_axes_that_show_the_same_are_equal():
    axis = Axis("loss", shown=(0.0, 10.0))
    assert axis.limits([1.0]) == axis.limits([7.0, 8.0])


def test_a_chart_shows_its_rules_and_ranges():
    series = Series("a", [(1.0, 50.0)], ranges=[(40.0, 60.0)])
    chart = Chart("Title", X, Y, [series], rules=[Rule("slow", x=9.0), Rule("good", y=90.0)])
    assert chart.x_limits[1] > 9
    assert chart.y_limits[0] < 40 and chart.y_limits[1] > 90


def test_after_all_colours_and_patterns_they_come_again():
    looks = [
        (each.hue, each.turn, each.pattern) for each in (Series("a", [], k) for k in range(40))
    ]
    assert looks[18:] == looks[:22]
    assert len(set(looks)) == 18


def test_bands_fill_the_chart():
    bands = [Series("low", [(1, 30), (2, 60)]), Series("high", [(1, 70), (2, 40)])]
    chart = Chart("Title", X, Y, bands, stacked=True)
    assert (chart.x_limits, chart.y_limits) == ((1, 2), (0, 100))


def test_a_point_is_told_with_names_and_units():
    series = Series("early exit", [(1.5, 93.456)], names=["exit 2"])
    chart = Chart("Title", X, Y, [series])
    assert chart.told(series, 0) == "early exit, exit 2\ntime: 1.5 s\ntop-1: 93.46%"


def test_bands_are_told_together_from_the_top_down():
    bands = [Series("low", [(1, 30)]), Series("high", [(1, 70)])]
    chart = Chart("Title", X, Y, bands, stacked=True)
    assert chart.told_at(0) == "time: 1 s\nhigh: 70.00%\nlow: 30.00%"
