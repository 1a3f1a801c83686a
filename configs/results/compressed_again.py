"""Compresses the test images of a folder once more, with a JPEG's blocks shifted by half a block.

    python configs/results/compressed_again.py DIR OTHER

OTHER/test/CLASS/*.png can then be evaluated. Prints the root mean square of what this changes, in
levels of 255, for the images as they are and made 16x16.
"""

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

source, target = map(Path, sys.argv[1:])
squares = []
for path in sorted((source / "test").glob("*/*.jpg")):
    image = np.asarray(Image.open(path).convert("RGB"))
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), mode="reflect")
    buffer = io.BytesIO()
    Image.fromarray(padded).save(buffer, "JPEG", quality=75)
    again = np.asarray(Image.open(buffer))[4:-4, 4:-4]
    small = [np.asarray(Image.fromarray(x).resize((16, 16), Image.BOX)) for x in (image, again)]
    pairs = ((image, again), small)
    squares.append([np.square(np.subtract(*pair, dtype=float)).mean() for pair in pairs])
    out = target / "test" / path.parent.name / path.with_suffix(".png").name
    out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(again).save(out)
print(np.sqrt(np.mean(squares, axis=0)))
