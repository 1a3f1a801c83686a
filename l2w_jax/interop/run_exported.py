"""Classifies images with the network exported to this folder, each with as much of it as it takes.

    python run_exported.py IMAGE ... or IMAGES.npy

or `ExportedNetwork()(images)`, images uint8 [N, size, size, 3] as image_files.py makes them. Needs
Python 3.11 or newer, jax (0.6, the last for 3.10, cannot read these stages), numpy and flatbuffers,
with which jax reads exported functions; and Pillow for image files.
"""

import functools
import io
from pathlib import Path

import exported_files
import jax
import numpy as np
from exported_files import ASCENDING_COUNTS, OBJECT, OBJECT_OR_NULL, TEXTS
from jax import export

FOLDER = Path(__file__).parent

FIELDS = {
    "batch_sizes": ASCENDING_COUNTS,
    "sha256": OBJECT,
    "cpu_compiler_options": OBJECT_OR_NULL,
}


class ExportedNetwork:
    """What a folder holds, ready to run."""

    def __init__(self, folder=FOLDER):
        folder = Path(folder)
        self.description = exported_files.read_description(folder, FIELDS, {"variables": TEXTS})
        self._sizes = self.description["batch_sizes"]
        self._pack = jax.jit(lambda features, rows: [array[rows] for array in features])
        self._stages = []

        def load(name, make, library):
            checksum = self.description["sha256"].get(name)
            return exported_files.load(folder / name, checksum, make, library)

        arrays = load("variables.npz", lambda content: np.load(io.BytesIO(content)), np)
        options = known_options(self.description["cpu_compiler_options"])
        for stage in self.description["stages"]:
            function = load(
                stage["file"], lambda content: export.deserialize(bytearray(content)), jax
            )
            if not self._stages:
                self._shape_of_answer = function.out_avals[0].shape[1:]
                # What it takes last are the images.
                exported_files.check_size(folder, self.description, function.in_avals[-1].shape)
            named = zip(stage["variables"], function.in_avals, strict=False)
            variables = jax.device_put([arrays[name].view(a.dtype) for name, a in named])
            compiled = jax.jit(function.call, compiler_options=options)
            self._stages.append(functools.partial(compiled, variables))

    def __call__(self, images):
        """Images uint8 [N, size, size, 3] -> labels, exits from 0 [N], confidences.

        Labels and confidences are [N], or [N, k] where k classes of each image are given.
        """
        shape = (len(images), *self._shape_of_answer)
        labels, confidences = np.zeros(shape, int), np.zeros(shape)
        exits = np.zeros(len(images), int)
        for start in range(0, len(images), self._sizes[-1]):
            left = np.arange(start, min(start + self._sizes[-1], len(images)))
            features = [images[self._padded(left)]]
            for k, threshold in enumerate(self.description["thresholds"]):
                *answers, features = self._stages[k](features)
                label, confidence, score = (np.asarray(a)[: len(left)] for a in answers)
                if not all(np.isfinite(values).all() for values in (confidence, score)):
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
    """The compiler options of the CPU that exported the network, if this one's XLA knows them."""
    try:
        if jax.default_backend() == "cpu":
            jax.jit(lambda: 0, compiler_options=options).lower().compile()
            return options
    except jax.errors.JaxRuntimeError:
        pass
    return None


if __name__ == "__main__":
    import classify

    classify.main(ExportedNetwork)
