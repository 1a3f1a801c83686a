"""A chart as PNG has its series, names and limits, and is the same file each time."""

import os

import numpy as np
import pytest
from matplotlib.text import Text
from written_runs import made_evaluation

from l2w_jax.evaluation.results import SampleWeights
from l2w_jax.report import figures, png
from l2w_jax.report.charts import Axis, Chart, Rule, Series

X, Y = Axis("time", "s"), Axis("top-1", "%")


def axes_of(*series, **fields):
    (axes,) = png.figure([Chart("Title", X, Y, series, **fields)]).axes
    return axes


def line_named(axes, label):
    return next(line for line in axes.lines if line.get_label() == label)


def test_lines_and_axes_are_those_of_the_chart():
    axes = axes_of(Series("a", [(1, 70), (2, 80)]))
    assert line_named(axes, "a").get_xydata().tolist() == [[1, 70], [2, 80]]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("time [s]", "top-1 [%]")
    assert axes.get_title("left") == "Title"


def test_axes_reach_as_far_as_the_chart_says():
    chart = Chart("Title", X, Y, [Series("a", [(1, 70), (2, 80)])])
    (axes,) = png.figure([chart]).axes
    assert axes.get_xlim() == pytest.approx(chart.x_limits)
    assert axes.get_ylim() == pytest.approx(chart.y_limits)


def test_charts_side_by_side_reach_as_far_as_any_of_them():
    charts = [Chart("Title", X, Y, [Series("a", [(1, y), (2, y + 5)])]) for y in (70, 40, 90)]
    lows, highs = zip(*(chart.y_limits for chart in charts), strict=True)
    for axes in png.figure(charts).axes:
        assert axes.get_ylim() == pytest.approx((min(lows), max(highs)))


def test_names_stand_at_their_points():
    axes = axes_of(Series("a", [(1, 70), (2, 80)], names=["exit 1", "exit 2"]))
    assert [(text.get_text(), text.xy) for text in axes.texts] == [
        ("exit 1", (1, 70)),
        ("exit 2", (2, 80)),
    ]


@pytest.mark.parametrize("top1", [(50, 60, 80, 70, 71), (50, 80, 70, 60, 50), (80, 81, 80, 81, 80)])
def test_names_cross_no_line_and_no_other_name(top1):
    names = [f"exit {k}, above the curve" for k in range(5)]
    exits = Series("a", list(enumerate(top1)), 1, dashed=True, marked=True, names=names)
    curve = Series("b", [(x / 10, 50 + x / 4) for x in range(40)])
    drawn = png.figure([Chart("Title", X, Y, [exits, curve])])
    png.png(drawn)
    (axes,) = drawn.axes
    boxes = [text.get_window_extent() for text in axes.texts]
    lines = [line.get_transform().transform_path(line.get_path()) for line in axes.lines]
    assert not any(line.intersects_bbox(box, filled=False) for line in lines for box in boxes)
    assert [box.count_overlaps(boxes) for box in boxes] == [1] * 5
    assert all(axes.bbox.contains(*corner) for box in boxes for corner in box.corners())


@pytest.mark.parametrize(
    "losses", [(1e-4, 1e-4), (1e-4, 6e-4), (1e-4, 9.0), (0.02, 0.9), (0.69, 0.69), (1.2, 8.0)]
)
def test_numbers_of_logarithmic_axes_side_by_side_do_not_run_into_each_other(losses):
    x = Axis("loss", logarithmic=True)
    points = [(loss, 1) for loss in losses]
    drawn = png.figure([Chart(f"exit {k}", x, Y, [Series("a", points)]) for k in range(3)])
    drawn.draw_without_rendering()
    boxes = [
        text.get_window_extent()
        for axes in drawn.axes
        for text in axes.get_xticklabels(which="both")
        if text.get_text()
    ]
    assert len(boxes) >= 6
    assert [box.count_overlaps(boxes) for box in boxes] == [1] * len(boxes)


def test_rules_cross_the_chart():
    rules = [Rule("full", x=3.0), Rule("plain", y=75.0)]
    axes = axes_of(Series("a", [(1, 70), (2, 80)]), rules=rules)
    assert set(line_named(axes, "full").get_xdata()) == {3}
    assert set(line_named(axes, "plain").get_ydata()) == {75}


def test_a_mean_has_its_range_as_a_band_or_as_bars():
    line = Series("a", [(1, 70), (2, 80)], ranges=[(69, 71), (75, 90)])
    marks = Series("b", [(1, 70)], joined=False, marked=True, ranges=[(60, 75)])
    axes = axes_of(line, marks)
    band, bars = axes.collections
    assert {(1, 69), (2, 90)} <= set(map(tuple, band.get_paths()[0].vertices.tolist()))
    assert bars.get_segments()[0].tolist() == [[1, 60], [1, 75]]


def test_ways_at_the_same_place_are_drawn_side_by_side():
    ways = [
        Series(name, [(1, 70), (2, 71)], colour, joined=False, marked=True, ranges=[(69, 72)] * 2)
        for colour, name in enumerate("abc")
    ]
    axes = axes_of(*ways)
    places = [
        line.get_transform().transform(line.get_xydata())[:, 0]
        for line in (line_named(axes, name) for name in "abc")
    ]
    middle = axes.transData.transform([(1, 0), (2, 0)])[:, 0]
    np.testing.assert_allclose(places[1], middle)
    assert np.all(np.diff(places, axis=0) > 5)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "images leave early",
        "all images at one exit",
    ]


def way(name, colour):
    """The curve and the exits of a way of training."""
    points, ranges = [(1, 70), (2, 71)], [(69, 72)] * 2
    return [
        Series(name, points, colour, ranges=ranges),
        Series(name, points, colour, joined=False, marked=True, ranges=ranges),
    ]


def test_lines_and_marks_of_one_colour_differ():
    axes = axes_of(*(series for k in range(18) for series in way(f"way {k}", k)))
    lines = [line for line in axes.lines if line.get_label().startswith("way")]
    curves = {(line.get_color(), line.get_linestyle()) for line in lines[::2]}
    exits = {(line.get_color(), line.get_marker()) for line in lines[1::2]}
    assert len(curves) == len(exits) == 18


def drawn_ways(names):
    series = [series for colour, name in enumerate(names) for series in way(name, colour)]
    drawn = png.figure([Chart("Title", X, Y, series)])
    png.png(drawn)
    return drawn


@pytest.mark.parametrize(
    ("num_ways", "length", "columns"), [(2, 5, 2), (3, 5, 3), (8, 5, 3), (8, 22, 2), (16, 40, 1)]
)
def test_the_legend_has_columns_that_fit_and_takes_nothing_of_the_chart(num_ways, length, columns):
    drawn = drawn_ways([f"{k:0{length}}" for k in range(num_ways)])
    (legend,), (axes,) = drawn.legends, drawn.axes
    lefts = {round(text.get_window_extent().x0) for text in legend.get_texts()}
    assert len(lefts) == columns
    assert legend.get_window_extent().x1 <= drawn.bbox.width
    (of_one,) = drawn_ways(["a"]).axes
    assert axes.bbox.height == pytest.approx(of_one.bbox.height, rel=0.02)


def test_a_name_of_any_letters_stands_in_the_legend():
    names = ["_hidden", "a$b$c", r"bad$\foo$x", "under_score"]
    series = [Series(name, [(1, 70), (2, 80)], k) for k, name in enumerate(names)]
    drawn = png.figure([Chart("Title", X, Y, series)])
    (legend,) = drawn.legends
    assert [text.get_text().replace(r"\$", "$") for text in legend.get_texts()] == names
    assert png.png(drawn).startswith(b"\x89PNG")


def test_names_that_differ_at_their_ends_only_do_so_in_the_legend_too():
    drawn = drawn_ways([f"{'a_way_of_training_' * 10}{end}" for end in "ab"])
    (legend,) = drawn.legends
    assert legend.get_window_extent().x1 <= drawn.bbox.width
    texts = [text.get_text().replace("\n", "") for text in legend.get_texts()]
    assert texts == [f"{'a_way_of_training_' * 10}{end}" for end in "ab"]


def test_a_name_that_cannot_be_drawn_is_drawn_with_what_can_be():
    (legend,) = drawn_ways([os.fsdecode(b"caf\xe9"), "a\tb"]).legends
    assert [text.get_text() for text in legend.get_texts()] == ["caf?", r"a\tb"]


def test_bands_fill_the_figure():
    bands = [Series("low", [(1, 30), (2, 60)]), Series("high", [(1, 70), (2, 40)])]
    axes = axes_of(*bands, stacked=True)
    assert [band.get_label() for band in axes.collections] == ["low", "high"]
    assert axes.collections[1].get_paths()[0].vertices[:, 1].max() == pytest.approx(100)


def test_the_legend_of_bands_names_them_from_the_top_down():
    bands = [Series(name, [(1, 30), (2, 50)], k) for k, name in enumerate(("low", "high"))]
    drawn = png.figure([Chart("Title", X, Y, bands, stacked=True)])
    (legend,), (axes,) = drawn.legends, drawn.axes
    names = [text.get_text() for text in legend.get_texts()]
    colours = [tuple(patch.get_facecolor()) for patch in legend.get_patches()]
    of_bands = {band.get_label(): tuple(band.get_facecolor()[0]) for band in axes.collections}
    assert list(zip(names, colours, strict=True)) == list(of_bands.items())[::-1]


@pytest.mark.parametrize("num_bands", [2, 16, 40])
def test_the_legend_of_any_number_of_bands_is_whole(num_bands):
    share = 100 / num_bands
    bands = [Series(f"exit {k}", [(1, share), (2, share)]) for k in range(num_bands)]
    drawn = png.figure([Chart("Title", X, Y, bands, stacked=True)])
    drawn.draw_without_rendering()
    (legend,), (axes,) = drawn.legends, drawn.axes
    written = [text.get_window_extent() for text in legend.get_texts()]
    assert all(drawn.bbox.contains(*corner) for box in written for corner in box.corners())
    assert not axes.bbox.count_overlaps(written)


@pytest.mark.parametrize("num_panels", [1, 2, 4, 5, 7])
def test_each_chart_has_a_panel_and_each_column_a_labelled_axis(num_panels):
    charts = [Chart(f"exit {k}", X, Y, [Series("a", [(1, k)])]) for k in range(num_panels)]
    panels = [axes for axes in png.figure(charts).axes if axes.get_visible()]
    assert [axes.get_title("left") for axes in panels] == [chart.title for chart in charts]
    columns = {axes.get_subplotspec().colspan.start for axes in panels}
    labelled = [axes for axes in panels if axes.get_xlabel()]
    assert {axes.get_subplotspec().colspan.start for axes in labelled} == columns


@pytest.mark.parametrize("num_panels", [2, 3, 7])
def test_a_title_stays_above_its_own_chart(num_panels):
    titles = [f"Batch of {k} in ONNX Runtime with one thread" for k in range(32, 32 + num_panels)]
    drawn = png.figure([Chart(title, X, Y, [Series("a", [(1, 1)])]) for title in titles])
    drawn.draw_without_rendering()
    for axes, title in zip(drawn.axes, titles, strict=False):
        (written,) = (text for text in axes.findobj(Text) if text.get_text().startswith("Batch"))
        assert written.get_text().split() == title.split()
        assert written.get_window_extent().x1 <= axes.get_window_extent().x1


def test_a_run_has_the_figures_that_its_evaluation_allows():
    assert set(png.of_run(made_evaluation())) == {"accuracy", "exits"}
    weighted = made_evaluation(sample_weights=SampleWeights(np.ones((5, 2)), np.ones((5, 2))))
    assert set(png.of_run(weighted)) == {"accuracy", "exits", "weights"}


def test_the_same_figure_is_the_same_file():
    chart = figures.accuracy({"run": made_evaluation()})
    first, second = (png.png(png.figure([chart])) for _ in range(2))
    assert first.startswith(b"\x89PNG")
    assert first == second
