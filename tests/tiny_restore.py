"""One process of several, which restores a checkpoint.

    python tests/tiny_restore.py FOLDER

Process N has FOLDER/N for its run folder: what differs between these is what one host reads
otherwise than the others. Prints which step it goes on from and which is the best.
"""

import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import struct

from l2w_jax.run import checkpoints, processes


@struct.dataclass
class TinyState:
    """As little as can be saved."""

    step: Any
    kernel: Any


def make_state(step):
    return TinyState(np.int32(step), np.full((40, 30), step, np.float32))


if __name__ == "__main__":
    with processes.joined():
        workdir = Path(sys.argv[1]) / str(jax.process_index())
        newest = checkpoints.restore_newest(workdir, make_state(0))
        best = checkpoints.restore_highest_scored(workdir, make_state(0))
        print(f"goes on from {newest.step}, the best is {best.step}")
