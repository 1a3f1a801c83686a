"""Runs a program where the packages of this project cannot be imported.

python -I without_packages.py PROGRAM ARGUMENT ...
"""

import runpy
import sys
from pathlib import Path

for name in ("jax", "flax", "l2w_jax", "cv2", "tensorflow", "onnx"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
# As Python has it where it is not told to be by itself.
sys.path.insert(0, str(Path(sys.argv[0]).parent))
runpy.run_path(sys.argv[0], run_name="__main__")
