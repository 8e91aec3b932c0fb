"""The record of a run: ``losses.jsonl``, drawn as ``curves.png`` and shown by TensorBoard."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from anomaly_detector_ros.runtime.files import replace_file


class Journal:
    """Keeps a line for every checkpoint in ``losses.jsonl``; the rest is made from it.

    Args:
        output: the run's directory.
        step: of the checkpoint the run goes on from; what lies behind it is forgotten, as those
            steps are taken again.

    Attributes:
        has_tensorboard: whether TensorBoard is installed and its files are written.
    """

    def __init__(self, output: Path, step: int) -> None:
        self.output = output
        self.file = output / "losses.jsonl"
        self.records: list[dict[str, Any]] = []
        if self.file.exists():
            lines = self.file.read_text().splitlines(keepends=True)
            kept = [line for line in lines if _step_of(line) <= step]
            replace_file(self.file, lambda path: path.write_text("".join(kept)))
            self.records = [json.loads(line) for line in kept]
        self._writer = _open_tensorboard(output / "tensorboard", step)
        self.has_tensorboard = self._writer is not None

    def add(self, record: dict[str, Any], samples: np.ndarray) -> None:
        """A checkpoint's losses with its step, and its samples as one uint8 RGB picture."""
        with open(self.file, "a") as file:
            file.write(json.dumps(record) + "\n")
        self.records.append(record)
        folder = self.output / "samples"
        folder.mkdir(exist_ok=True)
        png = cv2.imencode(".png", cv2.cvtColor(samples, cv2.COLOR_RGB2BGR))[1].tobytes()
        replace_file(folder / f"{record['step']:07d}.png", lambda path: path.write_bytes(png))
        plot_losses(self.records, self.output / "curves.png")
        if self._writer is not None:
            for name, value in record.items():
                if name != "step":
                    shown = name.replace("validation_", "validation/")
                    self._writer.add_scalar(shown, value, record["step"])
            self._writer.add_image("samples", samples, record["step"], dataformats="HWC")
            self._writer.flush()

    def close(self) -> None:
        """Ends the TensorBoard file; nothing can be added afterwards."""
        if self._writer is not None:
            self._writer.close()


def plot_losses(records: list[dict[str, Any]], file: Path) -> None:
    """Writes a PNG: training and validation loss over steps, the loss on a logarithmic axis.

    Raises:
        OSError: the file cannot be written.
    """
    # Not pyplot, which would look for a display and keep every figure.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    names = [name for name in records[-1] if name == "loss" or name.startswith("validation_")]
    for name in names:
        points = [(record["step"], record[name]) for record in records if name in record]
        label = name.replace("validation_", "validation, noise level ").replace("loss", "training")
        # A single checkpoint is a point that a line would not show.
        axes.plot(*zip(*points, strict=True), marker="o" if len(points) < 3 else "", label=label)
    axes.set(xlabel="Step", ylabel="Loss", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    replace_file(file, lambda path: figure.savefig(path, format="png", dpi=120))


def _open_tensorboard(directory: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # an optional extra
        return None
    # Checkpoints that are made again replace the first ones in the display.
    return SummaryWriter(str(directory), purge_step=step + 1)


def _step_of(line: str) -> float:
    """The step of a line of losses; infinite where the line was cut off."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
