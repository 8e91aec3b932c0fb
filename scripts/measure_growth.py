"""Prints how a frame's time grows with what a user may change, for docs/performance.md.

Each variant of the profile takes turns with the profile as it is; told is the median ratio.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

import cv2
import numpy as np
import torch

from anomaly_detector_ros.benchmarking.timing import END_TO_END, Case, measure, paired_ratio
from anomaly_detector_ros.building import Parts
from anomaly_detector_ros.detector import Detector
from anomaly_detector_ros.distances.novelty import Novelty, NoveltyDistance
from anomaly_detector_ros.imaging.images import read_rgb
from anomaly_detector_ros.profiles import load_profile
from anomaly_detector_ros.runtime.devices import choose_device
from anomaly_detector_ros.runtime.resources import share_dir

_SCALES = (0.5, 1.0, 1.5, 2.0)


def main() -> None:
    """Runs all variants of one profile."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--profile", default="light")
    options.add_argument("--device", default="auto")
    options.add_argument("--repeats", type=int, default=8)
    given = options.parse_args()
    parts = Parts(choose_device(given.device))
    picture = read_rgb(share_dir("demo") / "images" / "scene_0.jpg")
    usual = _detector(given.profile, parts, {})
    print("| changed | value | times as long |\n| --- | --- | --- |")
    for changed, value, detector, image in _variants(given.profile, parts, picture):
        cases = [Case("variant", detector, 1), Case("usual", usual, 1)]
        for index in range(given.repeats + 1):
            # One after the other: the pictures of the two differ where the camera's size does.
            for case, shown in zip(cases, (image, picture), strict=True):
                measure(
                    [case],
                    shown,
                    repeats=int(index > 0),
                    warmup=int(index == 0),
                    meters={},
                    advance=lambda done: None,
                )
        ratio = paired_ratio(*([run[END_TO_END] for run in case.runs] for case in cases))
        print(
            f"| {changed} | {value} | {ratio['median']:.2f} "
            f"({ratio['low']:.2f} to {ratio['high']:.2f}) |",
            flush=True,
        )


def _variants(
    profile: str, parts: Parts, picture: np.ndarray
) -> Iterator[tuple[str, str, Detector, np.ndarray]]:
    """What is changed, to what, the detector, and its picture."""
    usual = _detector(profile, parts, {})
    for scale in _SCALES:
        height, width = (round(side * scale) for side in picture.shape[:2])
        shown = cv2.resize(picture, (width, height), interpolation=cv2.INTER_CUBIC)
        yield "camera's picture", f"{width}x{height}", usual, shown
    height, width = load_profile(profile).parts.denoiser.size
    for scale in _SCALES[:3]:
        # Multiples of the latents' 8 pixels times the U-Net's 4.
        size = [round(side * scale / 32) * 32 for side in (height, width)]
        changed = {"denoiser": {"size": size}}
        told = f"{size[1]}x{size[0]}"
        yield "size of the edit", told, _detector(profile, parts, changed), picture
    for steps in (1, 2, 3, 4, 8):
        changed = {"sampler": {"steps": steps}}
        yield "steps", str(steps), _detector(profile, parts, changed), picture
    for edits in (1, 2, 4):
        changed = {"sampler": {"num_edits": edits}}
        yield "edits", str(edits), _detector(profile, parts, changed), picture
    for count in (1000, 4000, 16_000, 64_000):
        detector = _detector(profile, parts, {})
        vectors = torch.randn(count, detector.features.channels)
        settings = detector.profile.parts.distance
        if isinstance(settings, Novelty):
            detector.distance = NoveltyDistance(vectors, settings).to(detector.device)
            yield "vectors of the memory", str(count), detector, picture


def _detector(profile: str, parts: Parts, changed: Mapping[str, Any]) -> Detector:
    distance = parts.distance(load_profile(profile))
    return Detector.from_parts(
        load_profile(profile, overrides=changed), parts, distance=distance, calibrated=False
    )


if __name__ == "__main__":
    main()
