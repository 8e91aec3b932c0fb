"""Draws what becomes of one of the demo's scenes: edit, heatmap, mask, overlay and costmap.

For maintainers, by `make docs/demo.jpg`: ``python scripts/write_demo_picture.py PICTURE FILE``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np

from anomaly_detector_ros import Detection, Detector
from anomaly_detector_ros.demo.camera import FILE, SceneCamera
from anomaly_detector_ros.imaging.images import read_rgb
from anomaly_detector_ros.imaging.rendering import heat_picture, overlay
from anomaly_detector_ros.mapping.costmap import RollingGrid
from anomaly_detector_ros.mapping.obstacle_finder import ObstacleFinder
from anomaly_detector_ros.mapping.obstacles import ObstacleSettings
from anomaly_detector_ros.mapping.poses import Extrinsics, Taken, mounted, transform

WIDTH, HEIGHT, GAP = 400, 213, 4
RANGE, CELL = 10.0, 0.2  # metres


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("picture", type=Path)
    parser.add_argument("file", type=Path)
    options = parser.parse_args()
    image = read_rgb(options.picture)
    found = Detector.from_profile().detect(image)
    panels = {
        "scene": image,
        "edit": found.edited,
        "heatmap": heat_picture(found.heatmap, calibrated=found.calibrated),
        "mask": np.repeat(found.mask[..., None] * np.uint8(255), 3, 2),
        "overlay": overlay(image, found),
        "costmap": from_above(costmap(found, options.picture)),
    }
    drawn = [labelled(name, picture) for name, picture in panels.items()]
    rows = [np.concatenate(drawn[start : start + 3], 1) for start in (0, 3)]
    picture = np.concatenate(rows)[:-GAP, :-GAP]
    cv2.imwrite(str(options.file), picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])


def costmap(found: Detection, picture: Path) -> np.ndarray:
    """The occupancy of the ground, int8 (rows of y, columns of x), after three such pictures."""
    camera = SceneCamera.load(picture.parents[1] / FILE)
    height, width = found.mask.shape
    info = SimpleNamespace(height=height, width=width, distortion_model="plumb_bob", d=[])
    info.k, info.p = camera.matrix(picture.stem, width), [0.0] * 12
    info.binning_x = info.binning_y = 0
    info.roi = SimpleNamespace(x_offset=0, y_offset=0, height=0, width=0)
    pose = mounted(camera.height)
    seen = ObstacleFinder().find(
        info,
        None,
        found.mask,
        found.heatmap,
        Taken("camera", (0,)),
        Extrinsics(None, "base", matrix=pose.ravel()),
        ObstacleSettings(max_range=RANGE),
        free=True,
    )
    assert not seen.problem, seen.problem
    grid = RollingGrid(2 * RANGE, CELL, half_life=0.0)
    hits, misses = (transform(pose, p.astype(np.float64))[:, :2] for p in (seen.points, seen.free))
    for second in range(3):
        grid.update(second * 10**9, (0.0, 0.0), hits, misses)
    return grid.occupancy()


def from_above(cells: np.ndarray) -> np.ndarray:
    """The ground ahead: unknown grey, free white, obstacles dark, the robot a triangle below."""
    ahead = cells[:, len(cells) // 2 :].T[::-1, ::-1]  # forward is up, left is left
    shade = np.where(ahead < 0, 150, 255 - 2.55 * np.clip(ahead, 0, 100)).astype(np.uint8)
    scale = HEIGHT / len(shade)
    drawn = cv2.resize(shade, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
    picture = np.full((HEIGHT, WIDTH), 150, np.uint8)
    left = max(0, (drawn.shape[1] - WIDTH) // 2)
    cut = drawn[:HEIGHT, left : left + WIDTH]
    picture[: len(cut), : cut.shape[1]] = cut
    coloured = np.ascontiguousarray(np.repeat(picture[..., None], 3, 2))
    x, y = WIDTH // 2, HEIGHT - 14
    robot = np.array([(x, y), (x - 7, y + 13), (x + 7, y + 13)])
    cv2.fillPoly(coloured, [robot], (0, 130, 115))
    return coloured


def labelled(name: str, picture: np.ndarray) -> np.ndarray:
    """A panel with its name in the corner and a white edge to the right and below."""
    scaled = cv2.resize(picture, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    (width, height), _ = cv2.getTextSize(name, cv2.FONT_HERSHEY_SIMPLEX, 0.55, 1)
    cv2.rectangle(scaled, (0, 0), (width + 12, height + 12), (30, 30, 30), cv2.FILLED)
    place, white = (6, height + 5), (255, 255, 255)
    cv2.putText(scaled, name, place, cv2.FONT_HERSHEY_SIMPLEX, 0.55, white, 1, cv2.LINE_AA)
    return np.pad(scaled, ((0, GAP), (0, GAP), (0, 0)), constant_values=255)


if __name__ == "__main__":
    main()
