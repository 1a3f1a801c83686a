"""Predicts the test images of the tiny data set as one of the processes of an evaluation.

    python several_devices.py DEVICES PROCESS PROCESSES PORT

Prints two numbers that depend on every image and on their order.
"""

import sys

import jax
import numpy as np
from conftest import TinyNetwork
from tiny_images import TEST, make_config, open_tiny_source

from l2w_jax.evaluation.predictions import predict_all
from l2w_jax.models import initial_variables


class SharedSource:
    """The tiny data set, of which all processes together read no more than a batch at once."""

    def __init__(self, config):
        self._source = open_tiny_source(config)
        self._batch_size = config.dataset.eval_batch_size

    def __getattr__(self, name):
        return getattr(self._source, name)

    def evaluation_batches(self, *arguments):
        for batch in self._source.evaluation_batches(*arguments):
            assert len(batch["mask"]) * jax.process_count() <= self._batch_size
            yield batch


def main(devices, process, processes, port):
    if processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{port}", processes, process)
    assert (jax.local_device_count(), jax.process_count()) == (devices, processes)
    print(*found())


def found():
    """What this process finds, as numbers that depend on the order of the images."""
    config = make_config()
    config.dataset.eval_batch_size = 10
    model = TinyNetwork()
    image = jax.ShapeDtypeStruct((1, 8, 8, 3), np.float32)
    variables = initial_variables(model, jax.random.key(0), image, train=False)
    predictions = predict_all(config, model, variables, SharedSource(config), "test")
    np.testing.assert_array_equal(predictions.labels, TEST.labels)
    places = np.arange(len(TEST.labels))
    return (predictions.confidences @ places).sum(), (predictions.losses @ places).sum()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
