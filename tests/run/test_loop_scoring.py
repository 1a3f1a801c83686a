"""When a run scores its state, and that the time which this takes is not its iterations'."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import TinyNetwork
from tiny_run import TinySource, make_config

from l2w_jax.errors import RunFailed
from l2w_jax.run import checkpoints, log, loop
from l2w_jax.run.log import RunLog

STEPS_PER_EPOCH = 3
EPOCHS = 4


def train_step(state, batch):
    """Stands in for an iteration: nothing is learned."""
    of_exits = np.ones(3, np.float32)
    metrics = dict.fromkeys(("loss", "top1"), of_exits) | {"weights": np.ones((16, 3))}
    scalars = ("weighted_loss", "meta_loss", "learning_rate", "meta_learning_rate")
    return state.replace(step=state.step + 1), metrics | dict.fromkeys(scalars, np.float32(1))


@pytest.fixture(autouse=True)
def _fixed_times(monkeypatch):
    """By the clock that the log reads an iteration takes 2 s, to score and to save 100 s each."""
    clock = SimpleNamespace(seconds=0.0)
    clock.monotonic = lambda: clock.seconds
    monkeypatch.setattr(log, "time", clock)

    def taking(seconds, function):
        def taken(*arguments):
            clock.seconds += seconds
            return function(*arguments)

        return taken

    predictions = SimpleNamespace(top1=np.array([20.0, 30.0, 40.0]))
    writer = checkpoints.CheckpointWriter
    # An iteration is over when its metrics are logged.
    monkeypatch.setattr(RunLog, "add_step", taking(2, RunLog.add_step))
    monkeypatch.setattr(loop, "predict_all", taking(100, lambda *_: predictions))
    monkeypatch.setattr(writer, "save", taking(100, writer.save))
    monkeypatch.setattr(loop, "step_on_devices", lambda *_: train_step)


def train(every_epochs, workdir):
    """Returns the lines of metrics.jsonl, those of training and those of scores."""
    config = make_config(TinyNetwork(), EPOCHS)
    config.checkpoint.every_epochs = every_epochs
    loop.train(config, TinySource(config), workdir)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return (
        [line for line in lines if "loss" in line],
        [line for line in lines if "holdout_top1" in line],
    )


@pytest.mark.parametrize(("every_epochs", "steps"), [(0, [12]), (3, [9, 12]), (5, [12])])
def test_the_last_step_is_scored_and_saved_whatever_the_interval(every_epochs, steps, tmp_path):
    _, scores = train(every_epochs, tmp_path)
    assert [line["step"] for line in scores] == steps
    assert checkpoints.saved_steps(tmp_path) == steps


def test_images_per_second_are_those_of_the_iterations_alone(tmp_path):
    """States are scored and saved in the first window of five iterations and in the second."""
    trained, scores = train(1, tmp_path)
    assert [line["step"] for line in scores] == [3, 6, 9, 12]
    assert [line["step"] for line in trained] == [5, 10, 12]
    assert [line["images_per_second"] for line in trained] == [16 / 2] * 3


def test_a_save_that_failed_ends_the_run_when_it_next_writes_its_log(tmp_path, monkeypatch):
    """And not at the next save, which may be an epoch later."""
    outcomes = iter([None, RunFailed("the checkpoint of step 9 could not be saved")])

    def look(_):
        if failure := next(outcomes):
            raise failure

    monkeypatch.setattr(checkpoints.CheckpointWriter, "check", look)
    with pytest.raises(RunFailed, match="could not be saved"):
        train(3, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert max(line["step"] for line in lines) <= 10


@pytest.mark.parametrize("last_step", [5, 12])
def test_a_run_that_stops_or_ends_tells_of_a_last_save_that_failed(
    last_step, tmp_path, monkeypatch
):
    """As one does in the background: who waits for it hears of it."""
    begun = []

    def save(_, state, score):
        begun.append(int(state.step))

    def wait(_):
        if begun[-1:] == [last_step]:
            raise RunFailed(f"the checkpoint of step {last_step} could not be saved")

    monkeypatch.setattr(checkpoints.CheckpointWriter, "save", save)
    monkeypatch.setattr(checkpoints.CheckpointWriter, "wait", wait)
    monkeypatch.setattr(loop.processes, "asked_to_stop", lambda step: step == 5 == last_step)
    with pytest.raises(RunFailed, match=f"of step {last_step} could not be saved"):
        train(0, tmp_path)


def test_a_memory_that_does_not_hold_what_scores_is_told_once(tmp_path, monkeypatch):
    def exhaust(*_):
        raise RunFailed("a batch does not fit")

    monkeypatch.setattr(loop, "predict_all", exhaust)
    with pytest.raises(RunFailed, match=r"^a batch does not fit$"):
        train(0, tmp_path)
