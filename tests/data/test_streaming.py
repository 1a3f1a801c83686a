"""Reading ahead ends with the program that reads."""

import subprocess
import sys

PROGRAM = """
import sys
import time

import numpy as np

from l2w_jax.data.streaming import read_batches
from l2w_jax.data.stored import ImageFiles
from l2w_jax.data.tensorflow_import import tf

def choices():
    while True:
        yield np.arange(8), ()

def pixels(encoded):
    time.sleep(0.01)
    return np.zeros((2, 2, 3), np.uint8)

def transform(encoded):
    return tf.ensure_shape(tf.numpy_function(pixels, [encoded], tf.uint8), [2, 2, 3])

images = ImageFiles(np.array([sys.argv[1].encode()] * 8), np.zeros(8, np.int32))
batches = read_batches(images, choices, 8, 2, transform)
next(batches)
"""


def test_a_program_ends_while_images_are_read_by_python(tmp_path):
    file = tmp_path / "image"
    file.write_bytes(b"any")
    program = [sys.executable, "-c", PROGRAM, str(file)]
    finished = subprocess.run(program, timeout=120, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
