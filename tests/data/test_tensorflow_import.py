"""Memory of batches is used again rather than mapped anew."""

import platform
import resource

import numpy as np
import pytest

from l2w_jax.data.tensorflow_import import tf


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")
def test_arrays_of_a_batch_get_the_memory_of_the_one_before():
    def faults_of(num_batches: int) -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(num_batches):
            tf.identity(np.ones((64, 224, 224, 3), np.uint8))
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults_of(10)
    pages_of_a_batch = 64 * 224 * 224 * 3 // resource.getpagesize()
    assert faults_of(50) < 5 * pages_of_a_batch
