"""Thinning of point clouds."""

from __future__ import annotations

import numpy as np

_BITS = 21
_OFFSET = 1 << (_BITS - 1)


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
