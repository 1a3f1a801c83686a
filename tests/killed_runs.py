"""Trains in child processes that are killed at random moments, the last of which is left alone.

    python tests/killed_runs.py FOLDER KILLS

Leaves FOLDER/undisturbed and FOLDER/killed. Children print what a run prints, such as from which
step it goes on; how many were killed is the last line. Children are forked, so that what takes long
to import is imported once.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

from conftest import TinyNetwork
from tiny_run import TinySource, make_config, train_and_evaluate


def start_child(workdir):
    """Forks a process that trains and evaluates; returns its id and the pipe of its steps."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    status = 1
    try:
        config = make_config(TinyNetwork())
        config.checkpoint.every_steps = 2
        config.optimizer.epochs *= 2  # a fast machine is not to reach the end between two kills
        workdir.mkdir(parents=True, exist_ok=True)
        source = TinySource(config, before_batch=lambda _: os.write(writing, b"."))
        train_and_evaluate(config, source, workdir)
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
