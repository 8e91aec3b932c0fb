#!/usr/bin/env python3
"""Stores what each part computes here as what `anomaly-detector selfcheck` compares with.

    python scripts/write_selfcheck_reference.py

To be run where the tests pass, after a shipped model or a part of the profiles has changed.
"""

from __future__ import annotations

import torch
from safetensors.torch import save_file

from anomaly_detector_ros.building import Parts
from anomaly_detector_ros.runtime.files import replace_file
from anomaly_detector_ros.runtime.resources import share_dir
from anomaly_detector_ros.selfcheck.reference import FILE, PARTS


def main() -> None:
    """Writes models/selfcheck.safetensors."""
    parts = Parts(torch.device("cpu"))
    results = {part.name: part.run(parts).contiguous() for part in PARTS if part.needs}
    replace_file(share_dir("models") / FILE, lambda partial: save_file(results, partial))
    for name, result in results.items():
        print(f"{name}: {tuple(result.shape)} {result.dtype}")


if __name__ == "__main__":
    main()
