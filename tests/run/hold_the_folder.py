"""Holds a run folder for a minute, and says when.

python hold_the_folder.py FOLDER
"""

import sys
import time
from pathlib import Path

from l2w_jax import config
from l2w_jax.run import workdir

with workdir.exclusive_use(config.default_config(), Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
