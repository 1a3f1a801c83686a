"""Runs a program where the packages of this project cannot be imported.

python -I without_packages.py PROGRAM ARGUMENT ...
"""

import runpy
import sys

for name in ("jax", "flax", "l2w_jax", "cv2", "tensorflow", "onnx"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
