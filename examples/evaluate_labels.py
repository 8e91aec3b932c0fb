"""Measures the detector on your own labels, and tells the threshold that suits them.

    python examples/evaluate_labels.py PICTURES MASKS

A mask is a grey PNG with the picture's name: 0 nominal, anything else an anomaly.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from anomaly_detector_ros import Detector
from anomaly_detector_ros.evaluation.metrics.pixels import PixelCounts
from anomaly_detector_ros.imaging.images import read_rgb
from anomaly_detector_ros.sources.folders import find_images


def main(arguments: list[str] | None = None) -> None:
    """Print what the heatmaps are worth."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pictures", type=Path)
    parser.add_argument("masks", type=Path)
    parser.add_argument("--profile", default="embedded")
    options = parser.parse_args(arguments)
    detector = Detector.from_profile(options.profile)
    counts, hits, marked, anomalous = PixelCounts(), 0, 0, 0
    for file in find_images(options.pictures):
        mask = options.masks / f"{file.stem}.png"
        if not mask.is_file():
            sys.exit(f"'{mask}' is missing: label the picture or take it away")
        truth = np.array(Image.open(mask).convert("L")) > 0
        found = detector.detect(read_rgb(file))
        counts.add(found.heatmap, truth, np.ones_like(truth))
        hits += int((found.mask & truth).sum())
        marked += int(found.mask.sum())
        anomalous += int(truth.sum())
    result = counts.result()
    print(f"anomalous pixels            {result.anomaly_share:.2%}")
    print(f"AUC-PR                      {result.auc_pr:.3f}")
    print(f"AUROC                       {result.auroc:.3f}")
    print(f"false positives at 95%      {result.fpr95:.3f}")
    print(f"at the threshold {detector.threshold:g}:")
    print(f"  of the mask is right      {hits / max(marked, 1):.1%}")
    print(f"  of the anomalies is found {hits / max(anomalous, 1):.1%}")
    print(f"the best threshold for pixels is {result.best_threshold:.5g}, F1 {result.best_f1:.3f}")


if __name__ == "__main__":
    main()
