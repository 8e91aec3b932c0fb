"""Finds the anomalies of all pictures in a folder, and lists the pictures by score.

python examples/detect_folder.py PICTURES --output overlays
"""

from __future__ import annotations

import argparse
from pathlib import Path

from anomaly_detector_ros import Detector
from anomaly_detector_ros.imaging.images import read_rgb
from anomaly_detector_ros.imaging.rendering import encode_jpeg, overlay
from anomaly_detector_ros.sources.folders import find_images


def main(arguments: list[str] | None = None) -> None:
    """Write an overlay for each picture, and print the scores."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path, default=Path("overlays"))
    parser.add_argument("--profile", default="embedded")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    detector = Detector.from_profile(options.profile)
    scores = {}
    for file in find_images(options.folder):
        image = read_rgb(file)  # uint8 RGB (H, W, 3), turned upright
        found = detector.detect(image)
        scores[file.name] = found.score
        (options.output / f"{file.stem}.jpg").write_bytes(encode_jpeg(overlay(image, found)))
    for name, score in sorted(scores.items(), key=lambda each: -each[1]):
        print(f"{score:.4f}  {name}")


if __name__ == "__main__":
    main()
