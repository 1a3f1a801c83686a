"""Evaluation against a plain recomputation, whatever the batch size and the number of devices."""

import csv
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from l2w_jax.config import default_config, to_json
from l2w_jax.data.source import ORIGINS, LabelledImages, MemorySource
from l2w_jax.early_exit import budgeted_curve, mul_adds_per_exit
from l2w_jax.errors import UserError
from l2w_jax.evaluation import evaluate
from l2w_jax.evaluation import predictions as split_predictions
from l2w_jax.models.preprocessing import channel_statistics, normalize
from l2w_jax.report import __main__ as report
from l2w_jax.training.state import TrainState
from l2w_jax.training.weighting import create_predictor, create_weighting


@pytest.fixture
def config():
    config = default_config()
    config.dataset.update(
        {"name": "digits", "image_size": 8, "num_classes": 4, "holdout": 30, "batch_size": 8}
    )
    config.dataset.augmentation = "none"
    config.dataset.eval_batch_size = 16
    return config


def images_of(seed, count):
    rng = np.random.default_rng(seed)
    shades = rng.integers(0, 200, (count, 1, 1, 3))
    images = shades + rng.integers(0, 56, (count, 8, 8, 3))
    return LabelledImages(images.astype(np.uint8), rng.integers(0, 4, count).astype(np.int32))


TEST = images_of(1, 37)


def open_tiny_source(config, num_holdout=30):
    splits = {"train": images_of(0, 40), "holdout": images_of(2, num_holdout), "test": TEST}
    return MemorySource(config, splits, class_names=("a", "b", "c", "d"))


@pytest.fixture
def source(config):
    return open_tiny_source(config)


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


def all_log_probs(tiny_network, images):
    model, variables = tiny_network
    inputs = normalize(images, *channel_statistics("digits"))
    return np.array(jax.nn.log_softmax(model.apply(variables, inputs, train=False)))


def all_probs(tiny_network, images):
    return np.exp(all_log_probs(tiny_network, images))


@pytest.mark.parametrize("batch_size", [1, 16, 37, 64])
def test_every_image_counts_once_whatever_the_batch_size(config, source, tiny_network, batch_size):
    config.dataset.eval_batch_size = batch_size
    predictions = split_predictions.predict_all(config, *tiny_network, source, "test")
    log_probs = all_log_probs(tiny_network, TEST.images)
    losses = -log_probs[:, np.arange(37), TEST.labels]
    np.testing.assert_array_equal(predictions.labels, TEST.labels)
    confidences = np.exp(log_probs.max(axis=-1))
    np.testing.assert_allclose(predictions.confidences, confidences, rtol=1e-5)
    np.testing.assert_allclose(predictions.losses, losses, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(predictions.predicted, log_probs.argmax(axis=-1))
    np.testing.assert_array_equal(predictions.correct, log_probs.argmax(axis=-1) == TEST.labels)
    assert predictions.correct_top5.all()
    assert 10 < predictions.top1[-1] < 90


EVALUATION_ON_SEVERAL_DEVICES = """
import sys
import jax, numpy as np
folder, devices, process, processes, port = sys.argv[1], *map(int, sys.argv[2:])
if processes > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", processes, process)
sys.path.insert(0, folder)
from conftest import TinyNetwork
sys.path.insert(0, sys.argv[1] + "/evaluation")
from test_evaluate import TEST, split_predictions, default_config, open_tiny_source
config = default_config()
config.dataset.update({"name": "digits", "num_classes": 4, "holdout": 30, "batch_size": 8})
config.dataset.update({"augmentation": "none", "eval_batch_size": 10})
model = TinyNetwork()
variables = model.init(jax.random.key(0), np.zeros((1, 8, 8, 3)), train=False)
source = open_tiny_source(config)
assert (jax.local_device_count(), jax.process_count()) == (devices, processes)
predictions = split_predictions.predict_all(config, model, variables, source, "test")
np.testing.assert_array_equal(predictions.labels, TEST.labels)
places = np.arange(len(TEST.labels))
print((predictions.confidences @ places).sum(), (predictions.losses @ places).sum())
"""


def evaluated_on(devices, processes):
    """What each process finds, as numbers that depend on the order of the images."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    running = [
        subprocess.Popen(
            [sys.executable, "-c", EVALUATION_ON_SEVERAL_DEVICES, str(Path(__file__).parents[1])]
            + [str(number) for number in (devices, process, processes, port)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for process in range(processes)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0] * processes
    return [[float(word) for word in output.splitlines()[-1].split()] for output in outputs]


def test_any_number_of_devices_and_processes_finds_the_same():
    (expected,) = evaluated_on(devices=1, processes=1)
    for found in evaluated_on(devices=3, processes=2):
        assert found == pytest.approx(expected, rel=1e-5)


def test_top5_counts_the_label_among_the_five_most_probable():
    logits = np.zeros((1, 3, 7), np.float32)
    logits[0, 0] = [5, 4, 3, 2, 1, 0, -1]
    logits[0, 1] = [5, 4, 3, 2, 1, 0, -1]
    labels = np.array([4, 5, 4])
    # The third image's classes are all alike: the lower index comes first, as in argmax.
    assert split_predictions._rank_of_label(logits, labels).tolist() == [[4, 5, 4]]
    np.testing.assert_array_equal(
        split_predictions._rank_of_label(logits, np.array([0, 1, 0])) == 0,
        logits.argmax(axis=-1) == np.array([0, 1, 0]),
    )


def with_network(config, model):
    return ConfigDict({**dict(config), "model": model})


def test_evaluate_writes_tables_that_agree_with_a_recomputation(
    config, source, state, tiny_network, tmp_path
):
    model, _ = tiny_network
    results = evaluate.evaluate(with_network(config, model), state, source, tmp_path)
    mul_adds = mul_adds_per_exit(model, 8)
    test_probs = all_probs(tiny_network, TEST.images)

    anytime = read_csv(tmp_path / "anytime.csv")
    assert list(anytime[0]) == ["exit", "mul_adds", "top1", "top5", "loss"]
    assert [row["exit"] for row in anytime] == [1, 2, 3]
    assert [row["mul_adds"] for row in anytime] == list(mul_adds)
    accuracies = 100 * (test_probs.argmax(axis=-1) == TEST.labels).mean(axis=1)
    np.testing.assert_allclose([row["top1"] for row in anytime], accuracies)
    assert [row["top5"] for row in anytime] == [100, 100, 100]

    held_out = next(iter(source.evaluation_batches("holdout", 30)))
    curve = budgeted_curve(
        all_probs(tiny_network, held_out["image"]), test_probs, TEST.labels, mul_adds
    )
    budgeted = read_csv(tmp_path / "budgeted.csv")
    assert list(budgeted[0]) == ["q", "mul_adds", "top1", "share_1", "share_2", "share_3"]
    assert budgeted == [pytest.approx(point) for point in curve]

    stored = json.loads((tmp_path / "evaluation.json").read_text())
    assert stored == results
    assert stored["class_names"] == ["a", "b", "c", "d"]
    assert stored["thresholds_from"] == "holdout"
    assert (stored["test_images"], stored["thresholds_images"], stored["step"]) == (37, 30, 7)
    for name in ("accuracy", "exits", "weights"):
        assert (tmp_path / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert any("% with" in line for line in evaluate.summary_lines(results))


def read_csv(path):
    with open(path, newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def test_thresholds_from_training_images_when_asked(config, source, state, tiny_network, tmp_path):
    config.dataset.thresholds_from = "train"
    results = evaluate.evaluate(with_network(config, tiny_network[0]), state, source, tmp_path)
    assert (results["thresholds_from"], results["thresholds_images"]) == ("train", 40)


def test_weights_are_those_that_training_would_give(config, source, state, tiny_network, tmp_path):
    model, _ = tiny_network
    evaluate.evaluate(with_network(config, model), state, source, tmp_path)
    weighting = create_weighting(config.weighting, model, axis_name=None)
    with np.load(tmp_path / "evaluation.npz") as arrays:
        losses, weights = arrays["weighted_losses"], arrays["weighted_weights"]
        assert sorted(losses[:, 0]) == sorted(arrays["thresholds_losses"][0])
    expected = weighting(state.wpn_params, losses, np.zeros_like(losses))
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


def test_plain_training_has_no_weights_to_show(config, source, state, tiny_network, tmp_path):
    config.weighting.kind = "none"
    state = state.replace(wpn_params={})
    evaluate.evaluate(with_network(config, tiny_network[0]), state, source, tmp_path)
    assert not (tmp_path / "plots" / "weights.png").exists()


def test_without_held_out_images_there_is_the_anytime_table(
    config, source, state, tiny_network, tmp_path
):
    network_config = with_network(config, tiny_network[0])
    before = evaluate.evaluate(network_config, state, source, tmp_path)
    splits = {"train": images_of(0, 0), "holdout": images_of(2, 0), "test": TEST}
    alone = MemorySource(config, splits, ("a", "b", "c", "d"), ORIGINS)
    results = evaluate.evaluate(network_config, state, alone, tmp_path)
    assert results["anytime"] == before["anytime"]
    assert results["splits"] == {"train": "none", "holdout": "none", "test": "test (37 images)"}
    assert (results["budgeted"], results["thresholds_images"]) == ([], 0)
    # What an earlier evaluation made is not left behind as if it were of this one.
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == [
        "accuracy.png",
        "anytime.csv",
        "evaluation.json",
        "evaluation.npz",
    ]
    assert "no images of 'holdout' are at hand" in evaluate.summary_lines(results)[-1]
    (tmp_path / "config.json").write_text(to_json(config))
    assert "Evaluated without held-out images" in report.write_report([tmp_path]).read_text()


def test_answers_that_are_not_finite_are_refused(config, source, tiny_network):
    model, variables = tiny_network
    broken = jax.tree.map(np.array, variables)
    broken["params"]["head_1"]["bias"][2] = np.nan
    with pytest.raises(UserError, match=r"37 of 37 images .* \(exits \[2\]\)"):
        split_predictions.predict_all(config, model, broken, source, "test")


@pytest.mark.parametrize("change", ["repeat a batch", "leave one out"])
def test_an_image_counted_twice_or_not_at_all_is_noticed(
    config, source, tiny_network, monkeypatch, change
):
    batches = list(source.evaluation_batches("test", 16))
    wrong = batches + batches[:1] if change == "repeat a batch" else batches[1:]
    monkeypatch.setattr(source, "evaluation_batches", lambda *_: wrong)
    with pytest.raises(RuntimeError, match="exactly once"):
        split_predictions.predict_all(config, *tiny_network, source, "test")


def test_an_image_that_could_not_be_read_is_left_out(config, source, tiny_network, monkeypatch):
    batches = list(source.evaluation_batches("test", 16))
    batches[1]["mask"] = batches[1]["mask"] & (batches[1]["index"] != 20)
    batches[1]["image"] = np.zeros_like(batches[1]["image"])
    everything = split_predictions.predict_all(config, *tiny_network, source, "test")
    monkeypatch.setattr(source, "evaluation_batches", lambda *_: batches)
    read = split_predictions.predict_all(config, *tiny_network, source, "test")
    assert read.positions.tolist() == [*range(20), *range(21, 37)]
    np.testing.assert_array_equal(read.labels, np.delete(everything.labels, 20))
    np.testing.assert_allclose(read.losses[:, 32 - 1 :], everything.losses[:, 32:], rtol=1e-5)


def test_accuracy_is_split_by_how_often_a_class_was_seen_in_training():
    labels = np.array([0, 0, 1, 1, 2, 2, 2, 2])
    correct = np.array([[1, 0, 1, 1, 0, 0, 0, 1]], bool)
    predictions = split_predictions.Predictions(
        positions=np.arange(8),
        labels=labels,
        losses=np.zeros((1, 8)),
        confidences=np.zeros((1, 8)),
        predicted=np.where(correct, labels, 9),
        correct=correct,
        correct_top5=correct,
    )
    (row,) = evaluate.shots_table(predictions, np.array([101, 100, 20]))
    assert row == {"exit": 1, "many": 50.0, "medium": 50.0, "few": None}
    (row,) = evaluate.shots_table(predictions, np.array([500, 50, 19]))
    assert row == {"exit": 1, "many": 50.0, "medium": 100.0, "few": 25.0}


def test_a_long_tailed_data_set_gets_its_table(config, source, state, tiny_network, tmp_path):
    config.dataset.imbalance_factor = 10
    network_config = with_network(config, tiny_network[0])
    results = evaluate.evaluate(network_config, state, source, tmp_path)
    with open(tmp_path / "shots.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["exit"], row["many"], row["medium"]) for row in rows] == [
        (str(k), "", "") for k in (1, 2, 3)
    ]
    assert [float(row["few"]) for row in rows] == pytest.approx(
        [row["few"] for row in results["shots"]]
    )
