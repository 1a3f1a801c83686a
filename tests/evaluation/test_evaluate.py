"""What an evaluation finds agrees with a plain recomputation."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from tiny_images import TEST, all_log_probs, images_of
from written_runs import made_evaluation, made_predictions, write_config

from l2w_jax.data.source import ORIGINS, MemorySource
from l2w_jax.early_exit import budgeted_curve, exit_shares, find_thresholds, mul_adds_per_exit
from l2w_jax.early_exit.budget import budgeted_curve_from_confidences, first_exits
from l2w_jax.early_exit.calibration import calibration_error
from l2w_jax.errors import RunFailed
from l2w_jax.evaluation import evaluate
from l2w_jax.evaluation.results import Evaluation
from l2w_jax.training.state import TrainState
from l2w_jax.training.weighting import create_predictor, create_weighting


@pytest.fixture
def state(config, tiny_network):
    model, variables = tiny_network
    wpn = create_predictor(config.weighting, model)
    return TrainState(
        step=np.int32(7),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=(),
        wpn_params=wpn.init(jax.random.key(2), np.zeros((1, 3)))["params"],
        wpn_opt_state=(),
    )


def with_network(config, model):
    return ConfigDict({**dict(config), "model": model})


def all_probs(network, images):
    return np.exp(all_log_probs(network, images))


@pytest.fixture
def evaluated(config, source, state, tiny_network, tmp_path):
    return evaluate.evaluate(with_network(config, tiny_network[0]), state, source, tmp_path)


def test_every_exit_is_as_accurate_as_a_recomputation(evaluated, tiny_network):
    rows = evaluated.anytime
    assert [list(row) for row in rows] == 3 * [["exit", "mul_adds", "top1", "top5", "loss"]]
    assert [row["exit"] for row in rows] == [1, 2, 3]
    assert evaluated.mul_adds == list(mul_adds_per_exit(tiny_network[0], 8))
    predicted = all_probs(tiny_network, TEST.images).argmax(axis=-1)
    accuracies = 100 * (predicted == TEST.labels).mean(axis=1)
    np.testing.assert_allclose([row["top1"] for row in rows], accuracies)
    assert [row["top5"] for row in rows] == [100, 100, 100]


def test_the_calibration_error_of_every_exit_is_told(evaluated):
    assert [row["exit"] for row in evaluated.calibration] == [1, 2, 3]
    for row, confidences, correct in zip(
        evaluated.calibration, evaluated.test.confidences, evaluated.test.correct, strict=True
    ):
        assert row["ece"] == calibration_error(confidences, correct)


def test_the_budgeted_curve_is_that_of_all_probabilities(evaluated, source, tiny_network):
    held_out = next(iter(source.evaluation_batches("holdout", 30)))
    curve = budgeted_curve(
        all_probs(tiny_network, held_out["image"]),
        all_probs(tiny_network, TEST.images),
        TEST.labels,
        mul_adds_per_exit(tiny_network[0], 8),
    )
    assert evaluated.budgeted == [pytest.approx(point) for point in curve]


def test_an_evaluation_says_what_it_is_of(evaluated):
    assert (evaluated.step, evaluated.dataset, evaluated.thresholds_from) == (
        7,
        "digits",
        "holdout",
    )
    assert evaluated.class_names == ["a", "b", "c", "d"]
    assert (len(evaluated.test.labels), len(evaluated.held_out.labels)) == (37, 30)
    assert evaluated.shots is None


def test_networks_of_one_step_are_told_apart(
    evaluated, config, source, state, tiny_network, tmp_path
):
    network_config = with_network(config, tiny_network[0])
    again = evaluate.evaluate(network_config, state, source, tmp_path)
    assert again.network == evaluated.network
    assert json.loads((tmp_path / "evaluation.json").read_text())["network"] == again.network
    params = jax.tree.map(lambda array: array * 1.001, state.params)
    other = evaluate.evaluate(network_config, state.replace(params=params), source, tmp_path)
    assert (other.step, other.network == again.network) == (again.step, False)


def test_what_is_returned_lies_in_the_workdir(evaluated, tmp_path):
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"anytime.csv", "budgeted.csv", "evaluation.json", "evaluation.npz"}
    stored = json.loads((tmp_path / "evaluation.json").read_text())
    assert stored["anytime"] == evaluated.anytime
    assert stored["step"] == 7


def test_an_evaluation_without_room_on_the_disk_is_a_run_that_failed(
    config, source, state, tiny_network, tmp_path, monkeypatch
):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Evaluation, "save", full)
    told = pytest.raises(RunFailed, match="the evaluation cannot be written: No space left on dev")
    with told:
        evaluate.evaluate(with_network(config, tiny_network[0]), state, source, tmp_path)


def test_thresholds_from_training_images_when_asked(config, source, state, tiny_network, tmp_path):
    config.dataset.thresholds_from = "train"
    found = evaluate.evaluate(with_network(config, tiny_network[0]), state, source, tmp_path)
    assert (found.thresholds_from, len(found.held_out.labels)) == ("train", 40)


def test_weights_are_those_that_training_would_give(evaluated, config, state, tiny_network):
    weighting = create_weighting(config.weighting, tiny_network[0], axis_name=None)
    losses = evaluated.sample_weights.losses
    assert sorted(losses[:, 0]) == sorted(evaluated.held_out.losses[0])
    expected = weighting(state.wpn_params, losses, np.zeros_like(losses))
    np.testing.assert_allclose(evaluated.sample_weights.weights, expected, rtol=1e-6)


@pytest.mark.parametrize("read", ["confidence", "both"])
def test_weights_are_of_the_confidences_of_the_same_images(
    read, config, source, state, tiny_network, tmp_path
):
    config.weighting.input = read
    width = {"confidence": 3, "both": 6}[read]
    wpn = create_predictor(config.weighting, tiny_network[0])
    params = wpn.init(jax.random.key(3), np.zeros((1, width)))["params"]
    network_config = with_network(config, tiny_network[0])
    found = evaluate.evaluate(network_config, state.replace(wpn_params=params), source, tmp_path)
    losses = found.sample_weights.losses
    place_of = {loss: place for place, loss in enumerate(found.held_out.losses[0])}
    places = [place_of[loss] for loss in losses[:, 0]]
    assert sorted(places) == list(range(30)) != places
    weighting = create_weighting(config.weighting, tiny_network[0], axis_name=None)
    expected = weighting(params, losses, found.held_out.confidences[:, places].T)
    np.testing.assert_allclose(found.sample_weights.weights, expected, rtol=1e-6)


def test_examples_leave_where_held_out_images_have_about_as_many_leave(evaluated):
    thresholds = find_thresholds(evaluated.held_out.log_odds, exit_shares(1, 3))
    exits = first_exits(evaluated.test.log_odds, thresholds)
    place_of = {image.tobytes(): place for place, image in enumerate(TEST.images)}
    places = [place_of[image.tobytes()] for image in evaluated.examples.images]
    assert set(evaluated.examples.exits) == {0, 1, 2}
    np.testing.assert_array_equal(evaluated.examples.exits, exits[places])


def test_weights_are_of_the_smoothed_losses_that_training_reads(
    config, source, state, tiny_network, tmp_path
):
    config.optimizer.label_smoothing = 0.25
    model = tiny_network[0]
    found = evaluate.evaluate(with_network(config, model), state, source, tmp_path)
    log_probs = all_log_probs(tiny_network, next(source.evaluation_batches("holdout", 30))["image"])
    expected = 0.75 * found.held_out.losses - 0.25 * log_probs.mean(axis=-1)
    losses = found.sample_weights.losses
    np.testing.assert_allclose(np.sort(losses, axis=0), np.sort(expected, axis=1).T, rtol=1e-5)
    weighting = create_weighting(config.weighting, model, axis_name=None)
    weights = weighting(state.wpn_params, losses, np.zeros_like(losses))
    np.testing.assert_allclose(found.sample_weights.weights, weights, rtol=1e-6)


def test_plain_training_has_no_weights_to_show(config, source, state, tiny_network, tmp_path):
    config.weighting.kind = "none"
    state = state.replace(wpn_params={})
    found = evaluate.evaluate(with_network(config, tiny_network[0]), state, source, tmp_path)
    assert found.sample_weights is None


def test_without_held_out_images_there_is_the_anytime_table(
    config, source, state, tiny_network, tmp_path
):
    network_config = with_network(config, tiny_network[0])
    before = evaluate.evaluate(network_config, state, source, tmp_path)
    splits = {"train": images_of(0, 0), "holdout": images_of(2, 0), "test": TEST}
    alone = MemorySource(config, splits, ("a", "b", "c", "d"), ORIGINS)
    found = evaluate.evaluate(network_config, state, alone, tmp_path)
    assert found.anytime == before.anytime
    assert found.splits == {"train": "none", "holdout": "none", "test": "test (37 images)"}
    assert (found.budgeted, found.held_out) == ([], None)
    # What an earlier evaluation made is not left behind as if it were of this one.
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "anytime.csv",
        "evaluation.json",
        "evaluation.npz",
    ]
    assert "no images of 'holdout' are at hand" in evaluate.summary_lines(found)[-1]


def of_tests_alone(config):
    """A data set of other test images, and nothing else."""
    splits = {"train": images_of(0, 0), "holdout": images_of(2, 0), "test": images_of(5, 23)}
    alone = MemorySource(config, splits, ("a", "b", "c", "d"), ORIGINS)
    alone.digests = {"train": "none", "holdout": "none", "test": "others"}
    return alone


@pytest.mark.parametrize("split", ["holdout", "train"])
def test_where_test_images_alone_are_at_hand_the_last_evaluations_others_set_thresholds(
    split, config, source, state, tiny_network, tmp_path
):
    write_config(tmp_path)
    config.dataset.thresholds_from = split
    network_config = with_network(config, tiny_network[0])
    source.digests = {name: f"of {name}" for name in ("train", "holdout", "test")}
    before = evaluate.evaluate(network_config, state, source, tmp_path)
    assert not before.held_out_kept
    config.dataset.thresholds_from = "holdout"
    for _ in range(2):
        found = evaluate.evaluate(network_config, state, of_tests_alone(config), tmp_path)
        kept = Evaluation.load(tmp_path)
        assert kept.held_out_kept and kept.thresholds_from == split
        np.testing.assert_array_equal(kept.held_out.log_odds, before.held_out.log_odds)
        np.testing.assert_array_equal(kept.sample_weights.weights, before.sample_weights.weights)
        assert kept.splits == {
            **{"train": "none", "holdout": "none", "test": "test (23 images)"},
            split: before.splits[split],
        }
        digests = {"train": "none", "holdout": "none", "test": "others", split: f"of {split}"}
        assert kept.digests == digests
    assert len(found.test.labels) == 23
    assert found.budgeted == budgeted_curve_from_confidences(
        before.held_out.log_odds, found.test.log_odds, found.test.correct, found.mul_adds
    )
    np.testing.assert_array_equal(found.even_thresholds(), before.even_thresholds())
    places = {image.tobytes() for image in images_of(5, 23).images}
    assert {image.tobytes() for image in found.examples.images} <= places
    *_, line = [line for line in evaluate.summary_lines(found) if "leaving early" in line]
    count = len(before.held_out.labels)
    assert line.endswith(f"on the {count} images of '{split}', kept from an earlier evaluation")


def test_what_an_evaluation_of_another_network_knows_is_not_kept(
    config, source, state, tiny_network, tmp_path
):
    write_config(tmp_path)
    network_config = with_network(config, tiny_network[0])
    params = jax.tree.map(lambda array: array * 1.001, state.params)
    evaluate.evaluate(network_config, state.replace(params=params), source, tmp_path)
    found = evaluate.evaluate(network_config, state, of_tests_alone(config), tmp_path)
    assert (found.held_out, found.budgeted, found.held_out_kept) == (None, [], False)
    assert not (tmp_path / "budgeted.csv").exists()


def test_accuracy_is_split_by_how_often_a_class_was_seen_in_training():
    labels = np.array([0, 0, 1, 1, 2, 2, 2, 2])
    correct = np.array([[1, 0, 1, 1, 0, 0, 0, 1]], bool)
    predictions = dataclasses.replace(made_predictions(np.ones((1, 8)), correct), labels=labels)
    (row,) = evaluate.shots_table(predictions, np.array([101, 100, 20]))
    assert row == {"exit": 1, "many": 50.0, "medium": 50.0, "few": None}
    (row,) = evaluate.shots_table(predictions, np.array([500, 50, 19]))
    assert row == {"exit": 1, "many": 50.0, "medium": 100.0, "few": 25.0}


def test_each_exit_has_its_own_loss_and_top5():
    predictions = dataclasses.replace(
        made_predictions(np.ones((3, 4)), np.zeros((3, 4), bool)),
        losses=np.float32([[4, 4, 8, 8], [2, 2, 4, 4], [1, 1, 2, 2]]),
        correct_top5=np.arange(4) < [[1], [2], [3]],
    )
    rows = evaluate.anytime_table(predictions, np.array([1e6, 2e6, 3e6]))
    assert [row["mul_adds"] for row in rows] == [1e6, 2e6, 3e6]
    assert [row["top5"] for row in rows] == [25, 50, 75]
    assert [row["loss"] for row in rows] == [6, 3, 1.5]


def test_a_long_tailed_data_set_gets_its_table(config, source, state, tiny_network, tmp_path):
    config.dataset.imbalance_factor = 10
    network_config = with_network(config, tiny_network[0])
    found = evaluate.evaluate(network_config, state, source, tmp_path)
    assert found.shots == evaluate.shots_table(found.test, source.train_class_counts)
    assert found.class_counts == source.train_class_counts.tolist()


def test_without_training_images_no_class_is_told_as_rare(config, state, tiny_network, tmp_path):
    config.dataset.imbalance_factor = 10
    network_config = with_network(config, tiny_network[0])
    found = evaluate.evaluate(network_config, state, of_tests_alone(config), tmp_path)
    assert (found.shots, found.class_counts) == (None, None)


def test_the_summary_names_a_choice_made_on_the_images_that_set_thresholds():
    evaluation = made_evaluation()
    point = evaluation.outcome(evaluation.test, evaluation.without_loss.thresholds)
    last_exit = 100 * evaluation.test.correct[-1].mean()
    *_, line = evaluate.summary_lines(evaluation)
    assert line.startswith(
        f"images leaving early: {point['top1']:.2f}% (last exit: {last_exit:.2f}%) "
        f"with {point['mul_adds'] / 1e6:.2f} M mul-adds "
        f"({100 * point['mul_adds'] / 4.5e6:.0f}% of the last exit's)"
    )
    assert line.endswith("lose no accuracy on the 180 images of 'holdout'")


def test_the_summary_has_a_line_of_each_exit():
    header, *lines = evaluate.summary_lines(made_evaluation())
    assert header.split("  ") == ["exit", "mul-adds [M]", "top-1 [%]", "top-5 [%]", "loss"]
    assert [line.split() for line in lines[:3]] == [
        ["1", "1.50", "71.25", "90.50", "0.5000"],
        ["2", "3.00", "72.25", "90.50", "0.2500"],
        ["3", "4.50", "73.25", "90.50", "0.1667"],
    ]


def test_the_summary_tells_when_test_images_leave_elsewhere_than_was_asked():
    surer = np.minimum(made_evaluation().test.confidences + 0.3, 1)
    evaluation = made_evaluation(test=made_predictions(surer, np.ones((3, 360), bool)))
    *_, line = evaluate.summary_lines(evaluation)
    told = re.fullmatch(
        r"at exits 1 to 3 leave (\d+)%, .* of the test images, where (\d+)%, .* were asked for",
        line,
    )
    found, asked = map(int, told.groups())
    assert found > asked + 5


def test_the_summary_says_what_is_missing_without_images_for_thresholds():
    *_, line = evaluate.summary_lines(made_evaluation(held_out=None, budgeted=[]))
    assert line.startswith("no images of 'holdout' are at hand")
