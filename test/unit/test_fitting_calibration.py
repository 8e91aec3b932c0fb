"""Fitting a calibration, and detecting with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from support.calibration_data import draw_pictures

from anomaly_detector_ros.building import Parts
from anomaly_detector_ros.calibration.distribution import ScorePool
from anomaly_detector_ros.detector import Detector
from anomaly_detector_ros.distances.novelty import Novelty
from anomaly_detector_ros.distances.whitened import NominalDifferences, Whitened, WhitenedDistance
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.evaluation.cache import Cache
from anomaly_detector_ros.evaluation.cached import CachedParts
from anomaly_detector_ros.fitting import (
    NominalFiles,
    fit_calibration,
    fit_camera,
    measure,
    split_files,
)
from anomaly_detector_ros.profiles import load_profile
from anomaly_detector_ros.ros.diagnostics import node_status


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return draw_pictures(tmp_path_factory.mktemp("nominal") / "images", 40, 0)


@pytest.fixture(scope="module")
def parts() -> Parts:
    return Parts(torch.device("cpu"), offline=True)


def read(file: Path) -> np.ndarray:
    return cv2.imread(str(file))[..., ::-1]


DISTANCES = [{"name": "cosine"}, {"name": "whitened"}, {"name": "whitened", "shrinkage": 0.2}]


@pytest.mark.parametrize("distance", DISTANCES, ids=str)
def test_false_positive_rates_are_those_asked_for(
    light_profile: str, pictures: list[Path], parts: Parts, tmp_path: Path, distance: dict
):
    overrides = {"distance": distance, "sampler": {"num_edits": 2}}
    profile = load_profile(light_profile, overrides=overrides)
    seen = []
    fitted, held_out = split_files(pictures, holdout=0.5, count=None, seed=0)
    calibration = fit_calibration(
        profile, parts, fitted, progress=lambda done, of, doing: seen.append((doing, done, of))
    )
    passes = ("differences", "scores") if distance["name"] == "whitened" else ("scores",)
    assert seen == [(doing, i, 20) for doing in passes for i in range(1, 21)]
    file = tmp_path / "c.safetensors"
    calibration.save(file)
    detector = Detector.from_parts(replace(profile, calibration={"file": str(file)}), parts)
    rates = {rate.asked: rate for rate in measure(detector, held_out)}
    assert rates[0.05].measured == pytest.approx(0.05, abs=0.025)
    assert rates[0.01].measured == pytest.approx(0.01, abs=0.008)
    for rate in rates.values():
        assert rate.low <= rate.measured <= rate.high
    if distance["name"] == "cosine":  # on the images it was fitted on there is no doubt
        for rate in measure(detector, fitted):
            assert rate.measured == pytest.approx(rate.asked, rel=0.1)


def test_whitened_scores_come_from_images_that_the_whitening_has_not_seen(
    light_profile: str, pictures: list[Path], parts: Parts
):
    profile = load_profile(light_profile, overrides={"distance": {"name": "whitened"}})
    files = pictures[:3]
    calibration = fit_calibration(profile, parts, files)

    def fitted_on(indices) -> WhitenedDistance:
        learner = NominalDifferences()
        detector = Detector.from_parts(profile, parts, distance=learner, calibrated=False)
        for index in indices:
            original, edits = detector.synthesize([read(files[index])])
            detector.compare(read(files[index]), original, edits[0])
        return Whitened().fit([learner.tensors()])

    pool = ScorePool()
    for index in range(3):
        distance = fitted_on({0, 1, 2} - {index})
        detector = Detector.from_parts(profile, parts, distance=distance, calibrated=False)
        original, edits = detector.synthesize([read(files[index])])
        pool.add(detector.compare(read(files[index]), original, edits[0]), 0.0)
    np.testing.assert_allclose(
        calibration.nominal().distribution.scores, pool.distribution().scores, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(calibration.distance["factor"], fitted_on(range(3)).factor)
    with pytest.raises(UserError, match="at least 2 nominal images"):
        fit_calibration(profile, parts, files[:1])


def test_novelty_is_that_of_a_memory_without_the_image_itself(
    light_profile: str, pictures: list[Path], parts: Parts
):
    plain = {
        "memory": 5000,
        "candidates": 1,
        "lights": 0,
        "neighbours": 1,
        "edit_weight": 0.5,
        "frame_level": 0.0,
    }
    profile = load_profile(light_profile, overrides={"distance": {"name": "novelty", **plain}})
    files = pictures[:3]
    alone = fit_calibration(profile, parts, files)
    assert len(alone.distance["memory"]) == 3 * 32 * 48  # every pixel: there are fewer than 5000

    def scores(index: int, memory: list[Path], memory_weight: float = 1.0) -> np.ndarray:
        nominal = NominalFiles(profile, parts, memory, 0, lambda done, total, doing: None)
        settings = Novelty(**plain, memory_weight=memory_weight)
        distance = settings.fit([settings.collect(nominal, 1)])
        detector = Detector.from_parts(profile, parts, distance=distance, calibrated=False)
        image = read(files[index])
        original, edits = detector.synthesize([image])
        return detector.compare(image, original, edits[0])

    # To a memory that holds the picture nothing in it is new: what is left comes of the edit.
    known = scores(0, files)
    np.testing.assert_allclose(known, scores(0, files, memory_weight=0), atol=1e-3)
    assert (scores(0, files[1:]) - known).max() > 1e-3
    assert alone.nominal().distribution.scores[-1] > known.max()
    given = fit_calibration(profile, parts, files, memory=pictures[3:6])
    pool = ScorePool()
    for index in range(3):
        pool.add(scores(index, pictures[3:6]), 0.0)
    np.testing.assert_allclose(
        given.nominal().distribution.scores, pool.distribution().scores, rtol=1e-3, atol=1e-5
    )
    with pytest.raises(UserError, match="at least 2 nominal images"):
        fit_calibration(profile, parts, files[:1])


def test_the_level_is_taken_off_alike_when_fitted_and_when_used(
    light_profile: str, pictures: list[Path], parts: Parts, tmp_path: Path
):
    novelty = {"name": "novelty", "memory": 500, "frame_level": 0.5}
    profile = load_profile(light_profile, overrides={"distance": novelty})
    calibration = fit_calibration(profile, parts, pictures[:4], memory=pictures[4:8])
    assert len(calibration.distance["memory"]) == 500
    calibration.save(tmp_path / "c.safetensors")
    calibrated = replace(profile, calibration={"file": str(tmp_path / "c.safetensors")})
    detector = Detector.from_parts(calibrated, parts)
    pool = ScorePool()
    for file in pictures[:4]:
        image = read(file)
        original, edits = detector.synthesize([image])
        raw = detector.compare(image, original, edits[0])
        found = detector.detect(image)
        pool.add(raw - np.float32(0.5 * np.median(raw)), 0.0)
        np.testing.assert_allclose(found.scores, raw - 0.5 * np.median(raw), atol=1e-5)
        assert found.level == pytest.approx(np.median(raw))
    np.testing.assert_allclose(
        calibration.nominal().distribution.scores, pool.distribution().scores, rtol=1e-4, atol=1e-5
    )
    # In a stream the level of the last frames counts.
    in_stream = fit_calibration(profile, parts, pictures[:4], memory=pictures[4:8], stream=True)
    streamed, before = ScorePool(), []
    for file in pictures[:4]:
        found = detector.detect(read(file), before=before)
        streamed.add(found.scores, found.level)
        before.append(found.level)
    of_camera = fit_camera(detector, pictures[:4], stream=True)
    for fitted in (in_stream.nominal(), of_camera):
        np.testing.assert_allclose(
            fitted.distribution.scores, streamed.distribution().scores, rtol=1e-4, atol=1e-5
        )
        assert fitted.distribution.scores[0] != calibration.nominal().distribution.scores[0]
    level = float(np.median(raw)) + 0.1
    later = detector.detect(image, before=[level] * 3)
    np.testing.assert_allclose(later.scores, raw - 0.5 * level, atol=1e-5)


def test_a_memory_of_other_lights_knows_what_it_did_not_see(
    light_profile: str, pictures: list[Path], parts: Parts
):
    def memory(lights: int) -> torch.Tensor:
        images = NominalFiles(profile, parts, pictures[:3], 0, lambda done, total, doing: None)
        return Novelty(memory=20_000, lights=lights).collect(images, 1)["memory"]

    profile = load_profile(light_profile)
    own, lit = memory(0), memory(2)
    assert len(lit) == 3 * len(own)
    assert torch.equal(memory(2), lit)
    assert ((own[:50, None] - lit).abs().amax(2).amin(1) < 1e-4).all()


def test_a_calibrated_detector_shows_shares_of_nominal_pixels(
    light_profile: str, pictures: list[Path], parts: Parts, tmp_path: Path
):
    plain = load_profile(light_profile)
    calibration = fit_calibration(plain, parts, pictures[:10])
    calibration.save(tmp_path / "c.safetensors")
    profile = load_profile(
        light_profile, overrides={"calibration": {"file": str(tmp_path / "c.safetensors")}}
    )
    detector = Detector.from_parts(profile, parts)
    assert detector.calibrated
    image = read(pictures[30])
    original, edits = detector.synthesize([image])
    raw = detector.compare(image, original, edits[0])
    found = detector.detect(image)
    assert found.calibrated
    assert found.heatmap.dtype == np.float32
    np.testing.assert_array_equal(found.heatmap, calibration.heatmap(raw))
    np.testing.assert_array_equal(found.mask, found.heatmap >= np.float32(profile.threshold))
    status = node_status("active", True, "", detector, 0.3)
    assert status.message == "active"
    assert status.values["calibration"] == f"calibrated ({tmp_path / 'c.safetensors'})"
    uncalibrated = Detector.from_parts(plain, parts)
    assert not uncalibrated.calibrated
    np.testing.assert_array_equal(uncalibrated.detect(image).heatmap, raw.clip(0, 1))
    status = node_status("active", True, "", uncalibrated, 0.3)
    assert status.values["calibration"] == "uncalibrated"
    assert "uncalibrated" in status.message


def test_uncertainty_is_the_spread_of_the_edits(light_profile: str, pictures, parts: Parts):
    image = read(pictures[0])
    single = Detector.from_parts(load_profile(light_profile), parts).detect(image)
    assert single.uncertainty.dtype == np.float32
    assert single.uncertainty.shape == image.shape[:2]
    assert not single.uncertainty.any()
    profile = load_profile(light_profile, overrides={"sampler": {"num_edits": 3}})
    detector = Detector.from_parts(profile, parts)
    original, edits = detector.synthesize([image])
    each = [detector.compare(image, original, edit[None]) for edit in edits[0]]
    found = detector.detect(image)
    np.testing.assert_allclose(found.uncertainty, np.std(each, axis=0), atol=1e-6)
    np.testing.assert_allclose(found.heatmap, np.mean(each, axis=0).clip(0, 1), atol=1e-6)
    assert found.uncertainty.max() > 0


def test_images_are_split_at_random_and_all_used():
    files = [Path(str(i)) for i in range(20)]
    fitted, held_out = split_files(files, holdout=0.25, count=None, seed=1)
    assert (len(fitted), len(held_out)) == (15, 5)
    assert sorted(map(int, map(str, fitted + held_out))) == list(range(20))
    assert split_files(files, holdout=0.25, count=None, seed=1) == (fitted, held_out)
    assert split_files(files, holdout=0.25, count=None, seed=2) != (fitted, held_out)
    fitted, held_out = split_files(files, holdout=0.5, count=8, seed=0)
    assert (len(fitted), len(held_out)) == (4, 4)
    assert split_files(files[:1], holdout=0, count=None, seed=0) == (files[:1], [])
    for few, holdout in ((1, 0.5), (0, 0.0), (3, 0.1)):
        with pytest.raises(UserError, match="too few"):
            split_files(files[:few], holdout=holdout, count=None, seed=0)


def test_evaluations_tell_calibrations_apart(
    light_profile: str, pictures: list[Path], tmp_path: Path
):
    parts = CachedParts(Cache(tmp_path / "cache"), torch.device("cpu"), offline=True)
    file = tmp_path / "c.safetensors"
    plain = load_profile(light_profile)
    overrides = {"distance": {"name": "whitened"}, "calibration": {"file": str(file)}}
    profile = load_profile(light_profile, overrides=overrides)
    keys = []
    for count in (3, 4):
        fit_calibration(profile, parts, pictures[:count]).save(file)
        keys.append(parts.profile_key(profile))
    assert keys[0] != keys[1]
    assert parts.profile_key(profile) == keys[1]
    # Raw cosine distances are the same whatever is known of nominal ones.
    calibrated = replace(plain, calibration={"file": str(file)})
    assert parts.profile_key(calibrated) == parts.profile_key(plain)
