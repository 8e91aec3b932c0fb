"""The shipped profiles with their real models: do they find what does not belong?"""

from __future__ import annotations

import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest

from anomaly_detector_ros.detector import Detector
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.evaluation.datasets.base import LabelledImage, open_dataset
from anomaly_detector_ros.evaluation.metrics.pixels import PixelCounts
from anomaly_detector_ros.imaging.images import read_rgb
from anomaly_detector_ros.runtime.resources import share_dir
from anomaly_detector_ros.sources.folders import find_images

pytestmark = pytest.mark.slow  # real networks on real frames


def load(profile: str) -> Detector:
    try:
        return Detector.from_profile(profile, device="cpu", offline=True)
    except UserError as error:
        pytest.skip(f"weights absent: {error}")


@pytest.fixture(scope="module")
def embedded() -> Detector:
    return load("embedded")


def scenes() -> list[LabelledImage]:
    """The demo's pictures, whose objects were drawn by code."""
    found = []
    for file in find_images(share_dir("demo") / "images"):
        truth = file.parents[1] / "truth" / f"{file.stem}.png"
        labels = cv2.imread(str(truth), cv2.IMREAD_GRAYSCALE)
        mask, valid = labels > 0, np.ones(labels.shape, bool)
        found.append(LabelledImage(file.stem, read_rgb(file), labels, mask, valid, file))
    return found


def measure(detector: Detector, images: list[LabelledImage]) -> PixelCounts:
    counts = PixelCounts()
    for truth in images:
        counts.add(detector.detect(truth.image).heatmap, truth.anomaly, truth.valid)
    return counts


def test_drawn_objects_stand_out(embedded: Detector) -> None:
    result = measure(embedded, scenes()).result()
    assert result.auc_pr > 5 * result.anomaly_share
    assert result.auroc > 0.85


def test_the_edit_keeps_the_scene_and_changes_the_object(embedded: Detector) -> None:
    changed, kept = [], []
    for truth in (scene for scene in scenes() if scene.anomaly.any()):
        edited = embedded.detect(truth.image).edited
        # Compared without the fine detail, which the edit's resolution cannot carry.
        blurred = cv2.GaussianBlur(truth.image, (0, 0), 5).astype(float)
        difference = np.abs(blurred - cv2.GaussianBlur(edited, (0, 0), 5)).mean(2)
        changed.append(difference[truth.anomaly].mean())
        kept.append(difference[~truth.anomaly].mean())
    assert np.mean(kept) < 20  # grey levels of 255
    assert np.mean(changed) > 1.5 * np.mean(kept)


def test_segments_are_averaged(embedded: Detector) -> None:
    detection = embedded.detect(scenes()[0].image)
    segments = detection.segments
    assert segments.max() > 50
    for segment in np.unique(segments[segments > 0])[:20]:
        assert np.ptp(detection.heatmap[segments == segment]) < 1e-5


@pytest.mark.parametrize("profile", ["embedded", "light"])
def test_obstacles_of_real_frames_rank_high(shared_data: Path, profile: str) -> None:
    frames = list(itertools.islice(open_dataset("ycor", shared_data / "ycor", "test"), 0, None, 4))
    result = measure(load(profile), frames).result()
    assert result.auc_pr > 5 * result.anomaly_share
    assert result.auroc > 0.75


def test_the_same_frame_gives_the_same_bits(embedded: Detector) -> None:
    image = scenes()[1].image
    first, second = embedded.detect(image), embedded.detect(image)
    assert np.array_equal(first.heatmap, second.heatmap)
    assert np.array_equal(first.edited, second.edited)
