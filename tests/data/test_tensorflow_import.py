"""TensorFlow comes alone and takes no more cores than there are; its errors are told in one line.

Freed memory is kept for the next images.
"""

import platform
import subprocess
import sys

import pytest
from programs import ENVIRONMENT

from l2w_jax.data.cores import available_cores
from l2w_jax.data.tensorflow_import import explain, tf

VARIABLE = "TF_USE_LEGACY_KERAS"


@pytest.mark.parametrize("of_user", [None, "0"])
def test_nothing_comes_with_tensorflow_that_reading_does_not_need(of_user):
    environment = {name: value for name, value in ENVIRONMENT.items() if name != VARIABLE}
    if of_user is not None:
        environment[VARIABLE] = of_user
    program = (
        "import os, sys, l2w_jax.data.tensorflow_import\n"
        "print({'keras', 'sklearn', 'matplotlib'} & {*sys.modules})\n"
        f"print(os.environ.get({VARIABLE!r}))\n"
        "from clu import metric_writers\n"
    )
    command = [sys.executable, "-c", program]
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert output.stdout == f"set()\n{of_user}\n"


# How often memory is mapped while images are read depends on what the process did before, so this
# asks the C library.
GIVEN_BACK = """
import ctypes
import resource

import l2w_jax.data.tensorflow_import

c_library = ctypes.CDLL(None)
c_library.malloc.restype = ctypes.c_void_p
c_library.malloc.argtypes = [ctypes.c_size_t]
c_library.free.argtypes = [ctypes.c_void_p]


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


blocks = [c_library.malloc({size}) for _ in range({count})]
for block in blocks:
    ctypes.memset(block, 1, {size})
before = resident_bytes()
for block in blocks:
    c_library.free(block)
print((before - resident_bytes()) / {size})
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")
@pytest.mark.parametrize(
    "size, count", [(224 * 224 * 3, 128), (128 * 224 * 224 * 3, 2)], ids=["images", "batches"]
)
def test_freed_memory_stays_for_the_images_to_come(size, count):
    program = GIVEN_BACK.format(size=size, count=count)
    command = [sys.executable, "-c", program]
    output = subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True, text=True)
    assert float(output.stdout) < 1


@pytest.mark.parametrize("message", ["", "[[x]]", "{{node a}} "])
def test_an_error_that_says_nothing_is_told_by_its_kind(message):
    assert explain(tf.errors.UnknownError(None, None, message)) == "UnknownError"


def test_tensorflow_starts_threads_for_these_cores_only():
    assert tf.config.threading.get_inter_op_parallelism_threads() == max(2, available_cores())
    assert tf.config.threading.get_intra_op_parallelism_threads() == available_cores()
