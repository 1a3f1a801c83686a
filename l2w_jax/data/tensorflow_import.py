"""TensorFlow, for reading files only. Importing this module takes seconds: do it late."""

import os

# Its notes on start-up would otherwise stand between the lines that a user is to read.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf

__all__ = ["tf"]

# The accelerators belong to JAX; TensorFlow would take their memory.
for _kind in ("GPU", "TPU"):
    tf.config.set_visible_devices([], _kind)
