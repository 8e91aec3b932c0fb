"""Labelled scenes in the folder layout, drawn by code."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np


def write_labelled_scenes(root: Path, train: int, test: int) -> Path:
    """Writes green scenes of 60x90; those in ``test/`` hold a red square. Returns ``root``.

    The square has 25x30 pixels. The last row of the masks of ``test/`` is void.

    Args:
        train, test: how many of each, at most 5 of ``test``.
    """
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("test", test)):
        for kind in ("images", "masks"):
            (root / part / kind).mkdir(parents=True)
        for i in range(count):
            image = np.full((60, 90, 3), (60, 110, 80), np.uint8)
            image = cv2.add(image, rng.integers(0, 20, image.shape, np.uint8))
            mask = np.zeros((60, 90), np.uint8)
            if part == "test":
                square = np.s_[20:45, 10 + 12 * i : 40 + 12 * i]
                image[square], mask[square] = (40, 40, 230), 1
                mask[-1] = 255
            cv2.imwrite(str(root / part / "images" / f"{i}.png"), image)
            cv2.imwrite(str(root / part / "masks" / f"{i}.png"), mask)
    return root
