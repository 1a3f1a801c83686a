"""TensorFlow comes alone and takes no more cores than there are; its errors are told in one line.

Memory of images is used again rather than mapped anew.
"""

import platform
import resource
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from programs import ENVIRONMENT

from l2w_jax.config import default_config
from l2w_jax.data import open_source
from l2w_jax.data.cores import available_cores
from l2w_jax.data.tensorflow_import import explain, tf

SIZE = 224
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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")
def test_images_get_the_memory_of_those_before(tmp_path):
    generator = np.random.default_rng(0)
    for number in range(48):
        pixels = generator.integers(0, 256, (375, 500, 3), dtype=np.uint8)
        folder = tmp_path / ("train" if number > 1 else "test") / ("odd" if number % 2 else "even")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
    config = default_config()
    config.dataset.update(
        name="image_folder",
        data_dir=str(tmp_path),
        num_classes=2,
        image_size=SIZE,
        holdout=1,
        batch_size=32,
        augmentation="resized_crop",
    )
    batches = open_source(config).train_batches(0)

    def read(num_batches: int) -> None:
        for _ in range(num_batches):
            next(batches)

    read(16)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    read(16)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    pages_of_an_image = SIZE * SIZE * 3 / resource.getpagesize()
    assert faults / (16 * 32) < pages_of_an_image / 4


@pytest.mark.parametrize("message", ["", "[[x]]", "{{node a}} "])
def test_an_error_that_says_nothing_is_told_by_its_kind(message):
    assert explain(tf.errors.UnknownError(None, None, message)) == "UnknownError"


def test_tensorflow_starts_threads_for_these_cores_only():
    assert tf.config.threading.get_inter_op_parallelism_threads() == max(2, available_cores())
    assert tf.config.threading.get_intra_op_parallelism_threads() == available_cores()
