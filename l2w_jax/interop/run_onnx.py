"""Classifies image files with the network exported to this folder, each with as much as it takes.

    python run_onnx.py IMAGE ...

or `ExportedNetwork()(images)`, images uint8 [N, size, size, 3]. Needs onnxruntime, numpy and
Pillow; network.json tells the classes, the thresholds, and how image files become pixels.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

FORMAT, BATCH = 1, 256


class ExportedNetwork:
    """What the folder holds, ready to run; `threads` 0 lets the runtime choose."""

    def __init__(self, folder=Path(__file__).parent, threads=0):
        about = folder / "network.json"
        try:
            self.description = json.loads(contents(about))
        except json.JSONDecodeError as error:
            raise ValueError(f"{about}: damaged: {error}") from error
        if self.description.get("format") != FORMAT:
            raise ValueError(f"{about}: is not of format {FORMAT}; export again")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Each stage has threads of its own, which would go on spinning while the next one runs.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        stages = []
        for stage in self.description["stages"]:
            model = contents(folder / stage["file"])
            if hashlib.sha256(model).hexdigest() != stage["sha256"]:
                raise ValueError(f"{folder / stage['file']}: damaged, or of another export")
            try:
                stages.append(
                    onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
                )
            except Exception as error:
                reason = f"onnxruntime {onnxruntime.__version__} cannot load it"
                raise ValueError(f"{folder / stage['file']}: {reason}") from error
        takes = [[array.name for array in stage.get_inputs()] for stage in stages]
        gives = [[array.name for array in stage.get_outputs()] for stage in stages]
        needed = [set().union(*takes[k + 1 :]) for k in range(len(stages))]
        self.thresholds = self.description["thresholds"]
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


def read_image(path, size, centre_share):
    """The centre of an image file, upright and over white, uint8 [size, size, 3].

    As training saw it: of halved or unscaled images every pixel, of others to 1 of 255 levels.
    """
    with Image.open(path) as image:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    pixels = np.asarray(Image.alpha_composite(white, image).convert("RGB"), np.float32)
    side = max(1, round(centre_share * min(image.size)))
    top, left = ((length - side) // 2 for length in pixels.shape[:2])
    weights = resize_weights(side, size)
    square = np.tensordot(weights, pixels[top : top + side, left : left + side], 1)
    return (weights @ square + 0.5).clip(0, 255).astype(np.uint8)


def resize_weights(old, new):
    """How much each of `old` pixels counts in each of `new` ones, [new, old]."""
    pixels, scale = np.arange(old), old / new
    if old > 2 * new:  # the mean of all pixels that become one
        edges = np.arange(new + 1)[:, None] * scale
        overlap = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
        return np.float32(overlap.clip(0) / scale)
    centres = ((np.arange(new)[:, None] + 0.5) * scale - 0.5).clip(0, old - 1)
    return np.float32((1 - abs(centres - pixels)).clip(0))  # bilinear


def contents(path):
    """The bytes of a file of the folder."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; the folder needs it") from error


def main(paths):
    """Classifies the files and prints a line each; those that are no image are told apart."""
    network = ExportedNetwork()
    image_format, names = (network.description[key] for key in ("image_format", "class_names"))
    for start in range(0, len(paths), BATCH):
        images = {}
        for path in paths[start : start + BATCH]:
            try:
                images[path] = read_image(path, image_format["size"], image_format["centre_share"])
            except Exception as error:  # Pillow raises many kinds
                print(f"{path}: cannot be read as an image: {error}", file=sys.stderr)
        answers = zip(*network(np.stack(list(images.values()))), strict=True) if images else ()
        for path, (label, exit_index, confidence) in zip(images, answers, strict=True):
            print(f"{names[label]}\t{100 * confidence:.1f}%\texit {exit_index + 1}\t{path}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python run_onnx.py IMAGE ...")
    try:
        main(sys.argv[1:])
    except ValueError as error:
        sys.exit(str(error))
