"""A run ends at the same state whatever happened on the way, and tells what it does."""

import dataclasses
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from pytrees import assert_bit_identical
from scripted_run import (
    EPOCHS,
    STEP_ON_DEVICES,
    STEPS_PER_EPOCH,
    TOTAL_STEPS,
    checkpoint_steps,
    metric_lines,
    scripted_source,
    send,
    train,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from unreadable_files import let_reads_fail

from l2w_jax.errors import RunFailed, RunInterrupted, UserError
from l2w_jax.run import devices, loop


def test_a_run_learns_and_ends_at_its_last_step(undisturbed):
    workdir, state = undisturbed
    assert state.step == TOTAL_STEPS
    first, *_, last = [line for line in metric_lines(workdir) if "loss" in line]
    assert np.mean(last["loss"]) < 0.5 * np.mean(first["loss"])


def test_two_runs_with_one_seed_are_bit_identical(config, undisturbed, tmp_path):
    assert_bit_identical(train(config, tmp_path), undisturbed[1])


def test_going_on_writes_each_metric_once(config, undisturbed, tmp_path):
    with pytest.raises(RunInterrupted):
        train(config, tmp_path, {13: send(signal.SIGTERM)})
    train(config, tmp_path)
    lines, expected = metric_lines(tmp_path), metric_lines(undisturbed[0])
    steps = [(line["step"], line["steps"]) for line in lines if "loss" in line]
    assert {step for step, _ in steps} >= set(range(2, TOTAL_STEPS + 1, 2))
    assert [step for step, _ in steps] == np.cumsum([count for _, count in steps]).tolist()
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


def test_a_checkpoint_that_cannot_be_read_now_stops_the_run_and_costs_nothing(
    config, undisturbed, tmp_path, monkeypatch
):
    workdir = shutil.copytree(undisturbed[0], tmp_path / "run")
    record = workdir / "checkpoints" / "20" / "record" / "metadata"
    content = record.read_bytes()
    let_reads_fail(record)
    with pytest.raises(RunFailed, match=r"record/metadata cannot be read now .Input/output error"):
        train(config, workdir)
    record.unlink()
    record.write_bytes(content)
    monkeypatch.setattr(loop, "_batches", pytest.fail)
    assert_bit_identical(train(config, workdir), undisturbed[1])


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


def test_histograms_can_be_left_out(config, tmp_path):
    config = config.copy_and_resolve_references()
    config.log.histogram_every_steps = 0
    train(config, tmp_path)
    events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()
    assert not [tag for tag in events.Tags()["tensors"] if tag.startswith("weights/")]


def test_progress_can_be_read(config, tmp_path, capsys):
    train(config, tmp_path)
    output = capsys.readouterr().out
    assert "83 images to train on, 24 held out, 43 to test on" in output
    assert "step 2/20  epoch 0.4  loss " in output
    assert " images/s  " in output
    assert " s left" in output


def test_slow_data_show_as_waiting(config, tmp_path):
    slow = dict.fromkeys(range(9, 15), lambda: time.sleep(0.2))
    loop.train(config, scripted_source(config, slow), tmp_path)
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
    loop.train(config, scripted_source(config, each_epoch), tmp_path)
    assert len(used) == 50
    assert used[-1] - used[10] < 30e6
