"""What a signal does to a run, and that the same command goes on to the same bits."""

import shutil
import signal
import threading

import pytest
from programs import PATIENCE
from pytrees import assert_bit_identical
from scripted_run import (
    STEP_ON_DEVICES,
    TOTAL_STEPS,
    checkpoint_steps,
    metric_lines,
    send,
    train,
)

from l2w_jax.errors import RunInterrupted
from l2w_jax.run import loop, stop_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_at_the_current_step_and_the_same_command_goes_on(
    config, undisturbed, tmp_path, number
):
    config = config.copy_and_resolve_references()
    # Of the steps before the signal no line is due.
    config.log.every_steps = TOTAL_STEPS + 1
    with pytest.raises(RunInterrupted, match=f"{number.name} after step [0-9]+, which is saved"):
        train(config, tmp_path, {8: send(number)})
    saved = checkpoint_steps(tmp_path)[-1]
    assert 5 <= saved <= 8, "batches are made at most three steps ahead"
    (line,) = (line for line in metric_lines(tmp_path) if "steps" in line)
    assert line["step"] == line["steps"] == saved
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
        assert ended.wait(timeout=PATIENCE), (
            "before the batch is there, and so before the first step"
        )

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


def test_the_pipelined_schedule_goes_on_with_the_half_it_had(config, tmp_path, monkeypatch):
    config = config.copy_and_resolve_references()
    config.weighting.schedule = "pipelined"
    step = STEP_ON_DEVICES(config, TOTAL_STEPS)
    monkeypatch.setattr(loop, "step_on_devices", lambda *_: step)
    undisturbed = train(config, tmp_path / "undisturbed")
    with pytest.raises(RunInterrupted):
        train(config, tmp_path / "stopped", {8: send(signal.SIGTERM)})
    assert_bit_identical(train(config, tmp_path / "stopped"), undisturbed)
