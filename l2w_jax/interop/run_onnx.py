"""Classifies image files with the network exported to this folder, each with as much as it takes.

    python run_onnx.py IMAGE ...

or `ExportedNetwork()(images)`, images uint8 [N, size, size, 3] as image_files.py makes them. Needs
onnxruntime and numpy, and Pillow for image files. network.json tells the classes and thresholds.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

FORMAT, BATCH = 1, 256


class ExportedNetwork:
    """What the folder holds, ready to run; `threads` 0 lets the runtime choose."""

    def __init__(self, folder=Path(__file__).parent, threads=0):
        self.description = read_description(folder / "network.json")
        self.thresholds = self.description["thresholds"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Each stage has threads of its own, which would go on spinning while the next one runs.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        stages = [load(folder, stage, options) for stage in self.description["stages"]]
        takes = [[array.name for array in stage.get_inputs()] for stage in stages]
        gives = [[array.name for array in stage.get_outputs()] for stage in stages]
        needed = [set().union(*takes[k + 1 :]) for k in range(len(stages))]
        self._stages = list(zip(stages, takes, gives, needed, strict=True))

    def __call__(self, images):
        """Images uint8 [N, size, size, 3] -> labels [N], exits from 0 [N], confidences [N]."""
        (labels, exits), confidences = np.zeros((2, len(images)), int), np.zeros(len(images))
        for start in range(0, len(images), BATCH):
            left = np.arange(start, min(start + BATCH, len(images)))
            arrays = {"images": images[left]}
            for k, (stage, takes, gives, needed) in enumerate(self._stages):
                results = stage.run(gives, {name: arrays[name] for name in takes})
                arrays |= zip(gives, results, strict=True)
                if not np.isfinite(arrays["confidences"]).all():
                    raise ValueError(f"the network's answer at exit {k + 1} is not finite")
                labels[left], exits[left] = arrays["labels"], k
                confidences[left] = arrays["confidences"]
                stay = np.flatnonzero(arrays["scores"] < self.thresholds[k])
                if not stay.size:
                    break
                arrays = {name: arrays[name] for name in arrays if name in needed}
                if stay.size < left.size:
                    left, arrays = left[stay], {name: arrays[name][stay] for name in arrays}
        return labels, exits, confidences


def read_description(path):
    """What network.json says; it must be of the format that this program reads."""
    try:
        description = json.loads(contents(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: damaged: {error}") from error
    if description.get("format") != FORMAT:
        raise ValueError(f"{path}: is not of format {FORMAT}; export again")
    return description


def load(folder, stage, options):
    """A stage, ready to run, if its file is the one that was exported."""
    model = contents(path := folder / stage["file"])
    if hashlib.sha256(model).hexdigest() != stage["sha256"]:
        raise ValueError(f"{path}: damaged, or of another export")
    try:
        return onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
    except Exception as error:
        reason = f"onnxruntime {onnxruntime.__version__} cannot load it"
        raise ValueError(f"{path}: {reason}") from error


def contents(path):
    """The bytes of a file of the folder."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; the folder needs it") from error


if __name__ == "__main__":
    from image_files import classify

    if len(sys.argv) < 2:
        sys.exit("usage: python run_onnx.py IMAGE ...")
    try:
        sys.exit(classify(ExportedNetwork(), sys.argv[1:]))
    except ValueError as error:
        sys.exit(str(error))
