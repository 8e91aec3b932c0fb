"""TF as the node asks it, with a stand-in for tf2_ros, which no Python wheel carries."""

from __future__ import annotations

import sys
import time
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

from geometry_msgs.msg import TransformStamped

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.ros import transforms
from anomaly_detector_ros.ros.transforms import NoTransforms, make_transforms

STAMP = (10_000_000_000,)


class Tf:
    """In place of tf2_ros: what is known ends at `newest`, and more comes with each lookup."""

    def __init__(self, first: float, newest: float, step: float) -> None:
        self.first, self.newest, self.step = first, newest, step
        self.lookups = 0

        class ExtrapolationException(Exception):  # noqa: N818
            pass

        self.module = ModuleType("tf2_ros")
        self.module.ExtrapolationException = ExtrapolationException
        self.module.Buffer = lambda node: self
        self.module.TransformListener = lambda buffer, node: None

    def lookup_transform(self, target: str, source: str, moment: Any) -> TransformStamped:
        self.lookups += 1
        if not self.first <= moment.nanoseconds / 1e9 <= self.newest:
            self.newest += self.step
            raise self.module.ExtrapolationException("whatever a release says in whatever words")
        found = TransformStamped()
        found.transform.translation.z = 1.5
        return found

    def get_latest_common_time(self, target: str, source: str) -> Any:
        return SimpleNamespace(nanoseconds=round(self.newest * 1e9))


def install(monkeypatch: pytest.MonkeyPatch, tf: Tf) -> Any:
    monkeypatch.setitem(sys.modules, "tf2_ros", tf.module)
    return make_transforms(None)


def test_slashes_before_frames_are_left_out(monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[str, str]] = []
    tf = Tf(first=0.0, newest=20.0, step=0.0)
    known = tf.lookup_transform
    tf.lookup_transform = lambda to, of, at: asked.append((to, of)) or known(to, of, at)
    install(monkeypatch, tf).lookup("/base_link", "/optical", STAMP)
    assert asked == [("base_link", "optical")]
    assert NoTransforms().lookup("/base_link", "base_link", STAMP).shape == (4, 4)


def test_a_transform_that_comes_after_its_image_is_waited_for(monkeypatch: pytest.MonkeyPatch):
    tf = Tf(first=0.0, newest=9.97, step=0.01)
    pose = install(monkeypatch, tf).lookup("base_link", "optical", STAMP)
    assert pose[2, 3] == 1.5
    assert tf.lookups > 1


def test_a_moment_before_all_that_is_known_is_not(monkeypatch: pytest.MonkeyPatch):
    tf = Tf(first=11.0, newest=12.0, step=0.0)
    with pytest.raises(UserError, match="no transform from 'optical' to 'base_link': whatever"):
        install(monkeypatch, tf).lookup("base_link", "optical", STAMP)
    assert tf.lookups == 1


def test_of_several_moments_the_first_that_is_known_counts(monkeypatch: pytest.MonkeyPatch):
    """A camera whose clock is hours late: TF knows when its image came."""
    tf = Tf(first=11.0, newest=12.0, step=0.0)
    asked: list[float] = []
    known = tf.lookup_transform
    tf.lookup_transform = lambda to, of, at: asked.append(at.nanoseconds / 1e9) or known(to, of, at)
    transforms = install(monkeypatch, tf)
    transforms.lookup("base_link", "optical", (10_000_000_000, 11_500_000_000))
    assert asked == [10.0, 11.5]
    transforms.lookup("base_link", "optical", (11_200_000_000, 11_500_000_000))
    assert asked[2:] == [11.2]
    with pytest.raises(UserError, match="no transform"):
        transforms.lookup("base_link", "optical", (9_000_000_000, 10_000_000_000))


def test_a_transform_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch):
    tf = Tf(first=0.0, newest=9.0, step=0.0)
    begun = time.monotonic()
    with pytest.raises(UserError, match="no transform"):
        install(monkeypatch, tf).lookup("base_link", "optical", STAMP)
    assert time.monotonic() - begun < 10 * transforms.PATIENCE
