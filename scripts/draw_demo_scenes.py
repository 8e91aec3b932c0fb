"""Generates the demo's pictures: off-road scenes drawn from our own model, each with an object.

For maintainers: ``python scripts/draw_demo_scenes.py --model DIR --output demo``. Writes
``images/scene_0.jpg`` and the objects' outlines ``truth/scene_0.png`` (0 or 255), and so on.

Objects are anti-aliased, shaded pictures with transparency, float RGBA (size, size, 4) in [0, 1],
each standing on the lower edge and lit from the upper left.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from anomaly_detector_ros.runtime.allocator import tune

HEIGHT, WIDTH = 272, 512
JPEG_QUALITY = 92

# The model runs again on the enlarged scene from this noise level: little enough to keep what
# there is, enough to add detail. At the full size of the picture it adds grain instead.
REDRAWN_SIZE = (136, 256)
REDRAWN_FROM = 0.35
_SUPERSAMPLING = 4


class _Canvas:
    """A square canvas in units of its own size; shapes are painted over each other."""

    def __init__(self, size: int) -> None:
        self.size, self.side = size, size * _SUPERSAMPLING
        self.rgba = np.zeros((self.side, self.side, 4), np.float32)
        axis = (np.arange(self.side, dtype=np.float32) + 0.5) / self.side
        self.x, self.y = np.meshgrid(axis, axis)

    def paint(self, mask: np.ndarray, colour: Sequence[float], shade: np.ndarray | float) -> None:
        """Paint where the mask is; shade multiplies the colour."""
        shaded = np.asarray(colour, np.float32) * np.broadcast_to(
            np.asarray(shade, np.float32)[..., None], (self.side, self.side, 1)
        )
        self.rgba[mask, :3] = np.clip(shaded, 0, 1)[mask]
        self.rgba[mask, 3] = 1

    def polygon(self, *points: tuple[float, float]) -> np.ndarray:
        mask = np.zeros((self.side, self.side), np.uint8)
        cv2.fillPoly(mask, [np.rint(np.array(points) * self.side).astype(np.int32)], 1)
        return mask.astype(bool)

    def ellipse(self, x: float, y: float, rx: float, ry: float) -> np.ndarray:
        return np.asarray(((self.x - x) / rx) ** 2 + ((self.y - y) / ry) ** 2 <= 1)

    def round_shade(self, centre: float | np.ndarray, half: float | np.ndarray) -> np.ndarray:
        """Light on an upright round body around `centre`, whose half width is `half`."""
        across = np.clip((self.x - centre) / half, -1, 1)
        return np.asarray(0.45 + 0.6 * np.sqrt(1 - (across * 0.8 + 0.3).clip(-1, 1) ** 2))

    def finish(self) -> np.ndarray:
        premultiplied = self.rgba.copy()
        premultiplied[..., :3] *= premultiplied[..., 3:]
        size = (self.size, self.size)
        small = np.asarray(
            cv2.resize(premultiplied, size, interpolation=cv2.INTER_AREA), np.float32
        )
        small[..., :3] /= np.maximum(small[..., 3:], 1e-6)
        return np.clip(small, 0, 1)


def traffic_cone(size: int) -> np.ndarray:
    """An orange cone with two white bands."""
    c = _Canvas(size)
    c.paint(c.polygon((0.12, 1.0), (0.88, 1.0), (0.8, 0.9), (0.2, 0.9)), (0.75, 0.24, 0.05), 0.8)
    body = c.polygon((0.45, 0.06), (0.55, 0.06), (0.76, 0.93), (0.24, 0.93))
    half = 0.05 + (c.y - 0.06) * 0.24
    shade = c.round_shade(0.5, half)
    c.paint(body, (1.0, 0.38, 0.06), shade)
    sag = 0.02 * (1 - ((c.x - 0.5) / 0.3) ** 2)  # the bands curve around the cone
    for top, bottom in ((0.3, 0.44), (0.6, 0.74)):
        c.paint(body & (c.y - sag > top) & (c.y - sag < bottom), (0.95, 0.95, 0.93), shade)
    return c.finish()


def barrel(size: int) -> np.ndarray:
    """A blue steel drum with two ribs."""
    c = _Canvas(size)
    half = 0.31
    body = ((abs(c.x - 0.5) <= half) & (c.y > 0.14) & (c.y < 0.92)) | c.ellipse(
        0.5, 0.92, half, 0.075
    )
    shade = c.round_shade(0.5, half)
    c.paint(body, (0.1, 0.3, 0.72), shade)
    sag = 0.075 * np.sqrt(np.clip(1 - ((c.x - 0.5) / half) ** 2, 0, 1))
    for at in (0.33, 0.6):
        c.paint(body & (abs(c.y - sag - at) < 0.018), (0.16, 0.4, 0.85), shade * 1.15)
        c.paint(body & (abs(c.y - sag - at - 0.028) < 0.01), (0.06, 0.2, 0.5), shade)
    c.paint(c.ellipse(0.5, 0.14, half, 0.075), (0.22, 0.46, 0.86), 0.95)
    c.paint(c.ellipse(0.5, 0.145, half * 0.88, 0.06), (0.14, 0.36, 0.76), 0.9)
    return c.finish()


def crate(size: int) -> np.ndarray:
    """A pale wooden crate, seen on its corner."""
    c = _Canvas(size)
    front = c.polygon((0.06, 0.4), (0.6, 0.46), (0.6, 1.0), (0.06, 0.9))
    side = c.polygon((0.6, 0.46), (0.95, 0.36), (0.95, 0.84), (0.6, 1.0))
    top = c.polygon((0.06, 0.4), (0.42, 0.32), (0.95, 0.36), (0.6, 0.46))
    grain = 1 + 0.06 * np.sin(c.y * 190 + 3 * np.sin(c.x * 21)) + 0.03 * np.sin(c.y * 517 + c.x * 9)
    wood = (0.84, 0.66, 0.4)
    c.paint(front, wood, grain)
    c.paint(side, wood, grain * 0.62)
    c.paint(top, wood, 1.12)
    for level in (0.2, 0.4, 0.6, 0.8):  # gaps between boards
        y_front = (0.4 + 0.06 * (c.x - 0.06) / 0.54) * (1 - level) + (
            0.9 + 0.1 * (c.x - 0.06) / 0.54
        ) * level
        c.paint(front & (abs(c.y - y_front) < 0.007), (0.3, 0.2, 0.1), 1.0)
        y_side = (0.46 - 0.1 * (c.x - 0.6) / 0.35) * (1 - level) + (
            1.0 - 0.16 * (c.x - 0.6) / 0.35
        ) * level
        c.paint(side & (abs(c.y - y_side) < 0.007), (0.2, 0.13, 0.06), 1.0)
    for x in (0.1, 0.56):
        c.paint(front & (abs(c.x - x) < 0.04), (0.74, 0.55, 0.31), grain)
    return c.finish()


def person(size: int) -> np.ndarray:
    """A standing figure in a red jacket."""
    c = _Canvas(size)
    legs, skin, jacket = (0.16, 0.19, 0.3), (0.85, 0.64, 0.5), (0.8, 0.1, 0.12)
    for x in (0.45, 0.56):
        leg = c.polygon((x - 0.05, 0.52), (x + 0.05, 0.52), (x + 0.035, 0.96), (x - 0.035, 0.96))
        c.paint(leg, legs, c.round_shade(x, 0.06))
        c.paint(c.ellipse(x - 0.01, 0.975, 0.055, 0.025), (0.1, 0.08, 0.07), 1.0)
    for shoulder, elbow, hand in (
        ((0.4, 0.25), (0.335, 0.4), (0.36, 0.54)),
        ((0.61, 0.25), (0.67, 0.4), (0.64, 0.54)),
    ):
        arm = np.zeros((c.side, c.side), np.uint8)
        points = np.rint(np.array([shoulder, elbow, hand]) * c.side).astype(np.int32)
        cv2.polylines(arm, [points], False, 1, round(0.06 * c.side))
        c.paint(arm.astype(bool), jacket, c.round_shade(elbow[0], 0.08) * 0.85)
        c.paint(c.ellipse(*hand, 0.028, 0.032), skin, 0.9)
    torso = c.polygon(
        (0.4, 0.2), (0.61, 0.2), (0.635, 0.3), (0.6, 0.56), (0.41, 0.56), (0.375, 0.3)
    )
    c.paint(torso, jacket, c.round_shade(0.505, 0.14))
    c.paint(c.polygon((0.475, 0.15), (0.535, 0.15), (0.545, 0.22), (0.465, 0.22)), skin, 0.75)
    c.paint(c.ellipse(0.505, 0.1, 0.052, 0.068), skin, c.round_shade(0.505, 0.06))
    hair = c.ellipse(0.505, 0.085, 0.056, 0.062) & (c.y < 0.085)
    c.paint(hair, (0.2, 0.13, 0.08), 1.0)
    return c.finish()


def ball(size: int) -> np.ndarray:
    """A yellow ball with a blue stripe."""
    c = _Canvas(size)
    x, y = (c.x - 0.5) / 0.46, (c.y - 0.54) / 0.46
    z = np.sqrt(np.clip(1 - x**2 - y**2, 0, 1))
    light = np.clip(-0.45 * x - 0.6 * y + 0.65 * z, 0, 1)
    shade = 0.35 + 0.7 * light
    whole = x**2 + y**2 <= 1
    c.paint(whole, (0.98, 0.82, 0.1), shade)
    c.paint(whole & (abs(0.8 * y + 0.3 * x + 0.25 * z) < 0.16), (0.1, 0.25, 0.75), shade)
    gloss = np.clip(light - 0.93, 0, 1) / 0.07
    c.rgba[whole, :3] += (0.5 * gloss**2)[whole][..., None]
    return c.finish()


def tyre(size: int) -> np.ndarray:
    """A car tyre on its tread, its rim white."""
    c = _Canvas(size)
    back = c.ellipse(0.58, 0.52, 0.38, 0.48)
    c.paint(back, (0.11, 0.11, 0.12), 0.7)
    angle = np.arctan2((c.y - 0.52) / 0.48, (c.x - 0.58) / 0.38)
    c.paint(back & (np.sin(angle * 38) > 0.3), (0.16, 0.16, 0.17), 0.75)
    c.paint(c.ellipse(0.44, 0.52, 0.38, 0.48), (0.17, 0.17, 0.18), 1.15 - 0.5 * c.y)
    c.paint(c.ellipse(0.44, 0.52, 0.24, 0.31), (0.86, 0.86, 0.84), 1.1 - 0.35 * c.y)
    c.paint(c.ellipse(0.45, 0.52, 0.19, 0.25), (0.3, 0.3, 0.31), 1.0)
    for turn in np.arange(5) * 2 * np.pi / 5:
        x, y = 0.45 + 0.11 * np.cos(turn), 0.52 + 0.145 * np.sin(turn)
        c.paint(c.ellipse(x, y, 0.045, 0.06), (0.07, 0.07, 0.08), 1.0)
    c.paint(c.ellipse(0.45, 0.52, 0.05, 0.065), (0.6, 0.6, 0.6), 1.0)
    return c.finish()


OBJECTS: dict[str, Callable[[int], np.ndarray]] = {
    "traffic_cone": traffic_cone,
    "barrel": barrel,
    "crate": crate,
    "person": person,
    "ball": ball,
    "tyre": tyre,
}
"""Every object by name."""


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
    config: Any = denoiser.unet.config
    size = _model_size(config.sample_size)
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
    return np.asarray(np.rint(np.clip(sharp, 0, 255)), np.uint8)


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
    canvas = np.asarray(cv2.GaussianBlur(canvas, (0, 0), 0.6), np.float32)
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
    return np.asarray(picture * (1 - 0.55 * np.exp(-1.2 * distance**1.2))[..., None])


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
