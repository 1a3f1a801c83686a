"""A whole run, evaluation included, of a network that compiles in a blink.

    python tests/tiny_run.py FOLDER

As a program it takes its place among the processes of a launcher. TINY_DELAY is the time in seconds
that each batch takes to make, for those who want to disturb the run; TINY_POORER the number of a
process that has an image less than the others, TINY_STRANGER that of one with another network.
"""

import os
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from conftest import TinyNetwork
from flax import linen as nn

from l2w_jax import command_line
from l2w_jax.config import default_config
from l2w_jax.data.source import LabelledImages, MemorySource
from l2w_jax.errors import UserError
from l2w_jax.evaluation import evaluate
from l2w_jax.run import loop, processes, restore

BATCH = 16
TOTAL_STEPS = 60


class DoubleNetwork(TinyNetwork):
    """In float64, so that a sum in another order shows in the last digits only."""

    dtype: jnp.dtype = jnp.float64

    def setup(self):
        types = {"dtype": jnp.float64, "param_dtype": jnp.float64}
        self.blocks = [nn.Dense(6, **types) for _ in range(3)]
        self.norms = [nn.BatchNorm(axis_name=self.axis_name, **types) for _ in range(3)]
        self.heads = [nn.Dense(4, **types) for _ in range(3)]


class TinySource(MemorySource):
    """Noise, tinted by class; before each batch is made, `before_batch` gets its step."""

    def __init__(self, config, before_batch=lambda step: None, num_train=3 * BATCH):
        generator = np.random.default_rng(0)

        def images(count):
            labels = generator.integers(0, 4, count).astype(np.int32)
            noise = generator.integers(0, 100, (count, 8, 8, 3))
            tint = np.array([[150, 0, 0], [0, 150, 0], [0, 0, 150], [90, 90, 90]])[labels]
            return LabelledImages((noise + tint[:, None, None]).astype(np.uint8), labels)

        splits = {"train": images(num_train), "holdout": images(24), "test": images(43)}
        super().__init__(config, splits, ("a", "b", "c", "d"))
        self.before_batch = before_batch

    def train_batches(self, first_step, process_index=0, process_count=1):
        batches = super().train_batches(first_step, process_index, process_count)
        for step, batch in enumerate(batches, first_step + 1):
            self.before_batch(step)
            yield batch


def make_config(model, epochs=TOTAL_STEPS // 3, **log):
    config = default_config()
    config.dataset.update(
        name="digits", image_size=8, num_classes=4, batch_size=BATCH, eval_batch_size=24, holdout=24
    )
    config.dataset.augmentation = "shift"
    with config.ignore_type():
        config.model = model
    config.weighting.hidden = 8
    config.optimizer.update(epochs=epochs, learning_rate=0.1)
    config.log.update({"every_steps": 5, **log})
    return config


def train_and_evaluate(config, source, workdir):
    loop.train(config, source, workdir)
    evaluate.evaluate(config, restore.restore_best(config, workdir), source, workdir)


def main(workdir):
    command_line.set_up_libraries()
    config = make_config(DoubleNetwork())
    config.checkpoint.update(every_epochs=1, every_steps=4)
    config.log.check_replicas = 10
    config.seed += os.environ.get("TINY_STRANGER") == os.environ.get("JAX_PROCESS_ID", "")
    delay = float(os.environ.get("TINY_DELAY", "0"))
    with processes.joined():
        workdir.mkdir(parents=True, exist_ok=True)
        source = TinySource(config, lambda _: time.sleep(delay))
        source.num_train -= os.environ.get("TINY_POORER") == str(jax.process_index())
        train_and_evaluate(config, source, workdir)
        if processes.is_first():
            print("evaluated")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except UserError as error:
        print(error)
        sys.exit(error.exit_status)
