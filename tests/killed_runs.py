"""Trains in child processes that are killed at random moments, until one reaches the end.

    python tests/killed_runs.py FOLDER KILLS

Leaves FOLDER/undisturbed and FOLDER/killed, and prints how often the killed run went on from a
checkpoint. Children are forked, so that what takes long to import is imported once.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
from conftest import TinyNetwork

from l2w_jax import evaluate, loop
from l2w_jax.config import default_config
from l2w_jax.data.source import LabelledImages, MemorySource

TOTAL_STEPS = 60


def make_config():
    config = default_config()
    config.dataset.update(
        name="digits", image_size=8, num_classes=4, batch_size=16, eval_batch_size=24, holdout=24
    )
    config.dataset.augmentation = "shift"
    with config.ignore_type():
        config.model = TinyNetwork()
    config.weighting.hidden = 8
    config.optimizer.update(epochs=TOTAL_STEPS // 3, learning_rate=0.1)
    config.checkpoint.every_steps = 2
    config.log.every_steps = 5
    return config


class ReportingSource(MemorySource):
    """Noise with labels; writes a byte to a pipe before each batch."""

    def __init__(self, config, pipe):
        generator = np.random.default_rng(0)

        def images(count):
            labels = generator.integers(0, 4, count).astype(np.int32)
            noise = generator.integers(0, 40, (count, 8, 8, 3))
            return LabelledImages(
                (noise + 50 * labels[:, None, None, None]).astype(np.uint8), labels
            )

        splits = {"train": images(48), "holdout": images(24), "test": images(40)}
        super().__init__(config, splits, ("a", "b", "c", "d"))
        self.pipe = pipe

    def train_batches(self, first_step, process_index=0, process_count=1):
        for batch in super().train_batches(first_step, process_index, process_count):
            os.write(self.pipe, b".")
            yield batch


def start_child(workdir):
    """Forks a process that trains and evaluates; returns its id and the pipe of its steps."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    status = 1
    try:
        config = make_config()
        source = ReportingSource(config, writing)
        workdir.mkdir(parents=True, exist_ok=True)
        loop.train(config, source, workdir)
        evaluate.evaluate(config, loop.restore_best(config, workdir), source, workdir)
        status = 0
    finally:
        os._exit(status)


def run_to_the_end(workdir):
    child, steps = start_child(workdir)
    while os.read(steps, 1000):
        pass
    assert os.waitpid(child, 0)[1] == 0


def kill_somewhere(workdir, chance):
    """Kills a run some steps and milliseconds after its first batch; returns whether it lived."""
    child, steps = start_child(workdir)
    steps_left = chance.randint(1, 9)
    while steps_left > 0 and (read := os.read(steps, 1)):
        steps_left -= len(read)
    time.sleep(chance.uniform(0, 0.2))
    os.kill(child, signal.SIGKILL)
    os.close(steps)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def main(folder, kills):
    run_to_the_end(folder / "undisturbed")
    chance = random.Random(0)
    killed = sum(kill_somewhere(folder / "killed", chance) for _ in range(kills))
    run_to_the_end(folder / "killed")
    print(f"killed {killed} times")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
