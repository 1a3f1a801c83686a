"""TensorFlow, for reading files only. Importing this module takes seconds: do it late."""

import contextlib
import ctypes
import os
import platform
import re
from collections.abc import Iterator

from l2w_jax.data.cores import available_cores

# What matters in its C++ log is also raised as an exception; the rest would clutter the lines that
# a user is to read.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # announces itself in spite of the above

# TensorFlow then does not import Keras, and with it scikit-learn, Matplotlib and parts of SciPy,
# which take a fifth of the time of `predict` for one image. CLU, which looks for Keras, must find
# it, so the variable is put back.
_LEGACY_KERAS = "TF_USE_LEGACY_KERAS"
_kept = os.environ.get(_LEGACY_KERAS)
os.environ[_LEGACY_KERAS] = "1"
try:
    import tensorflow as tf
finally:
    del os.environ[_LEGACY_KERAS]
    if _kept is not None:
        os.environ[_LEGACY_KERAS] = _kept

__all__ = ["explain", "silent", "tf"]

# The accelerators belong to JAX; TensorFlow would take their memory.
for _kind in ("GPU", "TPU"):
    tf.config.set_visible_devices([], _kind)

# It would start as many threads as the machine has cores, however few a container may use. If it
# has computed before this, they have been started already.
with contextlib.suppress(RuntimeError):
    # A graph's Python function that calls a graph holds one thread while it waits for another.
    tf.config.threading.set_inter_op_parallelism_threads(max(2, available_cores()))
    tf.config.threading.set_intra_op_parallelism_threads(available_cores())

# Numbers of options in glibc's malloc.h.
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3


def _keep_freed_memory() -> None:
    """Makes glibc keep freed memory for the next image, up to 64 MiB at the end of each heap.

    By default it returns the memory of images and batches to the system again and again. Not to map
    it anew saves a twentieth of the time in which JPEGs are read in batches of 32.
    """
    if platform.libc_ver()[0] == "glibc":
        c_library = ctypes.CDLL(None)
        c_library.mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)  # more than a batch of 128 images
        c_library.mallopt(_M_TOP_PAD, 64 * 2**20)


_keep_freed_memory()


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Inside, nothing reaches the standard error of the process.

    For a file that they cannot decode, TensorFlow and its decoders write there what is also raised
    as an exception, whatever their log level.
    """
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def explain(error: Exception) -> str:
    """Returns the one line of a TensorFlow or operating-system error that says what was wrong."""
    if not isinstance(error, tf.errors.OpError):
        return str(error)
    # Around that line stand names of graph nodes, in several forms, and a traceback of the graph.
    message = re.split(r"\s*\[\[|\s*\[Op:", error.message)[0]
    message = re.sub(r"\{\{.*?\}\}\s*", "", message)
    return (message.strip().splitlines() or [type(error).__name__])[-1]
