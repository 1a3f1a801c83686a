"""A run of four epochs on four classes of noise, to which something may happen at any step."""

import json
import os

import numpy as np

from l2w_jax.config import default_config
from l2w_jax.data.source import LabelledImages, MemorySource
from l2w_jax.run import loop

BATCH = 16
STEPS_PER_EPOCH = 5
EPOCHS = 4
TOTAL_STEPS = STEPS_PER_EPOCH * EPOCHS
STEP_ON_DEVICES = loop.step_on_devices


def make_config(model):
    config = default_config()
    config.dataset.update(
        name="digits", image_size=8, num_classes=4, batch_size=BATCH, eval_batch_size=24, holdout=20
    )
    config.dataset.augmentation = "shift"
    with config.ignore_type():
        config.model = model
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
        super().__init__(config, splits, ("red", "green", "blue", "grey"))
        self.num_bad = 1
        self.before_step = before_step or {}

    def train_batches(self, first_step, process_index=0, process_count=1):
        batches = super().train_batches(first_step, process_index, process_count)
        for step, batch in enumerate(batches, first_step + 1):
            self.before_step.get(step, lambda: None)()
            yield batch


def train(config, workdir, before_step=None):
    workdir.mkdir(exist_ok=True)
    return loop.train(config, ScriptedSource(config, before_step), workdir)


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
