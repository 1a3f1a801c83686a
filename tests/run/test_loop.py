"""A run ends at the same state whatever happened on the way, and never with a bad one."""

import dataclasses
import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from written_runs import made_evaluation

from l2w_jax.config import default_config, to_json
from l2w_jax.data.source import LabelledImages, MemorySource
from l2w_jax.errors import RunFailed, RunInterrupted, UserError
from l2w_jax.run import checkpoints, devices, loop, restore, start, stop_signals
from l2w_jax.training import create_train_state

BATCH = 16
STEPS_PER_EPOCH = 5
EPOCHS = 4
TOTAL_STEPS = STEPS_PER_EPOCH * EPOCHS
STEP_ON_DEVICES = loop.step_on_devices


@pytest.fixture(scope="module")
def config(tiny_network):
    config = default_config()
    config.dataset.update(
        name="digits", image_size=8, num_classes=4, batch_size=BATCH, eval_batch_size=24, holdout=20
    )
    config.dataset.augmentation = "shift"
    with config.ignore_type():
        config.model = tiny_network[0]
    config.weighting.hidden = 8
    config.optimizer.update(epochs=EPOCHS, learning_rate=0.1)
    config.log.update(every_steps=2, histogram_every_steps=10)
    return config


class ScriptedSource(MemorySource):
    """Four classes of coloured noise; before the batch of a given step something may happen."""

    def __init__(self, config, before_step=None):
        generator = np.random.default_rng(0)

        def images(count):
            labels = generator.integers(0, 4, count).astype(np.int32)
            noise = generator.integers(0, 100, (count, 8, 8, 3))
            tint = np.array([[150, 0, 0], [0, 150, 0], [0, 0, 150], [90, 90, 90]])[labels]
            return LabelledImages((noise + tint[:, None, None]).astype(np.uint8), labels)

        splits = {
            "train": images(BATCH * STEPS_PER_EPOCH + 3),
            "holdout": images(20),
            "test": images(30),
        }
        super().__init__(config, splits, ("red", "green", "blue", "grey"), num_bad=1)
        self.before_step = before_step or {}

    def train_batches(self, first_step, process_index=0, process_count=1):
        batches = super().train_batches(first_step, process_index, process_count)
        for step, batch in enumerate(batches, first_step + 1):
            self.before_step.get(step, lambda: None)()
            yield batch


@pytest.fixture(scope="module", autouse=True)
def _one_compilation(config):
    """The iteration is compiled once for all tests here."""
    step = STEP_ON_DEVICES(config, TOTAL_STEPS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "step_on_devices", lambda *_: step)
        yield


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory, _one_compilation):
    """The folder and the last state of a run that nobody touched."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    return workdir, loop.train(config, ScriptedSource(config), workdir)


def train(config, workdir, before_step=None):
    workdir.mkdir(exist_ok=True)
    return loop.train(config, ScriptedSource(config, before_step), workdir)


def metric_lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def checkpoint_steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def assert_bit_identical(state, other):
    assert jax.tree.structure(state) == jax.tree.structure(other)
    for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True):
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()


def send(number):
    return lambda: os.kill(os.getpid(), number)


def test_a_run_learns_and_ends_at_its_last_step(undisturbed):
    workdir, state = undisturbed
    assert state.step == TOTAL_STEPS
    first, *_, last = [line for line in metric_lines(workdir) if "loss" in line]
    assert np.mean(last["loss"]) < 0.5 * np.mean(first["loss"])


def test_two_runs_with_one_seed_are_bit_identical(config, undisturbed, tmp_path):
    assert_bit_identical(train(config, tmp_path), undisturbed[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_at_the_current_step_and_the_same_command_goes_on(
    config, undisturbed, tmp_path, number
):
    with pytest.raises(RunInterrupted, match=f"{number.name} after step [0-9]+, which is saved"):
        train(config, tmp_path, {8: send(number)})
    saved = checkpoint_steps(tmp_path)[-1]
    assert 5 <= saved <= 8, "batches are made at most three steps ahead"
    assert_bit_identical(train(config, tmp_path), undisturbed[1])


@pytest.mark.parametrize("first_step", [0, 10])
def test_a_signal_before_there_is_something_to_save_ends_the_process(
    config, undisturbed, tmp_path, monkeypatch, first_step
):
    """In a new run and in one that goes on; each has its first step to compile."""
    workdir = shutil.copytree(undisturbed[0], tmp_path / "run")
    for step in checkpoint_steps(workdir):
        if step > first_step:
            shutil.rmtree(workdir / "checkpoints" / str(step))
    ended = threading.Event()
    monkeypatch.setattr(stop_signals, "_end", lambda _: ended.set())

    def interrupted():
        send(signal.SIGTERM)()
        assert ended.wait(timeout=30), "before the batch is there, and so before the first step"

    # Who is still there stops where there is something to save.
    with pytest.raises(RunInterrupted, match=f"SIGTERM after step {first_step + 1}, which is"):
        train(config, workdir, {first_step + 1: interrupted})
    assert_bit_identical(train(config, workdir), undisturbed[1])


def test_a_signal_while_the_last_step_is_scored_stops_before_the_evaluation(
    config, undisturbed, tmp_path, monkeypatch
):
    score = loop._score

    def interrupted(config, source, state, *others):
        if state.step == TOTAL_STEPS:
            send(signal.SIGTERM)()
        return score(config, source, state, *others)

    monkeypatch.setattr(loop, "_score", interrupted)
    with pytest.raises(RunInterrupted, match="SIGTERM after the last step, which is saved"):
        train(config, tmp_path)
    assert_bit_identical(train(config, tmp_path), undisturbed[1])


def test_a_second_interrupt_stops_at_once_and_the_same_command_goes_on(
    config, undisturbed, tmp_path, monkeypatch
):
    def interrupted_twice(step):
        if step == 13:
            send(signal.SIGINT)()
            send(signal.SIGINT)()
            pytest.fail("went on after two signals")
        return False

    with monkeypatch.context() as patch:
        patch.setattr(loop.processes, "asked_to_stop", interrupted_twice)
        with pytest.raises(RunInterrupted, match="at once by a second SIGINT"):
            train(config, tmp_path)
    assert checkpoint_steps(tmp_path)[-1] == 10
    assert_bit_identical(train(config, tmp_path), undisturbed[1])


def test_histograms_can_be_left_out(config, tmp_path):
    config = config.copy_and_resolve_references()
    config.log.histogram_every_steps = 0
    train(config, tmp_path)
    events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()
    assert not [tag for tag in events.Tags()["tensors"] if tag.startswith("weights/")]


def test_going_on_writes_each_metric_once(config, undisturbed, tmp_path):
    with pytest.raises(RunInterrupted):
        train(config, tmp_path, {13: send(signal.SIGTERM)})
    train(config, tmp_path)
    lines, expected = metric_lines(tmp_path), metric_lines(undisturbed[0])
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == list(range(2, TOTAL_STEPS + 1, 2))
    assert lines[0]["step"] == 2
    assert [line for line in lines if "holdout_top1" in line] == [
        line for line in expected if "holdout_top1" in line
    ]


def test_lines_after_the_last_checkpoint_of_a_killed_run_are_dropped(config, undisturbed, tmp_path):
    workdir = shutil.copytree(undisturbed[0], tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "20")
    with open(workdir / "metrics.jsonl", "a") as file:
        file.write('{"step": 20, "los')
    train(config, workdir)
    steps = [line["step"] for line in metric_lines(workdir) if "loss" in line]
    assert steps == list(range(2, TOTAL_STEPS + 1, 2))


def test_a_damaged_checkpoint_costs_its_steps_and_nothing_else(config, undisturbed, tmp_path):
    workdir = shutil.copytree(undisturbed[0], tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "20" / "state")
    assert_bit_identical(train(config, workdir), undisturbed[1])
    assert checkpoint_steps(workdir) == [10, 15, 20]


def test_all_checkpoints_damaged_stops_before_training(config, undisturbed, tmp_path):
    workdir = shutil.copytree(undisturbed[0], tmp_path / "run")
    for step in checkpoint_steps(workdir):
        shutil.rmtree(workdir / "checkpoints" / str(step) / "state")
    with pytest.raises(UserError, match="every checkpoint is damaged"):
        train(config, workdir)


def test_a_finished_run_is_not_trained_again(config, undisturbed, capsys):
    workdir, state = undisturbed
    assert_bit_identical(train(config, workdir), state)
    assert "is trained to its last step, 20, already" in capsys.readouterr().out


def test_checkpoints_by_steps_go_on_too(config, undisturbed, tmp_path):
    often = config.copy_and_resolve_references()
    often.checkpoint.update(every_epochs=2, every_steps=3, keep=100)
    assert_bit_identical(train(often, tmp_path), undisturbed[1])
    assert checkpoint_steps(tmp_path) == [3, 6, 9, 10, 12, 15, 18, 20]


def with_metric(monkeypatch, bad_step, change):
    """Makes the iteration of one step return other results."""
    step_on_devices = loop.step_on_devices(None, None)

    def changed(state, batch):
        state, metrics = step_on_devices(state, batch)
        return change(state, metrics) if int(state.step) == bad_step else (state, metrics)

    monkeypatch.setattr(loop, "step_on_devices", lambda *_: changed)


def test_the_pipelined_schedule_goes_on_with_the_half_it_had(config, tmp_path, monkeypatch):
    config = config.copy_and_resolve_references()
    config.weighting.schedule = "pipelined"
    step = STEP_ON_DEVICES(config, TOTAL_STEPS)
    monkeypatch.setattr(loop, "step_on_devices", lambda *_: step)
    undisturbed = train(config, tmp_path / "undisturbed")
    with pytest.raises(RunInterrupted):
        train(config, tmp_path / "stopped", {8: send(signal.SIGTERM)})
    assert_bit_identical(train(config, tmp_path / "stopped"), undisturbed)


@pytest.mark.parametrize("bad_step", [8, 10, TOTAL_STEPS])
def test_a_loss_that_is_not_finite_stops_the_run(config, tmp_path, monkeypatch, bad_step):
    """In mid-epoch, at a step that would be saved, at the last step."""
    with_metric(
        monkeypatch,
        bad_step,
        lambda state, metrics: (state, metrics | {"loss": metrics["loss"] * np.nan}),
    )
    last_good = STEPS_PER_EPOCH * ((bad_step - 1) // STEPS_PER_EPOCH)
    with pytest.raises(
        RunFailed,
        match=rf"step {bad_step}: the loss is not finite .*learning rate 0\.\d+ and meta learning "
        rf"rate \d.*last good checkpoint is of step {last_good}",
    ) as failure:
        train(config, tmp_path)
    assert failure.value.exit_status == 1
    assert "warmup" not in str(failure.value)
    assert checkpoint_steps(tmp_path)[-1] == last_good
    logged = [line["step"] for line in metric_lines(tmp_path) if "loss" in line]
    assert logged[-1] == 2 * ((bad_step - 1) // 2), "metrics are flushed"


def test_a_loss_that_is_not_finite_in_the_first_epoch_advises_warm_up(
    config, tmp_path, monkeypatch
):
    with_metric(
        monkeypatch, 3, lambda state, metrics: (state, metrics | {"loss": metrics["loss"] * np.nan})
    )
    images = config.dataset.batch_size // 2
    with pytest.raises(
        RunFailed,
        match=r"step 3: .* no good checkpoint yet; in the first epoch, try .*warmup_epochs=5 "
        rf"\(now 0\).* linear rule gives {0.1 * images / 64:.3g} for updates of {images} images",
    ):
        train(config, tmp_path)


def test_a_state_that_is_not_finite_is_never_saved(config, tmp_path, monkeypatch):
    """As when a gradient overflowed whose loss was finite still."""

    def spoil(state, metrics):
        wpn_params = jax.tree.map(lambda array: array * np.inf, state.wpn_params)
        return state.replace(wpn_params=wpn_params), metrics

    with_metric(monkeypatch, 10, spoil)
    with pytest.raises(RunFailed, match=r"step 10: wpn_params/.* is not finite.*of step 5"):
        train(config, tmp_path)
    assert checkpoint_steps(tmp_path) == [5]


def test_a_network_that_is_not_finite_fails_at_the_step_that_is_scored(
    config, tmp_path, monkeypatch
):
    def spoil(state, metrics):
        return state.replace(params=jax.tree.map(lambda x: x * np.inf, state.params)), metrics

    with_metric(monkeypatch, 10, spoil)
    with pytest.raises(RunFailed, match=r"^step 10: .* not finite .* checkpoint is of step 5: "):
        train(config, tmp_path)


def test_a_run_does_not_go_on_with_other_images(config, undisturbed, tmp_path):
    workdir = shutil.copytree(undisturbed[0], tmp_path / "run")
    source = ScriptedSource(config)
    trained_on = source.num_train
    source.num_train -= 1
    with pytest.raises(
        UserError, match=rf"trained on {trained_on} images up to step \d+, but split"
    ):
        loop.train(config, source, workdir)


def test_a_step_that_memory_does_not_hold_is_told_with_what_helps(config, tmp_path, monkeypatch):
    def exhaust(state, metrics):
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Used 20.0G of 15.7G hbm.\nA page more"
        )

    with_metric(monkeypatch, 8, exhaust)
    with pytest.raises(
        RunFailed,
        match=r"^a step does not fit into a device's memory \(RESOURCE_EXHAUSTED: Used 20.0G of "
        r"15.7G hbm.\); try --config.optimizer.accumulation=2 \(now 1\), .* of step 5: [^\n]*$",
    ):
        train(config, tmp_path)


def test_devices_that_no_longer_agree_stop_the_run(config, tmp_path, monkeypatch):
    checked = config.copy_and_resolve_references()
    checked.log.check_replicas = 4
    train(checked, tmp_path / "agreeing")
    steps = []
    monkeypatch.setattr(
        loop,
        "diverged_devices",
        lambda state: steps.append(int(state.step)) or [1] * (len(steps) > 1),
    )
    with pytest.raises(RunFailed, match=r"step 8: device 1 of .* no longer holds .* of step 5"):
        train(checked, tmp_path / "diverging")
    assert steps == [4, 8]


def test_the_iteration_is_traced_once(config, tmp_path, monkeypatch):
    traces = []
    make_train_step = devices.make_train_step

    def counting(*arguments, **keywords):
        step = make_train_step(*arguments, **keywords)

        def counted(state, batch, i):
            traces.append(None)
            return step.update(state, batch, i)

        return dataclasses.replace(step, update=counted)

    monkeypatch.setattr(loop, "step_on_devices", STEP_ON_DEVICES)
    monkeypatch.setattr(devices, "make_train_step", counting)
    train(config, tmp_path)
    assert len(traces) == 1


def test_metrics_are_in_percent_and_in_tensorboard(undisturbed):
    workdir, _ = undisturbed
    lines = metric_lines(workdir)
    trained = [line for line in lines if "loss" in line]
    assert [line["epoch"] for line in trained][-1] == EPOCHS
    for line in trained:
        assert len(line["loss"]) == len(line["top1"]) == 3
        assert all(0 <= value <= 100 for value in line["top1"])
        assert line["meta_loss"] > 0
        assert 0 < line["images_per_second"] < 1e6
        assert 0 <= line["waiting_for_data"] <= 100
        assert line["bad_images"] == 1
    assert max(trained[-1]["top1"]) > 1
    events = EventAccumulator(str(workdir), size_guidance={"tensors": 0}).Reload()
    tags = set(events.Tags()["tensors"])
    for k in (1, 2, 3):
        expected = {
            f"train/exit_{k}/loss",
            f"train/exit_{k}/top1",
            f"holdout/exit_{k}/top1",
            f"weights/exit_{k}",
        }
        assert expected <= tags
    assert {"train/meta_loss", "train/learning_rate", "train/meta_learning_rate"} <= tags
    assert [event.step for event in events.Tensors("weights/exit_1")] == [10, 20]


def test_progress_can_be_read(config, tmp_path, capsys):
    train(config, tmp_path)
    output = capsys.readouterr().out
    assert "83 images to train on, 20 held out, 30 to test on" in output
    assert "step 2/20  epoch 0.4  loss " in output
    assert " images/s  " in output
    assert " s left" in output


def test_the_best_checkpoint_is_the_one_to_evaluate(config, undisturbed):
    workdir, _ = undisturbed
    held_out = {
        line["step"]: line["holdout_top1"][-1]
        for line in metric_lines(workdir)
        if "holdout_top1" in line
    }
    assert set(held_out) == {5, 10, 15, 20}
    best = max(held_out, key=lambda step: (held_out[step], step))
    assert restore.restore_best(config, workdir).step == best
    evaluated = made_evaluation(step=best)
    assert restore.restore_evaluated(config, workdir, evaluated).step == best
    outdated = made_evaluation(step=best - 5)
    with pytest.raises(UserError, match=f"of step {best}, but .* evaluated at step {best - 5}"):
        restore.restore_evaluated(config, workdir, outdated)


def test_without_checkpoints_there_is_nothing_to_evaluate(config, tmp_path):
    with pytest.raises(UserError, match="no checkpoint to evaluate"):
        restore.restore_best(config, tmp_path)


@pytest.fixture
def trained_run(tmp_path):
    """The folder of a small MSDNet's run with a checkpoint, its configuration and its state."""
    config = default_config()
    config.model.update(num_exits=2, channels=4, growth_rate=4)
    config.weighting.hidden = 6
    state = create_train_state(config, jax.random.key(7))
    folder = tmp_path / "trained"
    folder.mkdir()
    (folder / "config.json").write_text(to_json(config))
    writer = checkpoints.CheckpointWriter(folder, keep=1)
    writer.save(state)
    writer.wait()
    writer.close()
    return folder, config, state


def test_a_frozen_predictor_is_that_of_the_named_run(trained_run, tmp_path):
    folder, config, trained = trained_run
    config.weighting.update(kind="frozen", checkpoint=str(folder))
    state = start.create_or_restore(config, tmp_path / "new")
    assert_bit_identical(state.wpn_params, trained.wpn_params)
    assert jax.tree.leaves(state.wpn_opt_state) == []


def test_a_frozen_predictor_of_another_shape_or_of_no_run_is_refused(trained_run, tmp_path):
    folder, config, _ = trained_run
    config.weighting.update(kind="frozen", checkpoint=str(folder), hidden=5)
    with pytest.raises(UserError, match=r"float32\[6\] there and float32\[5\]"):
        start.create_or_restore(config, tmp_path / "new")
    config.weighting.update(hidden=6, input="confidence")
    with pytest.raises(UserError, match=r"weighting.input: 'confidence' .* must be 'loss', which"):
        start.create_or_restore(config, tmp_path / "new")
    config.weighting.checkpoint = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match="must be the workdir of a run that has a checkpoint"):
        start.create_or_restore(config, tmp_path / "new")


def test_slow_data_show_as_waiting(config, tmp_path):
    slow = dict.fromkeys(range(1, TOTAL_STEPS + 1), lambda: time.sleep(0.2))
    loop.train(config, ScriptedSource(config, slow), tmp_path)
    waiting = [line["waiting_for_data"] for line in metric_lines(tmp_path) if "loss" in line]
    assert max(waiting) > 50


def test_memory_is_flat_over_fifty_epochs(config, tmp_path):
    config = config.copy_and_resolve_references()
    config.optimizer.epochs = 50
    used = []

    def note_memory():
        used.append(
            int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
        )

    each_epoch = dict.fromkeys(range(1, 50 * STEPS_PER_EPOCH, STEPS_PER_EPOCH), note_memory)
    loop.train(config, ScriptedSource(config, each_epoch), tmp_path)
    assert len(used) == 50
    assert used[-1] - used[10] < 30e6
