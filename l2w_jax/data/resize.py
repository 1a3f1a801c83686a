"""From a crop of any size to the square that the network sees.

With OpenCV, since TensorFlow takes several times as long.
"""

import cv2
import numpy as np

# Images are resized side by side, by the threads that decode them.
cv2.setNumThreads(0)


def resize(crop: np.ndarray, square: np.ndarray, mirrored: bool = False) -> None:
    """Writes `crop`, uint8[h, w, 3], into `square`, uint8[size, size, 3], perhaps mirrored.

    Bilinear, which leaves a crop of the right size as it is. Where it shrinks by more than half,
    bilinear interpolation would skip pixels: the pixels that become one are averaged first.
    """
    size = len(square)
    height, width = crop.shape[:2]
    if max(height, width) > 2 * size:
        fitting = (min(width, size), min(height, size))
        crop = cv2.resize(crop, fitting, interpolation=cv2.INTER_AREA)
    cv2.resize(crop, (size, size), dst=square)
    if mirrored:
        cv2.flip(square, 1, dst=square)
