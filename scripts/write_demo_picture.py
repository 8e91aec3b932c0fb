"""Puts input, edit and overlay of a demo's frames into one picture, a row each.

For maintainers, by `make docs/demo.jpg`: ``python scripts/write_demo_picture.py BAG FILE``
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np

from anomaly_detector_ros.sources.recordings import read_images

OUTPUTS = "/anomaly_detector/camera"
TOPICS = ("/camera/image_raw", f"{OUTPUTS}/edited", f"{OUTPUTS}/overlay")
WIDTH = 400  # of one of them
GAP = 4


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bag", type=Path)
    parser.add_argument("file", type=Path)
    options = parser.parse_args()
    columns = []
    for topic in TOPICS:
        small = [
            cv2.resize(
                image, (WIDTH, WIDTH * len(image) // image.shape[1]), interpolation=cv2.INTER_AREA
            )
            for _, image in read_images(options.bag, topic)
        ]
        columns.append(np.concatenate([_framed(image) for image in small]))
    picture = np.concatenate(columns, 1)[:-GAP, :-GAP]
    cv2.imwrite(str(options.file), picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82])


def _framed(image: np.ndarray) -> np.ndarray:
    return np.pad(image, ((0, GAP), (0, GAP), (0, 0)), constant_values=255)


if __name__ == "__main__":
    main()
