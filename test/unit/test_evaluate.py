import cv2
import numpy as np
import pytest

from anomaly_detector_ros.detector import Detector
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.evaluation.datasets import load_folder, load_ycor
from anomaly_detector_ros.evaluation.evaluate import evaluate


@pytest.fixture
def folder(tmp_path):
    """Two scenes, one with a red square that the mask marks, both with a void bottom row."""
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    rng = np.random.default_rng(0)
    for i in range(2):
        image = np.full((60, 90, 3), (60, 110, 80), np.uint8)
        image = cv2.add(image, rng.integers(0, 20, image.shape, np.uint8))
        mask = np.zeros((60, 90), np.uint8)
        if i == 0:
            image[20:45, 30:60] = (40, 40, 230)
            mask[20:45, 30:60] = 1
        mask[-1] = 255
        cv2.imwrite(str(tmp_path / "images" / f"{i}.png"), image)
        cv2.imwrite(str(tmp_path / "masks" / f"{i}.png"), mask)
    return tmp_path


def test_rows_of_the_table(folder, light_profile):
    detector = Detector.from_profile(light_profile, offline=True)
    seen = []
    rows = {row.name: row for row in evaluate(detector, load_folder(folder), progress=seen.append)}
    assert seen == [1, 2]
    share = rows["random"].pixels.anomaly_share
    assert share == pytest.approx(25 * 30 / (2 * 59 * 90))
    assert rows["random"].pixels.auc_pr == pytest.approx(share, abs=0.02)
    # Only the square changes in a perfect edit, and RGB features see that it does.
    assert rows["perfect edit"].pixels.auc_pr > 0.9
    assert rows["perfect edit"].f1_star > 0.8
    assert 0 < rows["detector"].pixels.auc_pr < rows["perfect edit"].pixels.auc_pr


def test_folder_and_ycor_read_the_same_scene(folder):
    (folder / "labels").mkdir()
    for i in range(2):
        mask = cv2.imread(str(folder / "masks" / f"{i}.png"), cv2.IMREAD_UNCHANGED)
        label = np.where(mask == 255, 0, np.where(mask == 1, 8, 3)).astype(np.uint8)
        cv2.imwrite(str(folder / "labels" / f"{i}.png"), label)
    for ours, theirs in zip(load_folder(folder), load_ycor(folder), strict=True):
        assert np.array_equal(ours.anomaly, theirs.anomaly)
        assert np.array_equal(ours.valid, theirs.valid)
        assert np.array_equal(ours.image, theirs.image)


def test_missing_and_unfit_labels_are_named(folder):
    mask = folder / "masks" / "1.png"
    cv2.imwrite(str(mask), np.zeros((10, 10), np.uint8))
    with pytest.raises(UserError, match=r"masks/1.png' is \(10, 10\), its image \(60, 90\)"):
        list(load_folder(folder))
    mask.unlink()
    with pytest.raises(UserError, match=r"no readable label '.*masks/1.png'"):
        list(load_folder(folder))
    with pytest.raises(UserError, match="not a folder"):
        list(load_ycor(folder / "absent"))


def test_every_labelled_frame_of_the_real_test_set_loads(shared_data):
    frames = list(load_ycor(shared_data / "ycor" / "test"))
    assert len(frames) == 34
    share = sum(f.anomaly.sum() for f in frames) / sum(f.valid.sum() for f in frames)
    assert share == pytest.approx(0.016, abs=0.001)
