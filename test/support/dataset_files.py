"""Picture files of the miniature data sets that tests write."""

import cv2
import numpy as np

SIZE = (40, 50)


def write(file, pixels):
    """A picture; colours are given as RGB."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if pixels.ndim == 3:
        code = cv2.COLOR_RGBA2BGRA if pixels.shape[2] == 4 else cv2.COLOR_RGB2BGR
        pixels = cv2.cvtColor(pixels, code)
    assert cv2.imwrite(str(file), pixels)


def blank(size=SIZE):
    return np.full((*size, 3), 90, np.uint8)


def stems(dataset):
    return [file.stem for file in dataset.image_files()]
