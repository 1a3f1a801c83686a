"""Classifies images with the network exported to this folder, each with as much of it as it takes.

    python run_onnx.py IMAGE ... or IMAGES.npy

or `ExportedNetwork()(images)`, images uint8 [N, size, size, 3] as image_files.py makes them. Needs
Python 3.10 or newer, onnxruntime and numpy, and Pillow for image files.
"""

from pathlib import Path

import exported_files
import numpy as np
import onnxruntime
from exported_files import TEXT

BATCH = 256
FOLDER = Path(__file__).parent


class ExportedNetwork:
    """What a folder holds, ready to run; `threads` 0 lets the runtime choose."""

    def __init__(self, folder=FOLDER, threads=0):
        folder = Path(folder)
        self.description = exported_files.read_description(folder, {}, {"sha256": TEXT})
        self.thresholds = self.description["thresholds"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Each stage has threads of its own, which would go on spinning while the next one runs.
        options.add_session_config_entry("session.force_spinning_stop", "1")

        def session(model):
            return onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])

        stages = [
            exported_files.load(folder / stage["file"], stage["sha256"], session, onnxruntime)
            for stage in self.description["stages"]
        ]
        exported_files.check_size(folder, self.description, stages[0].get_inputs()[0].shape)
        self._shape_of_answer = next(
            array.shape[1:] for array in stages[0].get_outputs() if array.name == "labels"
        )
        takes = [[array.name for array in stage.get_inputs()] for stage in stages]
        gives = [[array.name for array in stage.get_outputs()] for stage in stages]
        later = [set().union(*takes[k + 1 :]) for k in range(len(stages))]
        self._stages = list(zip(stages, takes, gives, later, strict=True))

    def __call__(self, images):
        """Images uint8 [N, size, size, 3] -> labels, exits from 0 [N], confidences.

        Labels and confidences are [N], or [N, k] where k classes of each image are given.
        """
        shape = (len(images), *self._shape_of_answer)
        labels, confidences = np.zeros(shape, int), np.zeros(shape)
        exits = np.zeros(len(images), int)
        for start in range(0, len(images), BATCH):
            left = np.arange(start, min(start + BATCH, len(images)))
            arrays = {"images": images[left]}
            for k, (stage, takes, gives, later) in enumerate(self._stages):
                results = stage.run(gives, {name: arrays[name] for name in takes})
                arrays |= zip(gives, results, strict=True)
                if not all(np.isfinite(arrays[name]).all() for name in ("confidences", "scores")):
                    raise ValueError(f"the network's answer at exit {k + 1} is not finite")
                labels[left], exits[left] = arrays["labels"], k
                confidences[left] = arrays["confidences"]
                stay = np.flatnonzero(arrays["scores"] < self.thresholds[k])
                if not stay.size:
                    break
                arrays = {name: arrays[name] for name in arrays if name in later}
                if stay.size < left.size:
                    left, arrays = left[stay], {name: arrays[name][stay] for name in arrays}
        return labels, exits, confidences


if __name__ == "__main__":
    import classify

    classify.main(ExportedNetwork)
