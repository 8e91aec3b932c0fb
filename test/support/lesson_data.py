"""Terrains drawn by code, and a detector that knows the first of them and can be taught others."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
import yaml

from anomaly_detector_ros.building import Parts
from anomaly_detector_ros.fitting import fit_calibration
from anomaly_detector_ros.profiles import load_profile

MEADOW, GRAVEL, BARREL, PUDDLE = (40, 170, 50), (190, 90, 50), (50, 60, 230), (40, 170, 90)
"""Colours of what is known, of new terrain, of a thing that belongs nowhere, and of one that is
near enough to what is known to raise no alarm."""
SIZE = (48, 72)


def terrain(colour: tuple[int, int, int], seed: int) -> np.ndarray:
    """A picture of ground of about this colour, uint8 RGB (48, 72, 3)."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(0, 14, (6, 9, 3)) + colour
    return cv2.resize(coarse.clip(0, 255).astype(np.uint8), SIZE[::-1])


def with_thing(
    picture: np.ndarray, left: int = 20, colour: tuple[int, int, int] = BARREL
) -> np.ndarray:
    """The picture with a thing, 16x16 pixels, whose upper left corner is (left, 16)."""
    changed = picture.copy()
    changed[16:32, left : left + 16] = colour
    return changed


def write_terrain(folder: Path, colour: tuple[int, int, int], count: int, seed: int) -> list[Path]:
    """So many pictures of a terrain."""
    folder.mkdir(parents=True)
    for index in range(count):
        picture = terrain(colour, seed + index)
        cv2.imwrite(str(folder / f"{index:03d}.png"), picture[..., ::-1])
    return sorted(folder.iterdir())


def teachable_profile(light_profile: str, folder: Path) -> Path:
    """A profile file with a memory of meadows; its detector runs in milliseconds."""
    (profile,) = yaml.safe_load(Path(light_profile).read_text()).values()
    profile |= {
        "distance": {"name": "novelty", "memory": 40, "candidates": 10},
        "segmenter": {"name": "superpixels", "uncovered": "raw"},
        "calibration": {"file": "meadow.safetensors"},
        "threshold": 0.99,
    }
    file = folder / "teachable.yaml"
    file.write_text(yaml.safe_dump({"teachable": profile}))
    loaded = load_profile(str(file))
    parts = Parts(torch.device("cpu"), offline=True)
    files = write_terrain(folder / "meadow", MEADOW, 12, 100)
    fit_calibration(loaded, parts, files).save(folder / "meadow.safetensors")
    return file
