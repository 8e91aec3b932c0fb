"""Draws the demo's pictures: scenes sampled from offroad_latent, with objects rendered into them.

For maintainers: ``python scripts/draw_demo_scenes.py --output demo``. Writes ``images/scene_0.jpg``
and the objects' outlines ``truth/scene_0.png`` (0 or 255), and so on.

Objects are solids given by their distance to a point and found by sphere tracing. They stand on a
flat ground before a level pinhole camera, in the light of a sky dome and a sun. The same light,
with the object in its way, darkens the ground of the picture. Metres; x right, y ahead, z up.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from anomaly_detector_ros.runtime.allocator import tune

Array = NDArray[np.float32]
Point = tuple[float, float, float]

HEIGHT, WIDTH = 272, 512
FOCAL = 330.0
CAMERA = np.array([0, 0, 1.4], np.float32)
RAYS = 3  # across a pixel
GROUND_ALBEDO = 0.22
SKY_RAYS = 16
JPEG_QUALITY = 92
GAMMA = np.float32(2.2)  # of the pictures


@dataclass(frozen=True)
class Part:
    """A solid: its distance to points (N, 3), its albedo or a function of points, its gloss."""

    distance: Callable[[Array], Array]
    albedo: Point | Callable[[Array], Array]
    gloss: float = 0.0

    def paint(self, p: Array) -> Array:
        """Albedo at points, float32 (N, 3), uneven as used things are."""
        plain = self.albedo(p) if callable(self.albedo) else np.float32([self.albedo])
        wear = np.sin(p @ np.float32([31, 17, 23])) * np.sin(p @ np.float32([-13, 41, 7]))
        wear = wear + np.sin(p @ np.float32([83, -59, 71])) * np.sin(p @ np.float32([67, 97, -89]))
        return np.asarray(plain * (1 + 0.07 * wear)[:, None], np.float32)


def limb(a: Point, b: Point, ra: float, rb: float) -> Callable[[Array], Array]:
    """A capsule from `a` to `b` whose radius runs from `ra` to `rb`."""
    start, axis = np.float32(a), np.float32(b) - np.float32(a)

    def distance(p: Array) -> Array:
        h = np.clip((p - start) @ axis / (axis @ axis), 0, 1)
        return np.linalg.norm(p - start - h[:, None] * axis, axis=1) - (ra + (rb - ra) * h)

    return distance


def tube(a: Point, b: Point, radius: float) -> Callable[[Array], Array]:
    """A cylinder with flat ends."""
    middle, half = (np.float32(a) + np.float32(b)) / 2, (np.float32(b) - np.float32(a)) / 2
    length = float(np.linalg.norm(half))

    def distance(p: Array) -> Array:
        along = (p - middle) @ (half / length)
        across = np.linalg.norm(p - middle - along[:, None] * (half / length), axis=1) - radius
        return _corner(np.stack([across, abs(along) - length], 1))

    return distance


def block(centre: Point, half: Point, rounded: float = 0.0) -> Callable[[Array], Array]:
    """A box along the axes."""
    size = np.float32(half) - rounded
    return lambda p: _corner(abs(p - np.float32(centre)) - size) - rounded


def hull(*planes: tuple[float, float, float, float], rounded: float = 0.0) -> Callable[..., Array]:
    """What lies below all planes: normal (of any length) and offset."""
    rows = np.float32(planes) / np.linalg.norm(np.float32(planes)[:, :3], axis=1, keepdims=True)
    return lambda p: (p @ rows[:, :3].T - rows[:, 3] + rounded).max(1) - rounded


def _corner(q: Array) -> Array:
    return np.linalg.norm(np.maximum(q, 0), axis=1) + np.minimum(q.max(1), 0)


def _where(*choices: tuple[Callable[[Array], Array], Point], other: Point) -> Callable[..., Array]:
    """The colour of the first choice that is true of a point."""

    def paint(p: Array) -> Array:
        colours = np.broadcast_to(np.float32(other), p.shape).copy()
        for is_here, colour in reversed(choices):
            colours[is_here(p)] = colour
        return colours

    return paint


RUBBER, STEEL, SKIN = (0.025, 0.025, 0.028), (0.3, 0.31, 0.32), (0.42, 0.25, 0.17)


def person() -> list[Part]:
    """A walker in a red jacket with a pack, seen from behind or from the front."""
    jacket, trousers, boot = (0.42, 0.05, 0.04), (0.05, 0.065, 0.11), (0.05, 0.035, 0.025)
    parts = [
        Part(limb((-0.07, 0, 1.02), (-0.09, 0, 1.36), 0.115, 0.125), jacket),
        Part(limb((0.07, 0, 1.02), (0.09, 0, 1.36), 0.115, 0.125), jacket),
        Part(limb((-0.13, 0, 1.42), (0.13, 0, 1.42), 0.08, 0.08), jacket),
        Part(limb((0, 0, 1.48), (0, 0, 1.58), 0.055, 0.055), SKIN),
        Part(limb((0, 0.01, 1.62), (0, 0.02, 1.67), 0.085, 0.09), SKIN),
        Part(limb((0, -0.02, 1.67), (0, -0.02, 1.7), 0.094, 0.085), (0.06, 0.04, 0.025)),
        Part(block((0, -0.19, 1.24), (0.14, 0.08, 0.22), 0.06), (0.06, 0.1, 0.2)),
    ]
    for side, step in ((-1, 0.16), (1, -0.2)):
        hip, knee = (0.09 * side, 0.0, 0.94), (0.1 * side, step * 0.75, 0.5)
        ankle, toe = (0.1 * side, step - 0.04, 0.1), (0.11 * side, step + 0.12, 0.05)
        elbow, hand = (0.27 * side, -step * 0.4, 1.14), (0.25 * side, -step * 0.7 + 0.1, 0.9)
        parts += [
            Part(limb(hip, knee, 0.105, 0.07), trousers),
            Part(limb(knee, ankle, 0.07, 0.055), trousers),
            Part(limb(ankle, toe, 0.06, 0.045), boot),
            Part(limb((0.2 * side, 0, 1.41), elbow, 0.07, 0.058), jacket),
            Part(limb(elbow, hand, 0.056, 0.045), jacket),
            Part(limb(hand, (hand[0], hand[1] + 0.03, hand[2] - 0.07), 0.04, 0.035), SKIN),
        ]
    return parts


def dog() -> list[Part]:
    """A dog with a dark saddle, its head to +y."""
    tan, dark = (0.3, 0.18, 0.09), (0.04, 0.03, 0.025)
    coat = _where((lambda p: (p[:, 2] > 0.47) & (p[:, 1] < 0.3), dark), other=tan)
    parts = [
        Part(limb((0, -0.3, 0.48), (0, 0.28, 0.48), 0.11, 0.14), coat),
        Part(limb((0, 0.28, 0.54), (0, 0.46, 0.69), 0.125, 0.085), tan),
        Part(limb((0, 0.5, 0.72), (0, 0.55, 0.72), 0.085, 0.08), tan),
        Part(limb((0, 0.58, 0.7), (0, 0.72, 0.675), 0.05, 0.035), dark),
        Part(limb((0, -0.38, 0.5), (0, -0.62, 0.36), 0.035, 0.045), dark),
    ]
    for side in (-1, 1):
        parts.append(
            Part(limb((0.05 * side, 0.47, 0.78), (0.06 * side, 0.46, 0.88), 0.035, 0.01), dark)
        )
        for y, step in ((0.27, 0.07 * side), (-0.3, -0.08 * side)):
            x = 0.08 * side
            knee, foot = (x, y + step * 0.4 - 0.02, 0.24), (x, y + step, 0.035)
            parts += [
                Part(limb((x, y, 0.44), knee, 0.08, 0.045), tan),
                Part(limb(knee, foot, 0.04, 0.032), tan),
            ]
    return parts


def traffic_cone() -> list[Part]:
    """An orange cone with two white bands, 0.75 m."""
    bands = _where(
        (lambda p: abs(p[:, 2] - 0.5) < 0.06, (0.75, 0.75, 0.73)),
        (lambda p: abs(p[:, 2] - 0.29) < 0.07, (0.75, 0.75, 0.73)),
        other=(0.75, 0.13, 0.02),
    )
    base = Part(block((0, 0, 0.02), (0.22, 0.22, 0.02), 0.01), (0.5, 0.08, 0.02))
    return [base, Part(limb((0, 0, 0.02), (0, 0, 0.74), 0.17, 0.03), bands, 0.03)]


def barrel() -> list[Part]:
    """A blue steel drum with ribs and a lid."""
    blue = (0.02, 0.1, 0.32)
    drum = [Part(tube((0, 0, 0), (0, 0, 0.88), 0.29), blue, 0.06)]
    for z in (0.02, 0.3, 0.59, 0.87):
        drum.append(Part(tube((0, 0, z - 0.015), (0, 0, z + 0.015), 0.302), blue, 0.08))
    return drum


def crate() -> list[Part]:
    """A wooden crate of boards, 0.7 m."""
    wood, gap = (0.36, 0.26, 0.15), (0.05, 0.03, 0.015)
    boards = _where((lambda p: (p[:, 2] % 0.14) < 0.012, gap), other=wood)
    parts = [Part(block((0, 0, 0.35), (0.33, 0.33, 0.34)), boards)]
    for x, y in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
        post = block((x * 0.31, y * 0.31, 0.35), (0.045, 0.045, 0.35))
        parts.append(Part(post, (0.3, 0.21, 0.12)))
    return parts


def sign() -> list[Part]:
    """A yellow warning sign on a steel post, its face to -y."""

    def rim(p: Array) -> Array:
        across = abs(p[:, 0]) + abs(p[:, 2] - 1.7)
        mark = (abs(p[:, 0]) < 0.035) & (abs(p[:, 2] - 1.72) < 0.17)
        return np.asarray((p[:, 1] < 0) & (((across > 0.4) & (across < 0.44)) | mark))

    face = _where((rim, (0.02, 0.02, 0.02)), other=(0.75, 0.45, 0.02))
    sides = [(x, 0.0, z, 0.48 + 1.7 * z) for x in (-1, 1) for z in (-1, 1)]
    plate = hull(*sides, (0, 1, 0, -0.03), (0, -1, 0, 0.05))
    return [Part(tube((0, 0, 0), (0, 0, 1.95), 0.03), STEEL), Part(plate, face, 0.04)]


def vehicle() -> list[Part]:
    """A parked car of the off-road kind, 4.2 m long, its back to -y."""
    red, glass, dark = (0.5, 0.03, 0.02), (0.02, 0.025, 0.03), (0.04, 0.04, 0.042)

    def lamp(p: Array) -> Array:
        return np.asarray((p[:, 1] < -2) & (abs(p[:, 0]) > 0.7) & (abs(p[:, 2] - 0.9) < 0.12))

    def arch(p: Array) -> Array:
        return np.asarray(np.hypot(abs(p[:, 1]) - 1.3, p[:, 2] - 0.38) < 0.46)

    def window(p: Array) -> Array:
        side = (abs(p[:, 0]) > 0.7) & (abs(abs(p[:, 1] + 0.55) - 0.5) > 0.04)
        end = (abs(p[:, 0]) < 0.68) & (abs(p[:, 1] + 0.5) > 1.0)
        return np.asarray((p[:, 2] > 1.16) & (p[:, 2] < 1.6) & (side | end))

    paint, white = (0.13, 0.2, 0.3), (0.5, 0.5, 0.48)
    plate = _where((lambda p: (abs(p[:, 0]) < 0.25) & (p[:, 2] > 0.5), white), other=dark)
    body = _where((lamp, red), (arch, dark), other=paint)
    cabin = hull(
        *((1, 0, 0.18, 1.06), (-1, 0, 0.18, 1.06), (0, -1, 0.25, 2.35), (0, 1, 0.9, 1.75)),
        *((0, 0, 1, 1.78), (0, 0, -1, -0.9)),
        rounded=0.06,
    )
    parts = [
        Part(block((0, 0, 0.74), (0.88, 2.05, 0.36), 0.12), body, 0.05),
        Part(cabin, _where((window, glass), other=paint), 0.04),
        Part(block((0, -2.08, 0.5), (0.84, 0.08, 0.11), 0.04), plate),
        Part(block((0, 2.08, 0.5), (0.84, 0.08, 0.11), 0.04), dark),
    ]
    for x in (-0.78, 0.78):
        for y in (-1.3, 1.3):
            hub = partial(lambda p, y: np.hypot(p[:, 1] - y, p[:, 2] - 0.38) < 0.2, y=y)
            wheel = tube((x - 0.11, y, 0.38), (x + 0.11, y, 0.38), 0.38)
            parts.append(Part(wheel, _where((hub, STEEL), other=RUBBER)))
    return parts


@dataclass(frozen=True)
class Thing:
    """An object on the ground: its parts, place (x, y), turn in degrees, half width, height.

    `soft` is how far its parts flow into each other.
    """

    build: Callable[[], list[Part]]
    place: tuple[float, float]
    turn: float = 0.0
    extent: float = 0.5
    height: float = 1.0
    soft: float = 0.0

    @cached_property
    def parts(self) -> list[Part]:
        """What it is built of."""
        return self.build()

    def away(self, p: Array) -> Array:
        """Horizontal distance of points (N, 3) from its axis."""
        return np.asarray(np.hypot(p[:, 0] - self.place[0], p[:, 1] - self.place[1]))

    def local(self, p: Array) -> Array:
        """Points of the world in the object's own axes."""
        c, s = np.cos(np.radians(self.turn)), np.sin(np.radians(self.turn))
        into = np.float32([[c, -s, 0], [s, c, 0], [0, 0, 1]])
        return np.asarray((p - np.float32([*self.place, 0])) @ into, np.float32)

    def distance(self, p: Array) -> Array:
        """Distance to points (N, 3) of the world."""
        p, soft = self.local(p), self.soft
        near = self.parts[0].distance(p)
        for part in self.parts[1:]:
            other = part.distance(p)
            blend = np.maximum(soft - abs(near - other), 0) ** 2 / (4 * soft) if soft else 0
            near = np.minimum(near, other) - blend
        return np.asarray(near, np.float32)

    def material(self, p: Array) -> tuple[Array, Array]:
        """Albedo (N, 3) and gloss (N,) of points of the surface."""
        p = self.local(p)
        nearest = np.argmin([part.distance(p) for part in self.parts], axis=0)
        albedo = np.choose(nearest[:, None], [part.paint(p) for part in self.parts])
        return albedo, np.float32([part.gloss for part in self.parts])[nearest]

    def normal(self, p: Array) -> Array:
        """Unit normals (N, 3) by finite differences."""
        step = np.eye(3, dtype=np.float32) * 2e-3
        slope = np.stack([self.distance(p + e) - self.distance(p - e) for e in step], 1)
        return np.asarray(slope / np.maximum(np.linalg.norm(slope, axis=1, keepdims=True), 1e-6))

    def hits(self, origin: Array, ray: Array, far: float) -> tuple[Array, Array]:
        """How far along unit rays the surface lies (N,), and which rays hit it."""
        t = np.zeros(len(ray), np.float32)
        on = np.arange(len(ray))
        hit = np.zeros(len(ray), bool)
        for _ in range(90):
            d = self.distance(origin + t[on, None] * ray[on])
            hit[on[d < 1e-3]] = True
            t[on] += 0.85 * d
            on = on[(d >= 1e-3) & (t[on] < far)]
            if not on.size:
                break
        return t, hit

    def visible(self, p: Array, direction: Array, width: float) -> Array:
        """How much of a light of some angular width is seen from points (N,)."""
        seen = np.ones(len(p), np.float32)
        middle = np.float32([*self.place, self.height / 2])
        radius = 1.2 * float(np.hypot(self.extent, self.height / 2))  # of a ball around it
        closest = (middle - p) @ direction
        off = np.linalg.norm(p + closest[:, None] * direction - middle, axis=1)
        t = np.maximum(closest - np.sqrt(np.maximum(radius**2 - off**2, 0)), 0.015)
        on = np.flatnonzero((off < radius) & (closest > -radius))
        for _ in range(30):
            if not on.size:
                break
            d = self.distance(p[on] + t[on, None] * direction)
            seen[on] = np.minimum(seen[on], np.clip(0.5 + d / (width * t[on]), 0, 1))
            t[on] += np.clip(d, 0.02, 0.4)
            on = on[(seen[on] > 0.01) & (t[on] < closest[on] + radius)]
        return seen


@dataclass(frozen=True)
class Scene:
    """A scene's seed, its light, and what stands in it.

    Attributes:
        seed: of the noise that the scene is sampled from.
        horizon: row of the picture.
        sun: azimuth (0 ahead, 90 right) and elevation in degrees.
        direct: the sun's share of the light on the ground.
        exposure: correction of the object's brightness, which follows the ground's.
    """

    seed: int
    horizon: float
    things: tuple[Thing, ...] = ()
    sun: tuple[float, float] = (0.0, 60.0)
    direct: float = 0.3
    exposure: float = 1.0


def sample_scene(model: Path, seed: int, steps: int = 25) -> NDArray[np.uint8]:
    """A scene without objects: uint8 RGB (272, 512, 3), by deterministic sampling from noise."""
    import torch

    from anomaly_detector_ros.synthesis.denoisers.loading import load_denoiser
    from anomaly_detector_ros.synthesis.samplers.few_step import FewStep
    from anomaly_detector_ros.synthesis.similarity.norms import GaussianSimilarity

    denoiser = load_denoiser(model, dtype=torch.bfloat16)
    noise = torch.randn(
        (1, 8, HEIGHT // 8, WIDTH // 8), generator=torch.Generator().manual_seed(seed)
    )
    sampler = FewStep(similarity=GaussianSimilarity(0.0), noise_level=1.0, steps=steps, clip=False)
    with torch.no_grad():
        latents = sampler(denoiser, torch.zeros_like(noise), initial_noise=noise)
        picture = denoiser.space.decode(latents).clamp(-1, 1)[0]
    return picture.add(1).mul(127.5).round().byte().permute(1, 2, 0).numpy()


def lights(scene: Scene) -> list[tuple[Array, Array, float]]:
    """Sky and sun: direction, irradiance (3,) across it, angular width; 1 in all on the ground."""
    k = np.arange(SKY_RAYS)
    z = (k + 0.5) / SKY_RAYS
    turn, level = k * np.pi * (3 - 5**0.5), np.sqrt(1 - z**2)
    sky = np.stack([level * np.cos(turn), level * np.sin(turn), z], 1).astype(np.float32)
    azimuth, elevation = np.radians(scene.sun)
    flat = np.cos(elevation)
    sun = np.float32([flat * np.sin(azimuth), flat * np.cos(azimuth), np.sin(elevation)])
    blue = (1 - scene.direct) * np.float32([0.94, 1.0, 1.08])
    warm = scene.direct * np.float32([1.08, 1.0, 0.88])
    whole = blue + warm
    blue, warm = blue / whole / z.sum(), warm / whole / sun[2]
    return [*((direction, blue, 0.5) for direction in sky), (sun, warm, 0.1)]


def irradiance(scene: Scene, p: Array, n: Array) -> Array:
    """Light (N, 3) on points with unit normals, the things in its way."""
    total = np.zeros_like(p)
    for direction, colour, width in lights(scene):
        facing = np.maximum(n @ direction, 0)
        lit = np.flatnonzero(facing > 0)
        for thing in scene.things:
            facing[lit] *= thing.visible(p[lit] + 0.01 * n[lit], direction, width)
        total += facing[:, None] * colour
    return total


def camera_rays(scene: Scene, rows: Array, columns: Array) -> Array:
    """Unit rays (N, 3) through points of the picture."""
    across, up = (columns - WIDTH / 2) / FOCAL, (scene.horizon - rows) / FOCAL
    rays = np.stack([across, np.ones_like(across), up], 1).astype(np.float32)
    return np.asarray(rays / np.linalg.norm(rays, axis=1, keepdims=True))


def render(scene: Scene, picture: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The picture with the scene's things in it, uint8 (H, W, 3), and their mask, bool (H, W)."""
    rng = np.random.default_rng(scene.seed)
    bare = (picture.astype(np.float32) / 255) ** GAMMA
    rows, columns = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32) + np.float32(0.5)
    rays = camera_rays(scene, rows.ravel(), columns.ravel())
    ground = CAMERA + CAMERA[2] / np.maximum(-rays[:, 2:], 1e-4) * rays
    image, truth = bare * shadows(scene, ground), np.zeros((HEIGHT, WIDTH), bool)
    for thing in sorted(scene.things, key=lambda thing: -thing.place[1]):
        lit = bare.reshape(-1, 3)[thing.away(ground) < thing.extent + 1].mean(0)
        white = np.sqrt(lit * lit.mean()) / GROUND_ALBEDO * scene.exposure  # half of its cast
        seen = draw(scene, thing, white)
        truth |= seen[..., 3] >= 0.5
        # The edges and the noise of a camera.
        seen = cv2.GaussianBlur(seen, (0, 0), 0.65)
        noise = cv2.GaussianBlur(rng.normal(size=bare.shape).astype(np.float32), (0, 0), 0.6)
        colour, alpha = seen[..., :3], seen[..., 3:]
        colour = (colour ** (1 / GAMMA) + 0.035 * alpha * noise).clip(0) ** GAMMA
        image = image * (1 - alpha) + colour
    shown = np.rint(255 * image.clip(0, 1) ** (1 / GAMMA)).astype(np.uint8)
    return shown, truth


def shadows(scene: Scene, ground: Array) -> Array:
    """What the things leave of the light on the ground, points (H W, 3): float32 (H, W, 3)."""
    left = np.ones_like(ground)
    near = np.zeros(len(ground), bool)
    for thing in scene.things:
        near |= thing.away(ground) < thing.extent + 3 * thing.height
    upward = np.tile(np.float32([0, 0, 1]), (int(near.sum()), 1))
    left[near] = irradiance(scene, ground[near], upward)
    return np.asarray(cv2.GaussianBlur(left.reshape(HEIGHT, WIDTH, 3), (0, 0), 0.7))


def draw(scene: Scene, thing: Thing, white: Array) -> Array:
    """A thing as linear RGB, multiplied by its coverage, and coverage: float32 (H, W, 4)."""
    x, y = thing.place
    e, h = thing.extent, thing.height
    corners = np.float32([(x + i, y + j, k) for i in (-e, e) for j in (-e, e) for k in (0, h)])
    u = WIDTH / 2 + FOCAL * corners[:, 0] / corners[:, 1]
    v = scene.horizon - FOCAL * (corners[:, 2] - CAMERA[2]) / corners[:, 1]
    left, right = int(max(u.min() - 2, 0)), int(min(u.max() + 3, WIDTH))
    top, bottom = int(max(v.min() - 2, 0)), int(min(v.max() + 3, HEIGHT))
    fine = np.mgrid[: (bottom - top) * RAYS, : (right - left) * RAYS].astype(np.float32)
    rows, columns = (fine + 0.5) / RAYS + np.float32([top, left])[:, None, None]
    rays = camera_rays(scene, rows.ravel(), columns.ravel())
    t, hit = thing.hits(CAMERA, rays, y + 2 * e + 2)
    colours = np.zeros((len(rays), 4), np.float32)
    p, view = CAMERA + t[hit, None] * rays[hit], rays[hit]
    n = thing.normal(p)
    albedo, gloss = thing.material(p)
    # Light that the ground gives back, less of it close to the ground, where the thing shades it.
    given_back = GROUND_ALBEDO * (1 - n[:, 2]) / 2 * np.clip(0.3 + p[:, 2], 0, 0.9)
    light = irradiance(scene, p, n) + given_back[:, None]
    mirrored = view[:, 2] - 2 * (view * n).sum(1) * n[:, 2]
    grazing = 1 + 4 * np.clip(1 + (view * n).sum(1), 0, 1) ** 3
    sheen = gloss * grazing * np.clip(0.5 + 2 * mirrored, 0.1, 1.2)
    colours[hit, :3] = ((albedo * light + sheen[:, None]) * white).clip(0, 1)
    colours[hit, 3] = 1
    small = cv2.resize(
        colours.reshape(*rows.shape, 4), (right - left, bottom - top), interpolation=cv2.INTER_AREA
    )
    whole = np.zeros((HEIGHT, WIDTH, 4), np.float32)
    whole[top:bottom, left:right] = small
    return whole


CRATE = Thing(crate, (0.3, 4.6), 25, 0.5, 0.75)
SCENES = (
    Scene(0, 92, (Thing(person, (-0.5, 5.2), 10, 0.5, 1.85, 0.03),), (110, 45), 0.5, 0.8),
    Scene(1, 100, (Thing(barrel, (-0.7, 5), 0, 0.35, 0.95), CRATE), (-120, 45), 0.5, 0.85),
    Scene(2, 80),
    Scene(3, 98, (Thing(traffic_cone, (-0.35, 4.4), 20, 0.3, 0.8),), (120, 40), 0.6, 0.8),
    Scene(4, 85, (Thing(vehicle, (1.3, 9.0), 24, 2.3, 1.9),), (115, 42), 0.5, 0.75),
    Scene(6, 100, (Thing(dog, (0.2, 4.6), 70, 0.8, 0.95, 0.03),), (-110, 50), 0.5, 0.85),
    Scene(7, 100, (Thing(sign, (1.5, 5.5), 8, 0.5, 2.2),), (-100, 55), 0.5, 0.8),
    Scene(8, 90),
)


def main() -> None:
    """Draw the pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("models/offroad_latent"))
    parser.add_argument("--output", type=Path, required=True, help="directory to write into")
    options = parser.parse_args()
    tune()
    horizon = {f"scene_{index}": scene.horizon for index, scene in enumerate(SCENES)}
    camera = {"focal": FOCAL, "height": round(float(CAMERA[2]), 3), "horizon": horizon}
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "camera.json").write_text(json.dumps(camera, indent=2) + "\n")
    for folder in ("images", "truth"):
        (options.output / folder).mkdir(parents=True, exist_ok=True)
    for index, scene in enumerate(SCENES):
        picture, truth = render(scene, sample_scene(options.model, scene.seed))
        file = options.output / "images" / f"scene_{index}.jpg"
        cv2.imwrite(str(file), picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        mask = options.output / "truth" / f"scene_{index}.png"
        cv2.imwrite(str(mask), truth.astype(np.uint8) * 255)
        print(file, flush=True)


if __name__ == "__main__":
    main()
