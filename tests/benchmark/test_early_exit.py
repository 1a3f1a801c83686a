"""The times of a run's early exits: what is timed, and what the files say."""

import json

import jax
import numpy as np
import pytest
from full_disk import fill_temporary_folder
from written_runs import made_evaluation, made_predictions

from l2w_jax import data
from l2w_jax.benchmark import __main__ as benchmark_command
from l2w_jax.benchmark import early_exit as early_exit_benchmark
from l2w_jax.benchmark.early_exit import (
    LEAST_IMAGES,
    TIMED_QS,
    benchmark_early_exit,
    time_network,
    write_latency,
)
from l2w_jax.benchmark.runtimes import RUNTIMES, Runtime, checked_runtimes
from l2w_jax.config import default_config, stored
from l2w_jax.data.source import LabelledImages, MemorySource
from l2w_jax.early_exit import EarlyExitPredictor, rules
from l2w_jax.early_exit.budget import (
    NOBODY_LEAVES,
    exit_shares,
    find_thresholds,
    first_exits,
    operating_point,
)
from l2w_jax.early_exit.latency import all_leave_at
from l2w_jax.errors import UserError
from l2w_jax.evaluation import results
from l2w_jax.interop.exported_folder import ImageFormat


@pytest.fixture
def evaluation():
    rng = np.random.default_rng(0)
    return made_evaluation(
        anytime=[{"mul_adds": 1e6 * k, "top1": 60.0 + k} for k in (1, 2, 3)],
        network="of its arrays",
        held_out=made_predictions(rng.random((3, 100)), rng.random((3, 100)) < 0.7),
        test=made_predictions(rng.random((3, 100)), rng.random((3, 100)) < 0.7),
    )


def test_every_exit_and_the_curve_are_timed_in_batches_in_each_runtime(tiny_network, evaluation):
    images = np.zeros((6, 8, 8, 3), np.float32)
    seen = []
    predictor = EarlyExitPredictor(*tiny_network, [0, 0, 0], rule=rules.log_odds)
    runtimes = [
        Runtime(name, lambda batch, name=name: seen.append((name, len(batch))), way)
        for name, way in (("jax", predictor.with_thresholds), ("other", lambda thresholds: len))
    ]
    entry, other = time_network(runtimes, images, 2, evaluation, 2)
    assert seen == ([("jax", 2)] * 3 + [("other", 2)] * 3) * 3
    assert (entry["runtime"], other["runtime"]) == ("jax", "other")
    assert [(row["exit"], row["top1"]) for row in entry["exits"]] == [(1, 61), (2, 62), (3, 63)]
    assert [row["q"] for row in entry["budgeted"]] == list(TIMED_QS)
    costs = [row["mul_adds"] for row in entry["budgeted"]]
    assert costs == sorted(costs) and costs[0] < 1.3e6 and costs[-1] > 2e6
    assert all(row["ms"] > 0 for row in entry["exits"] + entry["budgeted"])
    # What runs early exit takes longer than what does nothing.
    assert sum(row["ms"] for row in other["budgeted"]) < sum(row["ms"] for row in entry["budgeted"])


def test_each_time_is_told_of_what_took_it(evaluation, monkeypatch):
    costs, taken = {}, []

    def runtime(name, more):
        def stopping(thresholds):
            # What stops by other thresholds takes another time.
            ms = costs.setdefault(np.float32(thresholds).tobytes(), 1.0 + len(costs))
            return lambda batch: taken.append(ms + more)

        return Runtime(name, lambda batch: taken.append(0.5 + more), stopping)

    def told(passes, images, repeats):
        for one_pass in passes:
            one_pass(images)
        return np.array(taken)

    monkeypatch.setattr(early_exit_benchmark, "milliseconds", told)
    runtimes = [runtime("jax", 0), runtime("other", 100)]
    entries = time_network(runtimes, np.zeros((2, 8, 8, 3)), 2, evaluation, 1)
    held_out = evaluation.held_out.log_odds
    expected = {
        "exits": [all_leave_at(k, 3) for k in range(3)],
        "budgeted": [find_thresholds(held_out, exit_shares(q, 3)) for q in TIMED_QS],
    }
    assert len(costs) == 3 + len(TIMED_QS)
    for entry, more in zip(entries, (0, 100), strict=True):
        assert entry["full_ms"] == 0.5 + more
        for part, of_rows in expected.items():
            ms = [costs[np.float32(thresholds).tobytes()] + more for thresholds in of_rows]
            assert [row["ms"] for row in entry[part]] == ms


def test_the_curve_tells_what_test_images_come_to_by_thresholds_of_held_out_ones(evaluation):
    runtime = Runtime("none", len, lambda thresholds: len)
    (entry,) = time_network([runtime], np.zeros((2, 8, 8, 3)), 2, evaluation, 1)
    for row in entry["budgeted"]:
        shares = exit_shares(row["q"], 3)
        thresholds = find_thresholds(evaluation.held_out.log_odds, shares)
        exits = first_exits(evaluation.test.log_odds, thresholds)
        point = operating_point(exits, evaluation.test.correct, evaluation.mul_adds)
        assert (row["mul_adds"], row["top1"]) == (point.cost, point.top1)


def test_onnx_answers_as_jax_does(tiny_network):
    pytest.importorskip("onnxruntime")
    images = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 3)).astype(np.uint8)
    image_format = ImageFormat(8, 1.0, [0.5] * 3, [0.25] * 3)
    names = checked_runtimes(["jax", "onnx", "onnx_1_thread"])
    made = [RUNTIMES[name](*tiny_network, image_format) for name in names]
    at_once = made[0].with_thresholds(all_leave_at(0, 3))(images)
    # Half of the images are more confident.
    middle = rules.log_odds_of_confidences(np.median(at_once.confidences))
    in_jax, *in_onnx = (
        runtime.with_thresholds([middle, NOBODY_LEAVES, 0])(images) for runtime in made
    )
    assert [runtime.name for runtime in made] == ["jax", "onnx", "onnx_1_thread"]
    assert np.bincount(in_jax.exits).tolist() == [25, 0, 25]
    # The full network stops at no exit, however sure.
    for runtime in made[1:]:
        assert set(runtime.full_network(images)[1]) == {2}
    for labels, exits, _ in in_onnx:
        np.testing.assert_array_equal(labels, in_jax.labels)
        np.testing.assert_array_equal(exits, in_jax.exits)
    with pytest.raises(UserError, match="--runtime: 'tensorrt' is not allowed"):
        checked_runtimes(["jax", "tensorrt"])


def test_an_export_to_time_that_finds_no_room_is_told_in_one_line(tiny_network, monkeypatch):
    pytest.importorskip("onnxruntime")
    fill_temporary_folder(monkeypatch)
    with pytest.raises(UserError, match=r"^TMPDIR=.*: No space left on device$"):
        RUNTIMES["onnx"](*tiny_network, ImageFormat(8, 1.0, [0.5] * 3, [0.25] * 3))


@pytest.mark.parametrize(("name", "threads"), [("onnx", 0), ("onnx_1_thread", 1)])
def test_onnx_has_the_threads_that_its_name_says(name, threads, tiny_network, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    found, session = [], onnxruntime.InferenceSession

    def watched(model, options, providers):
        found.append(options.intra_op_num_threads)
        return session(model, options, providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", watched)
    RUNTIMES[name](*tiny_network, ImageFormat(8, 1.0, [0.5] * 3, [0.25] * 3))
    assert found == [threads] * 3


def test_files_lie_beside_the_run(tiny_network, evaluation, tmp_path, monkeypatch):
    model, variables = tiny_network
    config = default_config()
    config.dataset.update({"name": "digits", "num_classes": 4, "batch_size": 8})
    config.dataset.augmentation = "none"
    rng = np.random.default_rng(0)
    splits = {
        split: LabelledImages(
            rng.integers(0, 256, (10, 8, 8, 3)).astype(np.uint8), np.zeros(10, np.int32)
        )
        for split in ("train", "holdout", "test")
    }
    source = MemorySource(config, splits, ("a", "b", "c", "d"))
    timed = []

    def watched(runtimes, images, *arguments):
        timed.append(images)
        return time_network(runtimes, images, *arguments)

    time_network = early_exit_benchmark.time_network
    monkeypatch.setattr(early_exit_benchmark, "time_network", watched)

    class State:
        step = 7

    State.variables = variables

    monkeypatch.setattr(stored, "read_config", lambda workdir: config)
    monkeypatch.setattr(results.Evaluation, "load", lambda workdir: evaluation)
    for name, value in {
        "restore_evaluated": lambda config, workdir, evaluation: State,
        "create_network": lambda config: model,
    }.items():
        monkeypatch.setattr(early_exit_benchmark, name, value)
    monkeypatch.setattr(data, "open_source", lambda config, known_classes: source)
    latency = benchmark_early_exit(tmp_path, batch_sizes=[4, 32], repeats=1)
    assert not list(tmp_path.iterdir())
    write_latency(tmp_path, latency)
    assert json.loads((tmp_path / "latency.json").read_text()) == latency
    assert [entry["batch_size"] for entry in latency["batch_sizes"]] == [4, 32]
    # Also of a few images at a time, enough in all that they do not leave at one exit.
    assert [len(images) for images in timed] == [LEAST_IMAGES] * 2
    tested = {image.tobytes() for image in splits["test"].images}
    assert {image.tobytes() for images in timed for image in images} == tested
    assert latency["device"] == jax.devices()[0].device_kind
    assert (latency["step"], latency["network"]) == (7, "of its arrays")
    assert (tmp_path / "plots" / "latency.png").read_bytes().startswith(b"\x89PNG")


def test_images_that_the_run_was_not_evaluated_with_tell_no_times(calibrated_run, monkeypatch):
    calibrated_run.find_others(monkeypatch, "test")
    with pytest.raises(UserError, match="its last evaluation used other images of split 'test'"):
        benchmark_early_exit(calibrated_run.workdir)


def test_the_command_prints_json_and_then_names_the_files(monkeypatch, capsys):
    monkeypatch.setattr(early_exit_benchmark, "benchmark_early_exit", lambda *_: {"step": 7})
    monkeypatch.setattr(early_exit_benchmark, "write_latency", lambda *_: None)
    benchmark_command.main(["--early-exit", "--workdir=run"], 0.0)
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"step": 7}
    assert printed.err.splitlines()[-1] == "written to run/latency.json and run/plots/latency.png"


def test_what_was_measured_is_printed_also_where_the_run_folder_takes_no_file(
    evaluation, tmp_path, monkeypatch, capsys
):
    runtime = Runtime("jax", len, lambda thresholds: len)
    measured = {
        "device": "cpu",
        "step": 7,
        "batch_sizes": time_network([runtime], np.zeros((2, 8, 8, 3)), 2, evaluation, 1),
    }
    monkeypatch.setattr(early_exit_benchmark, "benchmark_early_exit", lambda *_: measured)
    is_a_file = tmp_path / "run"
    is_a_file.touch()
    with pytest.raises(UserError, match=f"^{is_a_file}: cannot be written: "):
        benchmark_command.main(["--early-exit", f"--workdir={is_a_file}"], 0.0)
    assert json.loads(capsys.readouterr().out) == measured
