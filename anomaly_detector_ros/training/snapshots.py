"""Models on disk as diffusers reads them: a run's newest one, and snapshots along the way."""

from __future__ import annotations

import copy
import json
from pathlib import Path

from diffusers import DDPMPipeline, UNet2DModel

from anomaly_detector_ros.runtime.files import replace_directory
from anomaly_detector_ros.synthesis.schedule import Schedule

BYTES_PER_PARAMETER = 2
"""Half precision is enough to run a model; the checkpoint keeps the full one."""


def save_model(
    unet: UNet2DModel, schedule: Schedule, directory: Path, facts: dict[str, object] | None = None
) -> None:
    """Writes a `DDPMPipeline`, which appears under its name only when it is whole.

    Args:
        directory: replaced if it exists.
        facts: what ``snapshot.json`` says of it; None for no such file.

    Raises:
        OSError: it cannot be written.
    """

    def write(partial: Path) -> None:
        DDPMPipeline(copy.deepcopy(unet).half(), schedule.to_diffusers()).save_pretrained(partial)
        if facts is not None:
            (partial / "snapshot.json").write_text(json.dumps(facts) + "\n")

    replace_directory(directory, write)


def snapshot_directory(output: Path, step: int) -> Path:
    """Where a run's snapshot after so many steps lies: they sort by step."""
    return output / "snapshots" / f"step_{step:07d}"
