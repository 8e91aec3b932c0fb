"""Where rays meet the ground: a plane at a constant height of the robot's base frame."""

from __future__ import annotations

import numpy as np

_FLATTEST = 1e-3
"""Rays that fall less than this per metre are taken for the horizon."""


def ground_depth(
    rays: np.ndarray, pose: np.ndarray, ground_z: float, max_range: float
) -> np.ndarray:
    """Depth along the optical axis at which rays meet the ground: float32 (N,), metres.

    The ray p + s R d of a camera at p with rotation R meets the plane z = ground_z at
    s = (ground_z - p_z) / (R d)_z, where d = (x/z, y/z, 1), so s is the depth.

    Args:
        rays: float32 (N, 2), x/z and y/z, as `CameraModel.rays`.
        pose: float64 (4, 4), base <- optical frame.
        ground_z: height of the ground in the base frame, metres.
        max_range: metres from the camera, along the ray.

    Returns:
        NaN for rays at or above the horizon, beyond ``max_range`` or NaN themselves; for all of
        them where the camera is not above the ground.
    """
    above = float(pose[2, 3]) - ground_z
    if above <= 0.0:
        return np.full(len(rays), np.nan, np.float32)
    a, b, c = (np.float32(value) for value in pose[2, :3])
    fall = -(a * rays[:, 0] + b * rays[:, 1] + c)
    with np.errstate(divide="ignore", invalid="ignore"):
        depth = np.float32(above) / fall
        length = depth * np.sqrt(1.0 + rays[:, 0] ** 2 + rays[:, 1] ** 2)
        depth[~((fall > _FLATTEST) & (length <= max_range))] = np.nan
    return depth


def ground_points(
    rays: np.ndarray, pose: np.ndarray, ground_z: float, max_range: float
) -> np.ndarray:
    """The ground seen along rays, in the optical frame: float32 (M, 3), M <= N.

    Arguments as for :func:`ground_depth`; rays that meet no ground within range are left out.
    """
    depth = ground_depth(rays, pose, ground_z, max_range)
    seen = np.isfinite(depth)
    return at_depth(rays[seen], depth[seen])


def at_depth(rays: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Points of the optical frame at a depth along rays: float32 (N, 3)."""
    points = np.empty((len(rays), 3), np.float32)
    points[:, 0] = rays[:, 0] * depth
    points[:, 1] = rays[:, 1] * depth
    points[:, 2] = depth
    return points
