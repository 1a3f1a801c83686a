"""Prints after each of three iterations how many programs were compiled for all so far.

python three_iterations.py INTERVAL
"""

import logging
import sys

import jax
import numpy as np
from small_networks import ConvNetwork

from l2w_jax.config import default_config
from l2w_jax.run.devices import device_batches, place_replicated, step_on_devices
from l2w_jax.training import create_train_state

config = default_config(model=ConvNetwork())
config.dataset.image_size = 8
config.weighting.hidden = 8
config.weighting.interval = int(sys.argv[1])
state = place_replicated(create_train_state(config, jax.random.key(0)))
batch = {"image": np.ones((8, 8, 8, 3), np.uint8), "label": np.arange(8, dtype=np.int32)}
batches = device_batches(iter([batch] * 6))
step = step_on_devices(config, 10)
compiled = []
handler = logging.Handler()
handler.emit = lambda record: compiled.append(record.getMessage())
logging.getLogger("jax").addHandler(handler)
with jax.log_compiles():
    for _ in range(3):
        state, metrics = step(state, next(batches))
        jax.block_until_ready(metrics)
        print(sum(line.startswith("Finished XLA compilation") for line in compiled))
