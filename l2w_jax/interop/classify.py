"""The command of an exported network: classifies image files, or an array of images.

Needs Python 3.10 or newer, numpy, and for image files Pillow.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import standard_output
from cores import available_cores
from standard_output import in_one_line

BATCH = 256


def main(network_class):
    """Classifies what the command line names and ends the program; a fault is told in one line."""
    program, *paths = sys.argv
    an_array = [path for path in paths if path.endswith(".npy")]
    usage = (
        f"usage: python {Path(program).name} IMAGE ... or IMAGES.npy, which numpy.save wrote: "
        "uint8 [N, size, size, 3], see network.json for the size"
    )
    standard_output.prepare()
    with standard_output.faults_told():
        if "--help" in paths:
            print(usage)
            sys.exit(0)
        if not paths or paths[0].startswith("--") or (an_array and len(paths) > 1):
            sys.exit(usage)
        try:
            sys.exit((classify_array if an_array else classify_files)(network_class(), paths))
        except ValueError as error:
            sys.exit(in_one_line(str(error)))


def classify_files(network, paths):
    """Prints what image files show and where they left; reports those that are not images.

    Each core reads one file at a time. Returns the exit status: 1 if one was not an image.
    """
    from image_files import read_image

    def read(path):
        image_format = network.description["image_format"]
        about = [image_format[name] for name in ("size", "centre_share", "max_pixels")]
        try:
            return read_image(path, *about)
        except Exception as error:  # Pillow raises many kinds
            return error

    status = 0
    with ThreadPoolExecutor(available_cores()) as threads:
        for start in range(0, len(paths), BATCH):
            images = []
            batch = paths[start : start + BATCH]
            for path, image in zip(batch, threads.map(read, batch), strict=True):
                if isinstance(image, Exception):
                    reason = getattr(image, "strerror", None) or image
                    fault = f"{path}: cannot be read as an image: {reason}"
                    standard_output.tell(in_one_line(fault))
                    status = 1
                else:
                    images.append((path, image))
            if images:
                lines = answers(network, np.stack([image for _, image in images]))
                for (line, *further), (path, _) in zip(lines, images, strict=True):
                    print("\n".join([f"{line}\t{in_one_line(path)}", *further]))
    return status


def classify_array(network, paths):
    """The same for images uint8 [N, size, size, 3], in a file that numpy.save wrote."""
    (path,) = paths
    size = network.description["image_format"]["size"]
    try:
        images = np.load(path)
    except Exception:  # NumPy raises many kinds
        images = None
    if not isinstance(images, np.ndarray):
        raise ValueError(f"{path}: no file of an array that numpy.save wrote")
    if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3):
        found = f"{images.dtype} {list(images.shape)}"
        raise ValueError(f"{path}: holds {found}, must hold uint8 [N, {size}, {size}, 3]")
    for lines in answers(network, images):
        print("\n".join(lines))
    return 0


def answers(network, images):
    """For each image a line of class, confidence and exit, and one for each further class."""
    names = network.description["class_names"]
    for labels, exit_index, confidences in zip(*network(images), strict=True):
        of_classes = zip(np.atleast_1d(labels), np.atleast_1d(confidences), strict=True)
        first, *further = (f"{in_one_line(names[i])}\t{100 * p:.1f}%" for i, p in of_classes)
        yield [f"{first}\texit {exit_index + 1}", *further]
