"""Binds itself to one core, and prints how many it has."""

import os

from l2w_jax.data.cores import available_cores

os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
print(available_cores())
