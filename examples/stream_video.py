"""Watches a video or a camera, and averages the heatmap over time.

python examples/stream_video.py drive.mp4 --output frames
python examples/stream_video.py 0 --show     # the first camera
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import cv2

from anomaly_detector_ros import Detector
from anomaly_detector_ros.calibration.level import StreamLevels
from anomaly_detector_ros.imaging.rendering import overlay
from anomaly_detector_ros.imaging.temporal import TemporalFilter


def main(arguments: list[str] | None = None) -> None:
    """Show or write an overlay for each frame."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("video", help="a file, scene_%%d.jpg, or a camera's number")
    parser.add_argument("--output", type=Path, help="folder for the overlays")
    parser.add_argument("--show", action="store_true", help="open a window; q ends")
    parser.add_argument("--smooth", type=float, default=0.5, help="time constant, seconds; 0: off")
    parser.add_argument("--profile", default="embedded")
    options = parser.parse_args(arguments)
    camera = options.video.isdigit()
    video = cv2.VideoCapture(int(options.video) if camera else options.video)
    if not video.isOpened():
        sys.exit(f"cannot open '{options.video}'")
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
    detector = Detector.from_profile(options.profile)
    levels, smooth = StreamLevels(), TemporalFilter()
    rate = video.get(cv2.CAP_PROP_FPS) or 25.0
    number = 0
    while True:
        more, bgr = video.read()
        if not more:
            break
        number += 1
        # Stamps must rise: the filter weighs a frame by the time since the one before.
        stamp = cv2.getTickCount() * 10**9 // int(cv2.getTickFrequency()) if camera else 0
        stamp = stamp or int(number / rate * 1e9)
        image = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
        # The levels of the last frames keep the score steady when the light changes.
        found = detector.detect(image, before=levels.before(stamp))
        levels.add(found.level, stamp)
        heatmap = smooth.update(found.heatmap, stamp, options.smooth)
        found = replace(found, heatmap=heatmap, mask=heatmap >= detector.threshold)
        print(f"frame {number}: {found.mask.mean():.1%} of the image is an anomaly")
        picture = cv2.cvtColor(overlay(image, found), cv2.COLOR_RGB2BGR)
        if options.output:
            cv2.imwrite(str(options.output / f"{number:06d}.jpg"), picture)
        if options.show:
            cv2.imshow("anomalies", picture)
            if cv2.waitKey(1) == ord("q"):
                break


if __name__ == "__main__":
    main()
