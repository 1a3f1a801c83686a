"""A run of four epochs on four classes of noise, to which something may happen at any step."""

import json
import os

import tiny_run

from l2w_jax.run import loop

STEPS_PER_EPOCH = 5
EPOCHS = 4
TOTAL_STEPS = STEPS_PER_EPOCH * EPOCHS
STEP_ON_DEVICES = loop.step_on_devices


def make_config(model):
    return tiny_run.make_config(model, EPOCHS, every_steps=2, histogram_every_steps=10)


def scripted_source(config, before_step=None):
    """The tiny run's images, one of them bad; before the batch of a step something may happen."""
    happens = before_step or {}
    source = tiny_run.TinySource(
        config,
        lambda step: happens.get(step, lambda: None)(),
        num_train=tiny_run.BATCH * STEPS_PER_EPOCH + 3,
    )
    source.num_bad = 1
    return source


def train(config, workdir, before_step=None):
    workdir.mkdir(exist_ok=True)
    return loop.train(config, scripted_source(config, before_step), workdir)


def metric_lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def checkpoint_steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def send(number):
    return lambda: os.kill(os.getpid(), number)


def with_other_results(monkeypatch, bad_step, change):
    """Makes the iteration of one step return other results."""
    step_on_devices = loop.step_on_devices(None, None)

    def changed(state, batch):
        state, metrics = step_on_devices(state, batch)
        return change(state, metrics) if int(state.step) == bad_step else (state, metrics)

    monkeypatch.setattr(loop, "step_on_devices", lambda *_: changed)
