"""What the figures show are the numbers of the evaluation, named and with units."""

import dataclasses

import numpy as np
import pytest
from written_runs import made_evaluation, made_predictions

from l2w_jax.benchmark.runtimes import RUNTIMES
from l2w_jax.evaluation.results import SampleWeights
from l2w_jax.report import figures

BUDGETED = [
    {"mul_adds": 2e7, "top1": 85, "share_1": 0.2, "share_2": 0.6, "share_3": 0.2},
    {"mul_adds": 1.2e7, "top1": 75, "share_1": 0.8, "share_2": 0.2, "share_3": 0.0},
]


def evaluation_of(top1=(70, 80, 90), scale=1.0):
    return made_evaluation(
        anytime=[
            {"exit": k + 1, "mul_adds": scale * 1e7 * (k + 1), "top1": value}
            for k, value in enumerate(top1)
        ],
        budgeted=[row | {"mul_adds": scale * row["mul_adds"]} for row in BUDGETED],
    )


def test_accuracy_of_fixed_exits_and_of_early_exits_by_rising_cost():
    chart = figures.accuracy({"run": evaluation_of()})
    fixed, early = chart.series
    assert fixed.points == [(10, 70), (20, 80), (30, 90)]
    assert early.points == [(10, 70), (12, 75), (20, 85), (30, 90)]
    assert chart.x.label == "mean mul-adds per image [M]"
    assert chart.y.label.endswith("[%]")


def test_large_networks_are_told_in_billions():
    chart = figures.accuracy({"run": evaluation_of(scale=1000)})
    assert chart.x.unit == "G"
    assert [x for x, _ in chart.series[0].points] == [10, 20, 30]


def test_each_of_several_runs_has_its_colour():
    chart = figures.accuracy({"a": evaluation_of(), "b": evaluation_of()})
    assert [(s.label, s.colour) for s in chart.series] == [
        ("a, one exit", 0),
        ("a, early exit", 0),
        ("b, one exit", 1),
        ("b, early exit", 1),
    ]


@pytest.mark.parametrize(
    ("top1", "above"), [((70, 80, 90), []), ((70, 86, 90), [2]), ((99, 80, 100), [])]
)
def test_exits_above_the_curve_are_named_and_its_ends_are_not(top1, above):
    evaluation = evaluation_of(top1)
    assert figures.exits_above_curve(evaluation) == above
    names = figures.accuracy({"run": evaluation}).series[0].names
    assert [k + 1 for k, name in enumerate(names) if "above the curve" in name] == above


def test_an_exit_is_compared_with_the_best_of_the_curve_at_its_cost():
    evaluation = evaluation_of()
    cheapest = dict(evaluation.budgeted[0], mul_adds=evaluation.anytime[0]["mul_adds"], top1=60.0)
    evaluation = dataclasses.replace(evaluation, budgeted=[cheapest, *evaluation.budgeted])
    assert [row["mul_adds"] for row in evaluation.curve].count(cheapest["mul_adds"]) > 1
    assert figures.exits_above_curve(evaluation) == []


def test_share_of_every_exit_is_a_band_from_all_at_the_first_to_all_at_the_last():
    chart = figures.exit_shares(evaluation_of())
    assert [band.label for band in chart.series] == ["exit 1", "exit 2", "exit 3"]
    assert chart.series[0].points == [(10, 100), (12, 80), (20, 20), (30, 0)]
    assert chart.series[2].points == [(10, 0), (12, 0), (20, 20), (30, 100)]


def test_share_of_every_class_and_exit_is_a_band_at_the_rank_of_the_class():
    rows = [
        {"name": "first", "share_1": 0.7, "share_2": 0.2, "share_3": 0.1},
        {"name": "second", "share_1": 0.3, "share_2": 0.1, "share_3": 0.6},
    ]
    bands = figures.class_shares(rows).series
    assert [band.label for band in bands] == ["exit 1", "exit 2", "exit 3"]
    shares = [[(1, 70), (2, 30)], [(1, 20), (2, 10)], [(1, 10), (2, 60)]]
    for band, points in zip(bands, shares, strict=True):
        assert band.points == [pytest.approx(point) for point in points]
        assert band.names == ["first", "second"]


def sampled_weights(num_exits=3):
    losses = np.random.default_rng(0).exponential(size=(50, num_exits))
    return SampleWeights(losses, 1 + losses)


def test_mean_weight_lies_over_the_mean_loss_of_the_same_images():
    for panel in figures.weight_panels(sampled_weights()):
        images, mean = panel.series
        assert len(images.points) == 50
        assert 4 <= len(mean.points) < 50
        np.testing.assert_allclose([y for _, y in mean.points], [1 + x for x, _ in mean.points])


def test_one_or_two_images_are_no_mean():
    losses = np.concatenate([np.full((10, 1), 0.01), np.full((2, 1), 10.0)])
    (panel,) = figures.weight_panels(SampleWeights(losses, losses))
    assert panel.series[1].points == [(pytest.approx(0.01), pytest.approx(0.01))]


def test_the_images_of_the_least_and_of_the_largest_loss_have_a_mean_too():
    losses = np.repeat([0.01, 0.1, 10.0], 5)[:, None]
    (panel,) = figures.weight_panels(SampleWeights(losses, 1 + losses))
    assert panel.series[1].points == [pytest.approx((x, 1 + x)) for x in (0.01, 0.1, 10.0)]


def test_weights_are_compared_with_those_of_plain_training():
    charts = [*figures.weight_panels(sampled_weights()), figures.mean_weights(sampled_weights())]
    assert [[rule.y for rule in chart.rules] for chart in charts] == [[1.0]] * 4


def test_the_means_of_all_exits_are_those_of_the_panels():
    sampled = sampled_weights()
    means = [panel.series[1].points for panel in figures.weight_panels(sampled)]
    assert [series.points for series in figures.mean_weights(sampled).series] == means


@pytest.mark.parametrize(
    ("least", "label"),
    [
        (2e-4, "loss at the exit [nats]"),
        (1e-5, "loss at the exit [nats]\n(below 0.0001: drawn at it)"),
    ],
)
def test_losses_too_small_to_show_are_told_where_there_are_any(least, label):
    sampled = sampled_weights()
    losses = np.maximum(sampled.losses, 0.01)
    losses[0, 0] = least
    sampled = SampleWeights(losses, sampled.weights)
    charts = [*figures.weight_panels(sampled), figures.mean_weights(sampled)]
    assert {chart.x.label for chart in charts} == {label}


def test_equal_losses_are_shown_too():
    chart = figures.mean_weights(SampleWeights(np.zeros((5, 2)), np.ones((5, 2))))
    assert [series.points for series in chart.series] == 2 * [[(pytest.approx(1e-4), 1.0)]]


def test_latency_has_a_chart_for_each_batch_size_and_the_full_network_as_a_rule():
    rows = [{"ms": 2.0, "top1": 80}, {"ms": 1.0, "top1": 70}]
    entries = [
        {"batch_size": size, "full_ms": 3.0, "exits": rows, "budgeted": rows} for size in (1, 32)
    ]
    charts = figures.latency(entries)
    assert [chart.title for chart in charts] == ["Batch of 1", "Batch of 32"]
    for chart in charts:
        assert chart.x.label == "time per image [ms]"
        assert chart.series[1].points == [(1, 70), (2, 80)]
        assert [rule.x for rule in chart.rules] == [3]


def test_each_runtime_that_can_be_timed_has_a_chart_of_its_own_name():
    timed = {"batch_size": 1, "full_ms": 3.0, "exits": [], "budgeted": []}
    charts = figures.latency([timed | {"runtime": name} for name in RUNTIMES])
    of_names = [chart.title.removeprefix("Batch of 1 in ") for chart in charts]
    assert len(set(of_names)) == len(RUNTIMES)
    assert not set(of_names) & set(RUNTIMES), "a name in words for each"


def test_training_shows_what_was_logged_and_nothing_where_nothing_was():
    lines = [{"step": 20, "loss": [1.0, 0.8]}, {"step": 40, "loss": [0.5, 0.3]}]
    (chart,) = figures.training({"a": lines, "b": []})
    (series,) = chart.series
    assert (series.label, series.points) == ("a", [(20, 0.8), (40, 0.3)])
    assert figures.training({"b": []}) == []


def test_what_was_logged_once_is_seen():
    once, twice = [{"step": 20, "loss": [1.0]}], [{"step": k, "loss": [1.0]} for k in (20, 40)]
    (chart,) = figures.training({"a": once, "b": twice})
    assert [series.marked for series in chart.series] == [True, False]


def test_a_loss_that_was_no_number_is_not_shown():
    lines = [{"step": 20, "loss": [1.0, None]}, {"step": 40, "loss": [0.5, 0.3]}]
    (chart,) = figures.training({"a": lines})
    assert chart.series[0].points == [(40, 0.3)]


def test_reliability_is_the_accuracy_of_images_of_like_confidence():
    confidences = np.array([[0.61, 0.65, 0.91, 0.93], [0.5, 0.5, 0.5, 0.5]])
    correct = np.array([[True, False, True, True], [False] * 4])
    chart = figures.reliability(made_evaluation(test=made_predictions(confidences, correct)))
    first, second, ideal = chart.series
    np.testing.assert_allclose(first.points, [(63, 50), (92, 100)], rtol=1e-6)
    np.testing.assert_allclose(second.points, [(50, 0)])
    assert ideal.points == [(0, 0), (100, 100)]


def test_reliability_with_temperatures_is_that_which_was_found_with_them():
    found = [[[0.5, 0.75]], [[0.25, 1.0]]]
    calibrated = [{"exit": k + 1, "reliability": points} for k, points in enumerate(found)]
    chart = figures.calibrated_reliability(made_evaluation(calibrated=calibrated))
    first, second, ideal = chart.series
    assert (first.points, second.points) == ([(50, 75)], [(25, 100)])
    assert ideal.points == [(0, 0), (100, 100)]
    assert figures.calibrated_reliability(made_evaluation()) is None
