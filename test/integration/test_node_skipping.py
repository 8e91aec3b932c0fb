"""The node with ``skip_similar``: images that hardly differ go through the models once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

from std_srvs.srv import Trigger
from support.node_client import image, picture
from support.ros_graph import Graph
from support.waiting import wait_until


@pytest.fixture(scope="module")
def live(light_profile: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Graph]:
    """An active node that takes images for similar if no cell changes by more than 4."""
    graph = Graph(
        "skipping",
        profile=light_profile,
        device="cpu",
        max_input_age=0.0,
        skip_similar=4.0,
        calibration_frames=2,
        calibration_output=str(tmp_path_factory.mktemp("live") / "live.safetensors"),
    )
    wait_until(lambda: graph.state() == "active", "activation", timeout=120.0)
    yield graph
    graph.close()


@pytest.fixture
def looked_at(live: Graph, monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The images that the models see from now on, which they do as always."""
    models = live.node.session._detectors
    seen: list[np.ndarray] = []
    detect = models.detect

    def watched(cameras: list[str], images: list[np.ndarray], *others: object) -> list:
        seen.extend(images)
        return detect(cameras, images, *others)

    monkeypatch.setattr(models, "detect", watched)
    return seen


def send_and_wait(live: Graph, heatmaps: list, pixels: np.ndarray) -> np.ndarray:
    """The heatmap of an image."""
    before = len(heatmaps)
    sent = live.send(image(pixels))
    wait_until(lambda: len(heatmaps) > before, "a heatmap")
    stamp = heatmaps[-1].header.stamp
    assert (stamp.sec, stamp.nanosec) == sent
    return np.frombuffer(heatmaps[-1].data, np.float32)


def test_similar_images_take_over_what_was_found(live: Graph, looked_at: list[np.ndarray]):
    heatmaps = live.listen_output("heatmap")
    before = live.counts()
    first = send_and_wait(live, heatmaps, picture())
    similar = send_and_wait(live, heatmaps, picture() + np.uint8(2))
    assert len(looked_at) == 1
    assert np.array_equal(similar, first)
    other = send_and_wait(live, heatmaps, picture()[::-1].copy())
    assert len(looked_at) == 2
    assert not np.array_equal(other, first)
    counts = live.counts()
    assert counts["processed"] - before["processed"] == 3
    assert counts["received"] == counts["processed"] + sum(
        number for fate, number in counts.items() if fate not in ("received", "processed")
    )
    assert live.set_parameters(skip_similar=0.0).successful
    send_and_wait(live, heatmaps, picture()[::-1].copy())
    assert len(looked_at) == 3
    assert live.set_parameters(skip_similar=4.0).successful


def test_masks_stay_while_the_models_are_loaded_anew(live: Graph):
    masks, heatmaps = live.listen_output("mask"), live.listen_output("heatmap")
    first = send_and_wait(live, heatmaps, picture())
    live.node.session._renew()  # as the watchdog does; an image that takes over loads nothing
    assert np.array_equal(send_and_wait(live, heatmaps, picture() + np.uint8(1)), first)
    wait_until(lambda: len(masks) == 2, "both masks")
    assert masks[1].data == masks[0].data
    assert set(masks[1].data) == {0, 255}
    send_and_wait(live, heatmaps, picture()[::-1].copy())  # for the next test to begin anew


def test_an_image_that_takes_over_is_no_nominal_frame(live: Graph, looked_at: list[np.ndarray]):
    heatmaps = live.listen_output("heatmap")
    assert live.call(Trigger, "calibrate", Trigger.Request()).success
    raw = send_and_wait(live, heatmaps, picture())
    looked_at.clear()
    for _ in range(3):
        send_and_wait(live, heatmaps, picture())
    assert not looked_at
    live.diagnostics("camera", lambda found: "camera 1 of 2" in found.get("calibrating", ""))
    send_and_wait(live, heatmaps, picture()[::-1].copy())
    live.diagnostics("node", lambda found: found["message"] == "active")
    # What was found before is on the old scale, so it is not taken over any more.
    looked_at.clear()
    calibrated = send_and_wait(live, heatmaps, picture()[::-1].copy())
    assert len(looked_at) == 1
    assert not np.array_equal(calibrated, raw)
