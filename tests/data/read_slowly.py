"""Ends after the first batch of an image, while threads are reading further ones.

python read_slowly.py IMAGE
"""

import sys
import time

import numpy as np

from l2w_jax.data import decode, reading
from l2w_jax.data.encoded import ImageFiles


def choices():
    while True:
        yield reading.Choice(np.arange(8), np.zeros(8, bool), (np.ones(8, np.float32),))


reading.resize = lambda *images: time.sleep(0.01)
images = ImageFiles(np.array([sys.argv[1].encode()] * 8), np.zeros(8, np.int32))
batches = reading.read_batches(images, choices(), 10**9, 2, 100, decode.centre_boxes)
next(batches)
