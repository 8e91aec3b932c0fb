"""Depth images to metres."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.mapping.depth import depth_metres


def message(array: np.ndarray, encoding: str, padding: int = 0) -> SimpleNamespace:
    rows = array.view(np.uint8).reshape(array.shape[0], -1)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=255)
    return SimpleNamespace(
        height=array.shape[0],
        width=array.shape[1],
        encoding=encoding,
        is_bigendian=int(array.dtype.byteorder == ">"),
        step=rows.shape[1],
        data=rows.tobytes(),
    )


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("order", ["<", ">"])
def test_millimetres(order: str, padding: int):
    stored = np.array([[0, 1, 1500], [65535, 250, 4000]], f"{order}u2")
    found = depth_metres(message(stored, "16UC1", padding), (2, 3))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[np.nan, 0.001, 1.5], [65.535, 0.25, 4.0]], rtol=1e-6)


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("order", ["<", ">"])
def test_metres(order: str, padding: int):
    stored = np.array([[0.0, np.nan, np.inf], [-np.inf, -1.0, 2.25]], f"{order}f4")
    found = depth_metres(message(stored, "32FC1", padding), (2, 3))
    assert np.isnan(found.reshape(-1)[:5]).all()
    assert found[1, 2] == 2.25


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"encoding": "rgb8"}, "16UC1"),
        ({"height": 4}, "register the depth"),
        ({"width": 2}, "register the depth"),
        ({"step": 4}, "check the depth driver"),
        ({"data": b"\0" * 11}, "check the depth driver"),
    ],
)
def test_what_is_not_this_cameras_depth_is_refused(fields, reason: str):
    good = message(np.zeros((2, 3), np.uint16), "16UC1")
    with pytest.raises(UserError, match="depth image") as caught:
        depth_metres(SimpleNamespace(**{**vars(good), **fields}), (2, 3))
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("stored", "encoding", "unit", "metres"),
    [
        (np.array([[400]], "<u2"), "16UC1", 0.0, 0.4),
        (np.array([[400]], "<u2"), "16UC1", 0.00025, 0.1),
        (np.array([[400]], "<u2"), "mono16", 0.01, 4.0),
        (np.array([[4000.0]], "<f4"), "32FC1", 0.001, 4.0),
        (np.array([[4.0]], "<f4"), "32FC1", 0.0, 4.0),
    ],
)
def test_any_unit(stored: np.ndarray, encoding: str, unit: float, metres: float):
    found = depth_metres(message(stored, encoding), (1, 1), unit)
    np.testing.assert_allclose(found, metres, rtol=1e-6)
