"""The figures show the numbers that they are given, named and with units."""

import numpy as np
import pytest

from l2w_jax.report import png as plots

ANYTIME = [{"exit": k, "mul_adds": 1e7 * k, "top1": 60 + 10 * k} for k in (1, 2, 3)]
BUDGETED = [
    {"mul_adds": 2e7, "top1": 85, "share_1": 0.2, "share_2": 0.6, "share_3": 0.2},
    {"mul_adds": 1.2e7, "top1": 75, "share_1": 0.8, "share_2": 0.2, "share_3": 0.0},
]


def line_named(axes, start):
    return next(line for line in axes.lines if line.get_label().startswith(start))


def test_accuracy_figure_shows_both_curves_in_order_of_cost():
    (axes,) = plots.accuracy_figure(ANYTIME, BUDGETED).axes
    assert line_named(axes, "all images").get_xydata().tolist() == [[10, 70], [20, 80], [30, 90]]
    assert line_named(axes, "each image").get_xydata().tolist() == [[12, 75], [20, 85]]
    assert axes.get_xlabel() == "mean mul-adds per image [millions]"
    assert axes.get_ylabel().endswith("[%]")


def test_large_networks_are_told_in_billions():
    rows = [{**row, "mul_adds": row["mul_adds"] * 1000} for row in ANYTIME]
    (axes,) = plots.accuracy_figure(rows, rows).axes
    assert axes.get_xlabel().endswith("[billions]")
    assert line_named(axes, "all images").get_xdata().tolist() == [10, 20, 30]


def test_share_of_every_exit_is_a_band_and_the_bands_fill_the_figure():
    (axes,) = plots.exit_shares_figure(BUDGETED).axes
    assert [band.get_label() for band in axes.collections] == ["exit 1", "exit 2", "exit 3"]
    lowest = axes.collections[0].get_paths()[0].vertices
    assert [12, 80] in lowest.tolist() and [20, 20] in lowest.tolist()
    assert axes.collections[-1].get_paths()[0].vertices[:, 1].max() == pytest.approx(100)


@pytest.mark.parametrize("num_exits", [1, 2, 4, 5, 7])
def test_weights_figure_has_a_panel_for_each_exit_and_a_labelled_axis_under_each_column(num_exits):
    rng = np.random.default_rng(0)
    losses = rng.exponential(size=(50, num_exits))
    figure = plots.weights_figure(losses, 1 + losses)
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title("left") for axes in panels] == [
        f"exit {k + 1}" for k in range(num_exits)
    ]
    columns = {axes.get_subplotspec().colspan.start for axes in panels}
    labelled = [axes for axes in panels if axes.get_xlabel()]
    assert {axes.get_subplotspec().colspan.start for axes in labelled} == columns
    mean = line_named(panels[0], "mean of").get_xydata()
    assert len(mean) >= 4
    np.testing.assert_allclose(mean[:, 1], 1 + mean[:, 0])


def test_one_image_is_no_cliff_in_the_accuracy_figure():
    rows = [{**row, "top1": 99 + row["top1"] / 1000} for row in ANYTIME]
    (axes,) = plots.accuracy_figure(rows, rows).axes
    assert np.ptp(axes.get_ylim()) >= 2


def test_accuracy_ends_at_100_percent():
    rows = [{**row, "top1": 100} for row in ANYTIME]
    (axes,) = plots.accuracy_figure(rows, rows).axes
    assert 100 < axes.get_ylim()[1] < 100.5


def test_latency_figure_has_a_panel_for_each_batch_size_and_marks_the_full_network():
    rows = [{"ms": 2.0, "top1": 80}, {"ms": 1.0, "top1": 70}]
    entries = [
        {"batch_size": size, "full_ms": 3.0, "exits": rows, "budgeted": rows} for size in (1, 32)
    ]
    panels = plots.latency_figure(entries).axes
    assert [axes.get_title("left") for axes in panels] == ["batch of 1", "batch of 32"]
    for axes in panels:
        assert axes.get_xlabel() == "time per image [ms]"
        assert line_named(axes, "each image").get_xydata().tolist() == [[1, 70], [2, 80]]
        assert set(line_named(axes, "full network").get_xdata()) == {3}


def test_equal_losses_and_a_single_budget_are_drawn_too():
    assert plots.png(plots.weights_figure(np.zeros((5, 2)), np.ones((5, 2))))
    assert plots.png(plots.exit_shares_figure(BUDGETED[:1]))


def test_the_same_figure_is_the_same_file():
    files = {plots.png(plots.accuracy_figure(ANYTIME, BUDGETED)) for _ in range(2)}
    assert len(files) == 1
