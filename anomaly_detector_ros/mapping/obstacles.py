"""Anomalous pixels as points in front of the camera."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from anomaly_detector_ros.mapping.camera_model import CameraModel
from anomaly_detector_ros.mapping.ground import at_depth, ground_depth, ground_points
from anomaly_detector_ros.mapping.poses import transform

FREE_SAMPLES = 60_000
"""About so many pixels are asked whether they show free ground."""
MOST_PIXELS = 20_000
"""Of more anomalous pixels those inside are taken from every second, third, ... row and column."""
DIRECTION = 2.0
"""Pixels as far apart as this show one direction over the ground. One would do but for edges, where
pixels do not line up with what is upright, and for lenses whose pixels differ in angle."""
GROUND_TOLERANCE = 0.2
"""A measured point within so many metres of the ground plane's height is ground."""
MOST_THINGS = 30
"""Things are for people to look at."""
OUTLIERS = (2, 98)
"""Percentiles between which a thing extends: single pixels may lie far behind it."""

_BITS = 21
_OFFSET = 1 << (_BITS - 1)


@dataclass(frozen=True)
class ObstacleSettings:
    """How anomalies become points.

    Attributes:
        source: of distances: ``depth``, ``ground``, or ``auto``: depth where there is a depth
            image, else ground.
        max_range: points further from the camera are left out, metres.
        voxel_size: edge of the cubes that keep one point each, metres; 0 keeps every pixel.
        min_pixels: connected anomalies of fewer pixels are left out, as speckle.
        standing: what an anomaly is taken for without depth: a thing that stands on the ground, or
            (False) a patch of the ground.
        ground_z: height of the ground in the base frame, metres.
        rectified: whether the image is rectified, whatever distortion its camera_info has.
        depth_unit: metres that one of a depth image's numbers stands for; 0: as REP 118 has it,
            millimetres where they are integers and metres where they are floats.
    """

    source: str = "auto"
    max_range: float = 15.0
    voxel_size: float = 0.1
    min_pixels: int = 25
    standing: bool = True
    ground_z: float = 0.0
    rectified: bool = False
    depth_unit: float = 0.0


@dataclass(frozen=True)
class Blobs:
    """The anomalous pixels of a mask.

    Attributes:
        pixels: int64 (N,), index into the flattened image.
        label: int32 (N,), which connected anomaly a pixel belongs to.
    """

    pixels: np.ndarray
    label: np.ndarray


@dataclass(frozen=True)
class Thing:
    """One connected anomaly in space, in the frame of its points.

    Attributes:
        centre: float32 (3,), of its extent, metres.
        size: float32 (3,), along the frame's axes, metres.
        distance: of its nearest part from the camera, metres.
        score: mean of the heatmap over its pixels, in [0, 1].
    """

    centre: np.ndarray
    size: np.ndarray
    distance: float
    score: float


def obstacles_from_depth(
    model: CameraModel,
    depth: np.ndarray,
    mask: np.ndarray,
    heatmap: np.ndarray,
    settings: ObstacleSettings,
) -> np.ndarray:
    """Anomalous pixels at their measured depth.

    Args:
        depth: float32 (H, W), metres along the optical axis, NaN for none.
        mask: bool (H, W).
        heatmap: float32 (H, W), the intensity.

    Returns:
        float32 (M, 4): x y z of the optical frame in metres, intensity. Pixels without a
        measurement are left out.
    """
    pixels = find_blobs(mask, settings).pixels
    rays, distance = model.rays.reshape(-1, 2)[pixels], depth.reshape(-1)[pixels]
    with np.errstate(invalid="ignore"):
        length = distance * np.sqrt(1.0 + rays[:, 0] ** 2 + rays[:, 1] ** 2)
        near = length <= settings.max_range
    return _cloud(rays[near], distance[near], heatmap.reshape(-1)[pixels[near]], settings)


def obstacles_from_ground(
    model: CameraModel,
    pose: np.ndarray,
    mask: np.ndarray,
    heatmap: np.ndarray,
    settings: ObstacleSettings,
) -> np.ndarray:
    """Anomalous pixels where they must be if the ground is flat.

    A pixel's ray meets the ground behind whatever it shows of a thing that stands: the head of a
    person five metres away would lie at the horizon. So a standing anomaly is placed by its ground
    contact: of the pixels of one connected anomaly in one vertical plane through the camera, that
    is in one direction over the ground, the nearest on the ground is its contact, and the others
    are above that. Planes, not image columns, as lenses bend and tilted cameras turn what is
    upright. What follows:

    - what is wholly at or above the horizon is left out: it is higher than the camera;
    - the part of a thing that hangs over without touching the ground (an arm, a car's floor between
      the wheels, the corners of a rounded mask) is placed too far away, behind the thing;
    - a thing cut off by the image's lower edge is placed where that edge meets the ground;
    - a patch on the ground, such as a puddle, is reduced to its near edge: ``standing=False`` is
      for those, and puts every pixel on the ground.

    Args and returns as for :func:`obstacles_from_depth`, with the pose, float64 (4, 4), base <-
    optical frame, in place of depth.
    """
    blobs = find_blobs(mask, settings)
    depth = _blob_depth(model, pose, blobs, settings)
    seen = np.isfinite(depth)
    pixels = blobs.pixels[seen]
    rays = model.rays.reshape(-1, 2)[pixels]
    return _cloud(rays, depth[seen], heatmap.reshape(-1)[pixels], settings)


def find_blobs(mask: np.ndarray, settings: ObstacleSettings) -> Blobs:
    """The pixels of a mask, bool (H, W), in its 8-connected parts that are large enough.

    Of more than `MOST_PIXELS`, with thinning by voxels ahead anyway, only some of those inside are
    taken; those at an outline all are, so that nothing thin vanishes and every contact is exact.
    """
    octets = np.ascontiguousarray(mask, bool).view(np.uint8)
    pixels = np.flatnonzero(octets.view(bool))
    count, labels = cv2.connectedComponents(octets, connectivity=8, ltype=cv2.CV_32S)
    label = labels.reshape(-1)[pixels]
    large = np.bincount(label, minlength=count) >= settings.min_pixels
    if not large[1:].all():
        keep = large[label]
        pixels, label = pixels[keep], label[keep]
    if settings.voxel_size > 0.0 and len(pixels) > MOST_PIXELS:
        step = int(np.ceil((len(pixels) / MOST_PIXELS) ** 0.5))
        square = np.ones((3, 3), np.uint8)
        inside = cv2.erode(octets, square, borderType=cv2.BORDER_CONSTANT, borderValue=0)
        taken = octets - np.asarray(inside, np.uint8)
        taken[::step, ::step] |= octets[::step, ::step]
        keep = taken.reshape(-1)[pixels].view(bool)
        pixels, label = pixels[keep], label[keep]
    return Blobs(pixels, label)


def free_ground(
    model: CameraModel,
    pose: np.ndarray,
    mask: np.ndarray,
    depth: np.ndarray | None,
    settings: ObstacleSettings,
) -> np.ndarray:
    """Ground that nominal pixels show, from a regular sample of them: float32 (M, 3), optical.

    With depth, points measured at about the ground's height; without, where the rays meet it.
    Nominal means nothing unusual, not flat: a familiar tree passes for the ground behind it.
    """
    stride = max(1, round((mask.size / FREE_SAMPLES) ** 0.5))
    nominal = ~mask[::stride, ::stride]
    rays = model.rays[::stride, ::stride][nominal]
    if depth is None:
        return ground_points(rays, pose, settings.ground_z, settings.max_range)
    points = at_depth(rays, depth[::stride, ::stride][nominal])
    with np.errstate(invalid="ignore"):
        height = transform(pose, points)[:, 2] - settings.ground_z
        near = np.linalg.norm(points, axis=1) <= settings.max_range
        near &= np.abs(height) <= GROUND_TOLERANCE
    return np.asarray(points[near])


def organised(
    model: CameraModel,
    pose: np.ndarray | None,
    depth: np.ndarray | None,
    mask: np.ndarray,
    heatmap: np.ndarray,
    settings: ObstacleSettings,
) -> np.ndarray:
    """A point for every pixel, nominal ones too: float32 (H, W, 4), NaN where there is none.

    At the measured depth or, without any, nominal pixels on the ground and anomalous ones as by
    :func:`obstacles_from_ground`.
    """
    rays = model.rays.reshape(-1, 2)
    if depth is not None:
        depth = depth.reshape(-1)
    elif pose is not None:
        depth = ground_depth(rays, pose, settings.ground_z, settings.max_range)
        depth[mask.reshape(-1)] = np.nan
        blobs = find_blobs(mask, replace(settings, voxel_size=0.0))
        depth[blobs.pixels] = _blob_depth(model, pose, blobs, settings)
    else:
        raise ValueError("neither pose nor depth")
    points = np.empty((*heatmap.shape, 4), np.float32)
    points[..., :3] = at_depth(rays, depth).reshape(*heatmap.shape, 3)
    points[..., 3] = heatmap
    return points


def things(cloud: np.ndarray, mask: np.ndarray, settings: ObstacleSettings) -> list[Thing]:
    """The connected anomalies that have a place, the largest `MOST_THINGS`, nearest first.

    Args:
        cloud: as `organised` gives it, float32 (H, W, 4).
        mask: bool (H, W).
        settings: `min_pixels` and `max_range` count.
    """
    blobs = find_blobs(mask, replace(settings, voxel_size=0.0))
    points = cloud.reshape(-1, 4)[blobs.pixels]
    with np.errstate(invalid="ignore"):
        near = np.linalg.norm(points[:, :3], axis=1) <= settings.max_range
    points, label = points[near], blobs.label[near]
    numbers, counts = np.unique(label, return_counts=True)
    found = []
    for number in numbers[np.argsort(-counts)][:MOST_THINGS]:
        own = points[label == number]
        low, high = np.percentile(own[:, :3], OUTLIERS, axis=0).astype(np.float32)
        distance = np.percentile(np.linalg.norm(own[:, :3], axis=1), OUTLIERS[0])
        score = float(np.nan_to_num(own[:, 3]).mean())
        found.append(Thing((low + high) / 2, high - low, float(distance), score))
    return sorted(found, key=lambda thing: thing.distance)


def _blob_depth(
    model: CameraModel, pose: np.ndarray, blobs: Blobs, settings: ObstacleSettings
) -> np.ndarray:
    """Depths (N,) of anomalous pixels by the ground: NaN where it is not seen."""
    rays = model.rays.reshape(-1, 2)[blobs.pixels]
    depth = ground_depth(rays, pose, settings.ground_z, settings.max_range)
    if settings.standing and len(rays):
        return _above_contact(blobs.label, rays, depth, pose, model.intrinsics[0])
    return depth


def _above_contact(
    label: np.ndarray, rays: np.ndarray, depth: np.ndarray, pose: np.ndarray, focal: float
) -> np.ndarray:
    """Depths (N,) that put every pixel above its part's ground contact in its direction.

    Args:
        label: int32 (N,), the part that a pixel belongs to.
        rays, depth: of each pixel and of the ground there.
        focal: focal length in pixels.
    """
    rotation = pose[:2, :3].astype(np.float32)
    over_ground = rays @ rotation[:, :2].T + rotation[:, 2]  # metres per metre of depth
    pace = np.hypot(over_ground[:, 0], over_ground[:, 1])
    # Directions are counted from the camera's own, so that none in view is next to the seam.
    ahead = rotation[:, 2] if np.hypot(*rotation[:, 2]) > 0.1 else -rotation[:, 1]
    turned = np.arctan2(
        ahead[0] * over_ground[:, 1] - ahead[1] * over_ground[:, 0], over_ground @ ahead
    )
    direction = np.floor(np.nan_to_num(turned) * (focal / DIRECTION)).astype(np.int32)
    place, places = _places(label, direction)
    distance = depth * pace
    nearest = np.full(places, np.inf, np.float32)
    np.fmin.at(nearest, place, distance)
    # Pixels do not line up with an upright edge: a direction's lowest one may be just beside it.
    nearest[1:-1] = np.minimum(np.minimum(nearest[:-2], nearest[2:]), nearest[1:-1])
    with np.errstate(divide="ignore", invalid="ignore"):
        above: np.ndarray = nearest[place] / pace
    above[~np.isfinite(above)] = np.nan
    return above


def _places(label: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, int]:
    """Where each pixel's part and direction is in one table, and the table's length.

    Directions of one part are side by side, with an empty place before and after.
    """
    count = int(label.max()) + 1
    low, high = np.full(count, np.iinfo(np.int32).max), np.full(count, np.iinfo(np.int32).min)
    np.minimum.at(low, label, direction)
    np.maximum.at(high, label, direction)
    widths = np.maximum(high - low, -1) + 3
    start = np.cumsum(widths) - widths + 1
    return start[label] + direction - low[label], int(widths.sum())


def _cloud(
    rays: np.ndarray, depth: np.ndarray, intensity: np.ndarray, settings: ObstacleSettings
) -> np.ndarray:
    points = np.empty((len(rays), 4), np.float32)
    points[:, :3] = at_depth(rays, depth)
    points[:, 3] = np.nan_to_num(intensity)
    return thin(points, settings.voxel_size)


def thin(points: np.ndarray, size: float) -> np.ndarray:
    """One point per cube of an edge length: float32 (M, 4) of float32 (N, 4), M <= N.

    A cube keeps the position of its first point and the highest intensity of all of them. Points
    of one row of an image mostly share a cube with their neighbour, so runs are joined before the
    cubes are sorted.

    Args:
        points: x y z in metres, within 2**20 cubes of the origin, and intensity.
        size: edge length in metres; 0 leaves the points as they are.
    """
    if size <= 0.0 or len(points) < 2:
        return points
    cells = np.floor(points[:, :3] * np.float32(1.0 / size)).astype(np.int64) + _OFFSET
    keys = (cells[:, 0] << 2 * _BITS) | (cells[:, 1] << _BITS) | cells[:, 2]
    starts = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))
    highest = np.maximum.reduceat(points[:, 3], starts)
    _, first, cube = np.unique(keys[starts], return_index=True, return_inverse=True)
    kept = points[starts[first]]
    kept[:, 3] = -np.inf
    np.maximum.at(kept[:, 3], cube.reshape(-1), highest)
    return kept
