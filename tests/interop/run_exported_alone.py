"""Classifies images with an exported network where only what its loader names can be imported.

python -I run_exported_alone.py FOLDER IMAGES.npy ANSWERS.npy
"""

import importlib
import importlib.machinery
import sys

import numpy as np

ALLOWED = {"jax", "jaxlib", "numpy", "flatbuffers", "ml_dtypes", "opt_einsum", "scipy"}
ALLOWED |= {"run_exported", "exported_files", *sys.stdlib_module_names}


class AllowedFinder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in ALLOWED or name.startswith("_sysconfigdata"):
            return super().find_spec(name, path, target)


builtin, frozen = importlib.machinery.BuiltinImporter, importlib.machinery.FrozenImporter
sys.meta_path[:] = [builtin, frozen, AllowedFinder]
for name in ("flax", "l2w_jax"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    sys.exit(name + " can be imported")

folder, images, output = sys.argv[1:]
sys.path.insert(0, folder)
run_exported = importlib.import_module("run_exported")

np.save(output, np.stack(run_exported.ExportedNetwork()(np.load(images))))
