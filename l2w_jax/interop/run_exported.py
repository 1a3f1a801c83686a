"""Classifies images with the network exported to this folder, each with as much as it takes.

    python run_exported.py IMAGE ...
    python run_exported.py IMAGES.npy       # uint8 [N, size, size, 3], as numpy.save writes it

or `ExportedNetwork()(images)`. Needs jax, numpy and what jax reads exported functions with,
flatbuffers; and Pillow for image files, which image_files.py prepares. network.json tells the
classes, and how images become pixels.
"""

import functools
import hashlib
import json
import sys
from pathlib import Path

import jax
import numpy as np
from jax import export


class ExportedNetwork:
    """What the folder holds, ready to run."""

    def __init__(self, folder=Path(__file__).parent):
        self.description = json.loads((folder / "network.json").read_text())
        for name, checksum in self.description["sha256"].items():
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != checksum:
                raise ValueError(f"{folder / name}: damaged, or of another export")
        self._sizes = self.description["batch_sizes"]
        self._pack = jax.jit(lambda features, rows: [array[rows] for array in features])
        self._stages = []
        arrays = np.load(folder / "variables.npz")
        options = known_options(self.description["cpu_compiler_options"])
        for stage in self.description["stages"]:
            function = export.deserialize(bytearray((folder / stage["file"]).read_bytes()))
            named = zip(stage["variables"], function.in_avals, strict=False)
            variables = jax.device_put([arrays[name].view(a.dtype) for name, a in named])
            compiled = jax.jit(function.call, compiler_options=options)
            self._stages.append(functools.partial(compiled, variables))

    def __call__(self, images):
        """Images uint8 [N, size, size, 3] -> labels [N], exits from 0 [N], confidences [N]."""
        (labels, exits), confidences = np.zeros((2, len(images)), int), np.zeros(len(images))
        for start in range(0, len(images), self._sizes[-1]):
            left = np.arange(start, min(start + self._sizes[-1], len(images)))
            features = [images[self._padded(left)]]
            for k, threshold in enumerate(self.description["thresholds"]):
                *answers, features = self._stages[k](features)
                label, confidence, score = (np.asarray(a)[: len(left)] for a in answers)
                if not np.isfinite(confidence).all():
                    raise ValueError(f"the network's answer at exit {k + 1} is not finite")
                labels[left], exits[left], confidences[left] = label, k, confidence
                stays = np.flatnonzero(score < threshold)
                if not stays.size:
                    break
                left, features = left[stays], self._pack(features, self._padded(stays))
        return labels, exits, confidences

    def _padded(self, rows):
        size = next(size for size in self._sizes if size >= len(rows))
        return np.pad(rows, (0, size - len(rows)), mode="edge")


def known_options(options):
    """What the CPU that the network was exported on compiled it with, if this one's XLA may too."""
    try:
        if jax.default_backend() == "cpu":
            jax.jit(lambda: 0, compiler_options=options).lower().compile()
            return options
    except jax.errors.JaxRuntimeError:
        pass
    return None


def read_images(path, size):
    """Images uint8 [N, size, size, 3] of a file."""
    try:
        images = np.load(path)
    except (OSError, EOFError, ValueError):
        sys.exit(f"{path}: no file of an array that numpy.save wrote")
    if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3):
        found = f"{images.dtype} {list(images.shape)}"
        sys.exit(f"{path}: holds {found}, must hold uint8 [N, {size}, {size}, 3]")
    return images


def main(paths):
    """Prints a line of answers for each image; returns the exit status."""
    network = ExportedNetwork()
    if not paths[0].endswith(".npy"):
        from image_files import classify

        return classify(network, paths)
    images = read_images(paths[0], network.description["image_format"]["size"])
    for label, exit_index, confidence in zip(*network(images), strict=True):
        name = network.description["class_names"][label]
        print(f"{name}\t{100 * confidence:.1f}%\texit {exit_index + 1}")
    return 0


if __name__ == "__main__":
    if len(sys.argv) < 2 or (len(sys.argv) > 2 and sys.argv[1].endswith(".npy")):
        sys.exit("usage: python run_exported.py IMAGE ... or IMAGES.npy")
    try:
        sys.exit(main(sys.argv[1:]))
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"{Path(__file__).parent}: {error}; a folder of a whole export is needed")
