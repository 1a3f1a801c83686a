"""Calibration of a run: which images it is fitted on, and that the predictor goes by it."""

import dataclasses

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from tiny_images import TEST, all_log_probs, images_of, make_config, open_tiny_source
from written_runs import made_evaluation

from l2w_jax.early_exit import EarlyExitPredictor
from l2w_jax.early_exit.budget import find_thresholds, first_exits
from l2w_jax.early_exit.calibration import (
    calibrated,
    calibration_error,
    fit_temperature,
    reliability,
)
from l2w_jax.errors import UserError
from l2w_jax.evaluation import calibrate as calibrate_module
from l2w_jax.evaluation.calibrate import calibrate
from l2w_jax.evaluation.predictions import logits_of, predict_all
from l2w_jax.models.preprocessing import channel_statistics, normalize


@pytest.fixture(scope="module")
def run(tiny_network):
    """Configuration, variables, data and evaluation of a network with 90 held-out images."""
    model, variables = tiny_network
    config = ConfigDict({**dict(make_config()), "model": model})
    source = open_tiny_source(config, num_holdout=90)
    evaluation = made_evaluation(
        test=predict_all(config, model, variables, source, "test"),
        held_out=predict_all(config, model, variables, source, "holdout"),
    )
    return config, variables, source, evaluation


@pytest.fixture(scope="module")
def calibration(run):
    return calibrate(*run)


def test_temperatures_are_fitted_on_images_that_set_no_threshold(calibration, tiny_network):
    rest = calibration.evaluation.held_out
    assert (calibration.fitting_images, len(rest.labels)) == (30, 60)
    fitting = np.setdiff1d(np.arange(90), rest.positions)
    held_out = images_of(2, 90)
    log_probs = all_log_probs(tiny_network, held_out.images[fitting])
    for k, temperature in enumerate(calibration.temperatures):
        expected = fit_temperature(log_probs[k], held_out.labels[fitting])
        assert temperature == pytest.approx(expected, rel=1e-3)
    np.testing.assert_array_equal(rest.labels, held_out.labels[rest.positions])


def test_of_many_images_no_more_are_fitted_on_than_memory_holds(run, monkeypatch):
    monkeypatch.setattr(calibrate_module, "MAX_FITTING_IMAGES", 20)
    found = calibrate(*run)
    assert (found.fitting_images, len(found.evaluation.held_out.labels)) == (20, 70)


def test_every_held_out_image_that_was_read_is_of_one_part(run, monkeypatch):
    config, variables, source, evaluation = run
    read = np.setdiff1d(np.arange(90), [3, 50])
    held_out = calibrate_module._at(evaluation.held_out, read)
    fitting = []

    def watched(*arguments):
        fitting.extend(arguments[-1])
        return logits_of(*arguments)

    monkeypatch.setattr(calibrate_module, "logits_of", watched)
    found = calibrate(config, variables, source, dataclasses.replace(evaluation, held_out=held_out))
    assert found.fitting_images == len(fitting) == 29
    assert sorted([*fitting, *found.evaluation.held_out.positions]) == read.tolist()


@pytest.mark.parametrize(("split", "seed"), [("held_out", 2), ("test", 1)])
def test_answers_are_those_with_temperatures(split, seed, calibration, tiny_network):
    answers = getattr(calibration.evaluation, split)
    images = TEST.images if split == "test" else images_of(seed, 90).images
    log_probs = all_log_probs(tiny_network, images[answers.positions])
    cooled = jax.nn.softmax(log_probs / np.reshape(calibration.temperatures, (-1, 1, 1)))
    np.testing.assert_allclose(answers.confidences, cooled.max(axis=-1), rtol=1e-5)


def test_errors_with_temperatures_are_those_of_the_calibrated_answers(run, calibration):
    before, after = run[-1].test, calibration.evaluation.test
    np.testing.assert_array_equal(after.correct, before.correct)
    for k, row in enumerate(calibration.evaluation.calibrated):
        assert (row["exit"], row["temperature"]) == (k + 1, calibration.temperatures[k])
        assert row["ece"] == calibration_error(after.confidences[k], after.correct[k])
        assert row["reliability"] == reliability(after.confidences[k], after.correct[k])
    assert run[-1].calibrated is None


def test_the_calibrated_predictor_stops_where_the_evaluation_says(calibration, tiny_network):
    model, variables = tiny_network
    evaluation = calibration.evaluation
    thresholds = find_thresholds(evaluation.held_out.confidences, [0.4, 0.3, 0.3])
    predict = EarlyExitPredictor(
        calibrated(model, calibration.temperatures),
        variables,
        thresholds,
        lambda images: normalize(images, *channel_statistics("digits")),
        batch_sizes=[37],
    )
    scores = evaluation.test.confidences
    clear = (np.abs(scores - thresholds[:, None]) > 1e-5).all(axis=0)
    assert clear.mean() > 0.9
    exits = predict(TEST.images).exits
    np.testing.assert_array_equal(exits[clear], first_exits(scores, thresholds)[clear])


def test_logits_are_those_of_the_positions(run, tiny_network):
    config, variables, source, _ = run
    # The last one fills up the last batch too, masked.
    positions = np.array([3, 40, 89])
    assert 90 % config.dataset.eval_batch_size
    logits, labels = logits_of(config, config.model, variables, source, positions)
    held_out = images_of(2, 90)
    np.testing.assert_array_equal(labels, held_out.labels[positions])
    log_probs = all_log_probs(tiny_network, held_out.images[positions])
    normalised = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    np.testing.assert_allclose(normalised, log_probs, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_calibrated_is_told_in_one_line(run):
    config, variables, source, evaluation = run
    trained_on = dataclasses.replace(evaluation, thresholds_from="train")
    with pytest.raises(UserError, match=r"--calibrate: needs images that .* not trained on"):
        calibrate(config, variables, source, trained_on)
    few = predict_all(config, config.model, variables, open_tiny_source(config, 20), "holdout")
    with pytest.raises(UserError, match="--calibrate: 20 held-out images are too few"):
        calibrate(config, variables, source, dataclasses.replace(evaluation, held_out=few))
