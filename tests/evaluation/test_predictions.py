"""Every image is answered once, whatever the batch size and the number of devices."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evaluation import several_devices
from programs import ENVIRONMENT
from small_networks import ConvNetwork, between, lively_variables
from tiny_images import TEST, all_log_probs, open_tiny_source
from written_runs import anytime_rows, made_evaluation, write_config

from l2w_jax import progress, thresholds
from l2w_jax.early_exit import EarlyExitPredictor, rules
from l2w_jax.early_exit.budget import first_exits
from l2w_jax.early_exit.selection import thresholds_of
from l2w_jax.errors import RunFailed, UserError
from l2w_jax.evaluation import predictions as split_predictions
from l2w_jax.evaluation.results import Evaluation
from l2w_jax.models.preprocessing import channel_statistics, normalize

PROGRAM = Path(__file__).with_name("several_devices.py")


@pytest.mark.parametrize("batch_size", [1, 16, 37, 64])
def test_every_image_counts_once_whatever_the_batch_size(config, source, tiny_network, batch_size):
    config.dataset.eval_batch_size = batch_size
    predictions = split_predictions.predict_all(config, *tiny_network, source, "test")
    log_probs = all_log_probs(tiny_network, TEST.images)
    losses = -log_probs[:, np.arange(37), TEST.labels]
    np.testing.assert_array_equal(predictions.labels, TEST.labels)
    confidences = np.exp(log_probs.max(axis=-1))
    np.testing.assert_allclose(predictions.confidences, confidences, rtol=1e-5)
    odds = np.log(confidences / (1 - confidences))
    np.testing.assert_allclose(predictions.log_odds, odds, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(predictions.losses, losses, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(predictions.predicted, log_probs.argmax(axis=-1))
    np.testing.assert_array_equal(predictions.correct, log_probs.argmax(axis=-1) == TEST.labels)
    assert predictions.correct_top5.all()
    assert 10 < predictions.top1[-1] < 90


@pytest.mark.parametrize("split", ["test", "holdout", "train"])
def test_a_batch_has_no_more_rows_than_there_are_images(
    config, source, tiny_network, split, monkeypatch
):
    rows = []
    batches_of = source._unaugmented

    def batches(*arguments):
        for batch in batches_of(*arguments):
            rows.append(len(batch["mask"]))
            yield batch

    monkeypatch.setattr(source, "_unaugmented", batches)
    config.dataset.eval_batch_size = 10**9
    expected = len(split_predictions.predict_all(config, *tiny_network, source, split).labels)
    # Held-out and test images come in batches of one size, for which the network is compiled.
    assert rows == [max(source.num_test, source.num_holdout, expected)]
    if split == "holdout":
        positions = np.arange(source.num_holdout)
        logits, _ = split_predictions.logits_of(config, *tiny_network, source, positions)
        assert rows[1:] == rows[:1]
        assert logits.shape[1] == source.num_holdout


def test_an_evaluation_that_takes_minutes_says_how_far_it_is(
    config, source, tiny_network, monkeypatch, capsys
):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    config.dataset.eval_batch_size = 16
    split_predictions.predict_all(config, *tiny_network, source, "test")
    assert capsys.readouterr().err.splitlines() == [
        f"test: {count} of 37 images evaluated" for count in (16, 32, 37)
    ]


def test_processes_share_few_images_evenly(config, source):
    config.dataset.eval_batch_size = 10**9
    sizes = [split_predictions._batch_size(config, source, "test", count) for count in (1, 2, 64)]
    assert sizes == [37, 19, 1]


def evaluated_on(devices, processes):
    """What each of the processes finds."""
    environment = ENVIRONMENT | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    # -P: from the program's own folder it would take this folder's conftest for that of all tests.
    program = [sys.executable, "-P", str(PROGRAM)]
    with socket.socket() as probe:
        # Held, and shared with JAX: see launch/processes.py.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        running = [
            subprocess.Popen(
                [*program, *map(str, (devices, process, processes, port))],
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
    expected = several_devices.found()
    for found in evaluated_on(devices=3, processes=2):
        assert found == pytest.approx(expected, rel=1e-5)


def test_top5_is_told_of_more_than_five_classes(config, source):
    config.dataset.num_classes = 10
    network = ConvNetwork(num_classes=10)
    network = network, lively_variables(network, jnp.zeros((1, 8, 8, 3)))
    predictions = split_predictions.predict_all(config, *network, source, "test")
    five_best = np.argsort(-all_log_probs(network, TEST.images), axis=-1)[..., :5]
    expected = (five_best == TEST.labels[:, None]).any(axis=-1)
    np.testing.assert_array_equal(predictions.correct_top5, expected)
    # Some are right with their fifth class only.
    assert (five_best[..., 4] == TEST.labels).any()
    assert not expected.all()


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


@pytest.mark.parametrize("rule", [*rules.RULES])
def test_stored_scores_are_those_by_which_images_leave(config, source, tiny_network, rule):
    scores = split_predictions.predict_all(config, *tiny_network, source, "test").scores(rule)
    mean, deviation = channel_statistics(config.dataset.name)
    predictor = EarlyExitPredictor(
        *tiny_network,
        [0, 0, 0],
        lambda images: normalize(images, mean, deviation),
        rule=rules.RULES[rule],
    )
    for share in (0.2, 0.5, 0.8):
        thresholds = between(scores, share)
        exits = predictor.with_thresholds(thresholds)(TEST.images).exits
        np.testing.assert_array_equal(exits, first_exits(scores, thresholds))
        assert len(set(exits)) > 1


def purity(logits):
    """Sum of the squared softmax probabilities."""
    return (jax.nn.softmax(logits) ** 2).sum(axis=-1)


def test_a_rule_needs_no_more_than_to_be_listed(config, source, monkeypatch, tmp_path):
    monkeypatch.setitem(rules.RULES, "purity", purity)
    # Of another network than any test's, so that nothing compiled without the rule is used.
    network = ConvNetwork(num_classes=6)
    network = network, lively_variables(network, jnp.zeros((1, 8, 8, 3)))
    config.dataset.num_classes = 6
    found = {
        name: split_predictions.predict_all(config, *network, source, split)
        for name, split in (("test", "test"), ("held_out", "holdout"))
    }
    expected = np.exp(2 * all_log_probs(network, TEST.images)).sum(axis=-1)
    np.testing.assert_allclose(found["test"].scores("purity"), expected, rtol=1e-4)

    write_config(tmp_path)
    anytime = anytime_rows([1e6, 2e6], [50.0, 60.0])
    made_evaluation(class_names=list("abcdef"), anytime=anytime, **found).save(tmp_path)
    thresholds.main([f"--workdir={tmp_path}", "--rule=purity", "--q=1"])
    chosen = json.loads((tmp_path / "thresholds.json").read_text())
    of_thresholds = found["held_out"].scores("purity")
    assert chosen["thresholds"] == thresholds_of(1, of_thresholds).tolist()

    # Whoever does without the rule again can read the evaluation still.
    monkeypatch.delitem(rules.RULES, "purity")
    margins = found["held_out"].scores("margin")
    np.testing.assert_array_equal(Evaluation.load(tmp_path).held_out.scores("margin"), margins)


def test_what_is_stored_keeps_its_names(config, source, tiny_network):
    predictions = split_predictions.predict_all(config, *tiny_network, source, "test")
    assert list(predictions.arrays()) == [
        *("positions", "labels", "losses", "confidences", "predicted", "correct", "correct_top5"),
        *("log_odds", "negative_entropy", "margin"),
    ]


@pytest.mark.parametrize(
    ("bias", "images"),
    [
        (np.nan, 37),
        # A class that is ruled out: the loss of its images alone is infinite, no confidence is.
        (-np.inf, np.count_nonzero(TEST.labels == 2)),
    ],
)
def test_answers_that_are_not_finite_are_refused(config, source, tiny_network, bias, images):
    model, variables = tiny_network
    broken = jax.tree.map(np.array, variables)
    broken["params"]["head_1"]["bias"][2] = bias
    with pytest.raises(UserError, match=rf"{images} of 37 images .* \(exits \[2\]\)"):
        split_predictions.predict_all(config, model, broken, source, "test")


def test_a_split_without_images_is_one_line(config, tiny_network):
    source = open_tiny_source(config, num_holdout=0)
    with pytest.raises(UserError, match=r"^evaluation: the split 'holdout' of .* has no images$"):
        split_predictions.predict_all(config, *tiny_network, source, "holdout")


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


def test_a_split_without_an_image_that_can_be_read_is_named(
    config, source, tiny_network, monkeypatch
):
    batches = list(source.evaluation_batches("test", 16))
    for batch in batches:
        batch["mask"] = np.zeros_like(batch["mask"])
    monkeypatch.setattr(source, "evaluation_batches", lambda *_: batches)
    with pytest.raises(UserError, match=r"^evaluation: no image of split 'test' can be used; "):
        split_predictions.predict_all(config, *tiny_network, source, "test")


def test_a_batch_that_memory_does_not_hold_is_told_with_what_helps(
    config, source, tiny_network, monkeypatch
):
    def exhausted(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nand a page more")

    monkeypatch.setattr(split_predictions, "_compiled_answers", lambda: exhausted)
    with pytest.raises(
        RunFailed, match=r"^evaluation: .* memory\); .*eval_batch_size below \d+.*$"
    ):
        split_predictions.predict_all(config, *tiny_network, source, "test")
