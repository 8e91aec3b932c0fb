"""Generates the demo's pictures: off-road scenes drawn from our own model, each with an object.

For maintainers: ``python -m anomaly_detector_ros.demo.scenes --model DIR --output demo``. Writes
``images/scene_0.jpg`` and the objects' outlines ``truth/scene_0.png`` (0 or 255), and so on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from anomaly_detector_ros.demo.objects import OBJECTS
from anomaly_detector_ros.runtime.allocator import tune

HEIGHT, WIDTH = 272, 512
JPEG_QUALITY = 92

# The model runs again on the enlarged scene from this noise level: little enough to keep what
# there is, enough to add detail. At the full size of the picture it adds grain instead.
REDRAWN_SIZE = (136, 256)
REDRAWN_FROM = 0.35


@dataclass(frozen=True)
class Placement:
    """Where an object stands: its foot (x, y) and its height, as shares of the picture's size."""

    name: str
    x: float
    y: float
    height: float


# On the ground in front of the vehicle; the nearer (lower), the larger.
PLACEMENTS = (
    Placement("traffic_cone", 0.42, 0.84, 0.26),
    Placement("barrel", 0.60, 0.78, 0.27),
    Placement("person", 0.47, 0.80, 0.44),
    Placement("crate", 0.38, 0.82, 0.25),
    Placement("ball", 0.56, 0.84, 0.14),
    Placement("tyre", 0.50, 0.80, 0.22),
    Placement("person", 0.64, 0.72, 0.33),
    Placement("traffic_cone", 0.55, 0.70, 0.17),
)


def sample_scenes(
    model: Path,
    count: int,
    seed: int,
    steps: int = 50,
    redrawn_size: tuple[int, int] = REDRAWN_SIZE,
) -> np.ndarray:
    """Scenes without any object from a model directory: uint8 RGB (count, 272, 512, 3).

    Deterministic sampling at the model's own size, then at a larger one from the enlarged scene
    with some noise, so that the network itself adds detail; the rest is enlarged and sharpened.
    """
    import torch
    import torch.nn.functional as F

    from anomaly_detector_ros.synthesis.denoisers.unet import DiffusersDenoiser
    from anomaly_detector_ros.synthesis.samplers.few_step import FewStep

    denoiser = DiffusersDenoiser.from_pretrained(model)
    size = _model_size(denoiser.unet.config.sample_size)
    draw, redraw = FewStep(noise_level=1.0, steps=steps), FewStep(noise_level=REDRAWN_FROM)
    scenes = []
    for index in range(count):
        generator = torch.Generator().manual_seed(seed + index)
        x = draw(denoiser, torch.zeros(1, 3, *size), generator=generator)
        x = F.interpolate(x, redrawn_size, mode="bicubic", antialias=True).clamp(-1, 1)
        x = redraw(denoiser, x, generator=generator).clamp(-1, 1)
        scenes.append(_enlarge(x[0].permute(1, 2, 0).add(1).mul(127.5).numpy()))
    return np.stack(scenes)


def _enlarge(scene: np.ndarray) -> np.ndarray:
    """float (h, w, 3) in 0..255 to the picture's size, uint8, a little sharpened."""
    large = cv2.resize(scene, (WIDTH, HEIGHT), interpolation=cv2.INTER_LANCZOS4)
    sharp = large + 0.5 * (large - cv2.GaussianBlur(large, (0, 0), 1.2))
    return np.rint(np.clip(sharp, 0, 255)).astype(np.uint8)


def place(scene: np.ndarray, placement: Placement) -> tuple[np.ndarray, np.ndarray]:
    """The scene with an object and its contact shadow, uint8 (H, W, 3), and its mask, bool (H, W).

    The object takes on the scene's brightness and blur, so that it is foreign by what it is and not
    by how it was pasted.
    """
    height, width = scene.shape[:2]
    size = round(placement.height * height)
    drawn = OBJECTS[placement.name](size)
    left = round(placement.x * width - size / 2)
    top = round(placement.y * height) - size
    canvas = np.zeros((height, width, 4), np.float32)
    y0, x0 = max(top, 0), max(left, 0)
    part = drawn[y0 - top : height - top, x0 - left : width - left]
    canvas[y0 : y0 + part.shape[0], x0 : x0 + part.shape[1]] = part
    canvas[..., :3] *= canvas[..., 3:]
    canvas = cv2.GaussianBlur(canvas, (0, 0), 0.6)
    picture = scene.astype(np.float32) / 255
    picture = _cast_shadow(picture, placement, canvas[..., 3], size)
    ground = picture[max(0, top + size // 2) : top + size + size // 4]
    light = float(np.clip(ground.mean() / 0.45, 0.55, 1.1))
    alpha = canvas[..., 3:]
    picture = picture * (1 - alpha) + canvas[..., :3] * light
    mask = canvas[..., 3] >= 0.5
    return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8), mask


def _cast_shadow(
    picture: np.ndarray, placement: Placement, alpha: np.ndarray, size: int
) -> np.ndarray:
    """Darken the ground under the object, to the right of it as it is lit from the left."""
    height, width = picture.shape[:2]
    foot_y, foot_x = placement.y * height, placement.x * width
    columns = np.flatnonzero(alpha[max(0, int(foot_y) - size // 6) : int(foot_y)].max(0) > 0.3)
    if columns.size:
        foot_x = float(columns.mean())
    half = (columns.size / 2 if columns.size else size / 3) * 1.15
    y, x = np.mgrid[:height, :width].astype(np.float32)
    distance = ((x - foot_x - 0.25 * half) / (1.2 * half)) ** 2
    distance += ((y - foot_y + 0.02 * size) / (0.09 * size + 1)) ** 2
    return picture * (1 - 0.55 * np.exp(-1.2 * distance**1.2))[..., None]


def _model_size(sample_size: int | Sequence[int]) -> tuple[int, int]:
    """diffusers' `sample_size` as (height, width)."""
    if isinstance(sample_size, int):
        return sample_size, sample_size
    height, width = sample_size
    return height, width


def main() -> None:
    """Generate the pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="diffusers model directory")
    parser.add_argument("--output", type=Path, required=True, help="directory to write into")
    parser.add_argument("--seed", type=int, default=0, help="of the first scene; then seed + 1 ...")
    parser.add_argument("--steps", type=int, default=50, help="network passes at the model's size")
    options = parser.parse_args()
    tune()
    for folder in ("images", "truth"):
        (options.output / folder).mkdir(parents=True, exist_ok=True)
    for index, placement in enumerate(PLACEMENTS):
        scene = sample_scenes(options.model, 1, options.seed + index, options.steps)[0]
        picture, mask = place(scene, placement)
        bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
        file = options.output / "images" / f"scene_{index}.jpg"
        cv2.imwrite(str(file), bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        truth = options.output / "truth" / f"scene_{index}.png"
        cv2.imwrite(str(truth), mask.astype(np.uint8) * 255)
        print(file, flush=True)


if __name__ == "__main__":
    main()
