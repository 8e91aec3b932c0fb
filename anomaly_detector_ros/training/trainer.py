"""Training of one stage on nominal images: steps, averaged weights, checkpoints and their record.

Batches, noise and timesteps of a step depend on (seed, step, process) alone, so a run that was
killed and resumed is the run that was not killed.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.runtime.devices import choose_device, choose_dtype
from anomaly_detector_ros.runtime.files import replace_file
from anomaly_detector_ros.training.autoencoding import AutoencoderStage
from anomaly_detector_ros.training.config import TrainingConfig
from anomaly_detector_ros.training.dataset import TrainingImages
from anomaly_detector_ros.training.denoising import LatentStage, PixelStage
from anomaly_detector_ros.training.journal import Journal
from anomaly_detector_ros.training.stage import Stage

_STAGES: dict[str, type[Stage]] = {
    "pixels": PixelStage,
    "autoencoder": AutoencoderStage,
    "denoiser": LatentStage,
}

MIN_IMAGES = 20
"""Fewer training images are refused: a network knows them by heart in no time."""

BYTES_PER_PARAMETER = 2
"""Half precision is enough to run a model; the checkpoint keeps the full one."""

# Weights, their moving average and the two moments of AdamW, float32.
_CHECKPOINT_BYTES_PER_PARAMETER = 16


class Trainer:
    """Trains one model into one output directory.

    Under `accelerate launch` every process trains on batches of its own and the main one writes;
    ``output`` must be the same directory for all of them.

    Args:
        config: see `TrainingConfig`.
        images: training images at ``config.size`` and ``config.min_crop``.
        output: directory for the model, ``checkpoint.pt``, ``losses.jsonl``, ``curves.png``,
            ``samples/``, on request ``snapshots/`` and, where TensorBoard is installed,
            ``tensorboard/``.
        validation: nominal images held out, to measure on; optional.
        on_step: called after each step with (step, loss).
        device: auto, cpu, cuda or cuda:N; several processes share the GPUs out with auto.

    Attributes:
        step: optimiser steps done.
        stage: what is trained.
        images_seen: training images in these steps, by all processes together.
        on_save: called by the main process with each line of losses.

    Raises:
        UserError: too few images; no such device; ``output`` holds another run or has no room;
            ``config.init`` is no such model.
    """

    def __init__(
        self,
        config: TrainingConfig,
        images: TrainingImages,
        output: Path,
        validation: TrainingImages | None = None,
        on_step: Callable[[int, float], None] | None = None,
        device: str = "auto",
    ) -> None:
        if len(images) < MIN_IMAGES:
            raise UserError(
                f"{len(images)} training images are too few: give {MIN_IMAGES} at least, "
                "some hundreds for a useful model"
            )
        self.config, self.output, self.on_step = config, output, on_step
        self.accelerator, self.dtype = _accelerator(device)
        torch.manual_seed(config.seed)
        self.stage = _STAGES[config.stage](config, images, validation, self.accelerator, self.dtype)
        network = self.stage.network
        self.parameters = sum(p.numel() for p in network.parameters())
        self._check_output()
        self.ema = EMAModel(
            network.parameters(), decay=config.ema_decay, use_ema_warmup=True, foreach=True
        )
        self.ema.to(self.accelerator.device)
        network.to(memory_format=torch.channels_last)
        self.network, self.optimizer = self.accelerator.prepare(network, self.stage.optimizer)
        self.step = self.images_seen = 0
        self.on_save: Callable[[dict[str, Any]], None] | None = None
        self._resume()
        self.journal: Journal | None = None
        if self.accelerator.is_main_process:
            self._write_config()
            self.journal = Journal(output, self.step)

    def _check_output(self) -> None:
        config_file = self.output / "training.json"
        if config_file.exists():
            # A setting that is not recorded is younger than the run and had its default value.
            recorded = {**asdict(TrainingConfig()), **json.loads(config_file.read_text())}
            if _as_json(recorded) != _as_json(asdict(self.config)):
                raise UserError(
                    f"'{self.output}' holds a run with other settings: "
                    "choose another --output, or repeat the settings of its training.json"
                )
        elif self.output.exists() and any(self.output.iterdir()):
            raise UserError(f"'{self.output}' is not empty and not a run: choose another --output")
        # The checkpoint, the next one beside it, and the rest.
        self._check_room("checkpoints", 3 * _CHECKPOINT_BYTES_PER_PARAMETER)
        self.accelerator.wait_for_everyone()  # all have looked before one writes

    def _check_room(self, what: str, bytes_per_parameter: int) -> None:
        needed = bytes_per_parameter * self.parameters
        there = next(p for p in (self.output, *self.output.absolute().parents) if p.exists())
        free = shutil.disk_usage(there).free
        if free < needed:
            raise UserError(
                f"no room for {what} in '{self.output}': {needed / 1e6:.0f} MB needed, "
                f"{free / 1e6:.0f} MB free: make room or choose another --output"
            )

    def _resume(self) -> None:
        checkpoint = self.output / "checkpoint.pt"
        if checkpoint.exists():
            state = torch.load(checkpoint, map_location="cpu", weights_only=True)
            # Checkpoints of version 0.1.0 know of one stage, and call its network by its kind.
            self.stage.network.load_state_dict(state.get("network", state.get("unet")))
            self.stage.load_state(state.get("stage", {}))
            self.optimizer.load_state_dict(state["optimizer"])
            self.ema.load_state_dict(state["ema"])
            self.ema.to(self.accelerator.device)
            self.step = state["step"]
            # A checkpoint that does not say is older than the count.
            self.images_seen = state.get("images_seen", self.step * self.images_per_step)

    def _write_config(self) -> None:
        text = _as_json(asdict(self.config)) + "\n"
        self.output.mkdir(parents=True, exist_ok=True)
        replace_file(self.output / "training.json", lambda path: path.write_text(text))

    @property
    def images_per_step(self) -> int:
        """Of all processes together."""
        return self.config.batch_size * int(self.accelerator.num_processes)

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then a half cosine down to a tenth of the peak."""
        config = self.config
        if step < config.warmup_steps:
            return config.learning_rate * (step + 1) / config.warmup_steps
        progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
        return config.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))

    def train_step(self) -> float:
        """One optimiser step on an augmented batch; returns the loss of this process' batch.

        Raises:
            UserError: the loss is no number any more.
        """
        of_this_step = [self.config.seed, self.step, self.accelerator.process_index]
        rng = np.random.default_rng(of_this_step)
        torch.manual_seed(int(np.random.SeedSequence(of_this_step).generate_state(1)[0]))
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        loss = self.stage.loss(self.network, rng, self.step / self.config.steps)
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.stage.after_step()
        self.ema.step(self.network.parameters())
        self.step += 1
        self.images_seen += self.images_per_step
        value = float(loss.detach())
        if not math.isfinite(value):
            raise UserError(
                f"training diverged at step {self.step}: "
                "choose another --output and a lower --learning-rate"
            )
        return value

    def run(
        self,
        save_every: int = 500,
        snapshot_every: int | None = None,
        max_seconds: float = math.inf,
    ) -> None:
        """Trains up to ``config.steps``, saving every ``save_every`` steps and at the end.

        Args:
            snapshot_every: steps between models that are kept; None to keep the last one alone.
            max_seconds: after these it saves and stops, as if it were interrupted.

        Raises:
            UserError: no room for the snapshots; a time for several processes, whose clocks differ;
                see also `train_step`.
        """
        if max_seconds < math.inf and self.accelerator.num_processes > 1:
            raise UserError("several processes cannot be timed: leave --max-seconds out")
        if snapshot_every:
            left = self.config.steps // snapshot_every - self.step // snapshot_every
            self._check_room("snapshots", BYTES_PER_PARAMETER * left)
        recent: list[float] = []
        start = time.monotonic()
        end, stopped = start + max_seconds, False
        while self.step < self.config.steps and not stopped:
            recent.append(self.train_step())
            if self.on_step:
                self.on_step(self.step, recent[-1])
            if snapshot_every and self.step % snapshot_every == 0:
                self._snapshot()
            stopped = time.monotonic() >= end
            if self.step % save_every == 0 or self.step == self.config.steps or stopped:
                rate = len(recent) * self.images_per_step / (time.monotonic() - start)
                self.save(float(np.mean(recent)), rate)
                recent.clear()
                start = time.monotonic()
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        if self.journal:
            self.journal.close()

    def save(self, loss: float, images_per_second: float) -> None:
        """Writes model, samples, a line of losses and then the checkpoint they belong to."""
        if self.journal is None:
            return
        record = {
            "step": self.step,
            "images": self.images_seen,
            "images_per_second": round(images_per_second, 2),
            "loss": loss,
        }
        with self._averaged():
            self.stage.save(self.output / "model")
            measured, samples = self.stage.measure()
        record |= measured
        self.journal.add(record, samples)
        state = {
            "step": self.step,
            "images_seen": self.images_seen,
            "network": self.stage.network.state_dict(),
            "stage": self.stage.state(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict(),
        }
        replace_file(self.output / "checkpoint.pt", lambda path: torch.save(state, path))
        if self.on_save:
            self.on_save(record)

    def _snapshot(self) -> None:
        """Keeps the averaged weights; steps that are taken again write the same ones again."""
        if self.journal is None:
            return
        directory = snapshot_directory(self.output, self.step)
        directory.parent.mkdir(exist_ok=True)
        with self._averaged():
            self.stage.save(directory, {"step": self.step, "images": self.images_seen})

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Gives the network its averaged weights for a while."""
        network = self.stage.network
        buffers = [buffer.clone() for buffer in network.buffers()]
        self.ema.store(network.parameters())
        self.ema.copy_to(network.parameters())
        network.eval()
        self.stage.settle()
        try:
            yield
        finally:
            network.train()
            self.ema.restore(network.parameters())
            for buffer, old in zip(network.buffers(), buffers, strict=True):
                buffer.copy_(old)


def _accelerator(device: str) -> tuple[Accelerator, torch.dtype]:
    """The processes of this run on their devices, and the precision these are good at."""
    chosen = choose_device(device)
    if chosen.index is not None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError(
                f"several processes cannot all use '{device}': "
                "leave --device out, accelerate shares the GPUs out"
            )
        torch.cuda.set_device(chosen)
    dtype = choose_dtype("auto", chosen)
    precision = "bf16" if dtype == torch.bfloat16 else "no"
    return Accelerator(mixed_precision=precision, cpu=chosen.type == "cpu"), dtype


def _as_json(settings: dict[str, object]) -> str:
    return json.dumps(settings, indent=2)


def snapshot_directory(output: Path, step: int) -> Path:
    """Where a run's snapshot after so many steps lies: they sort by step."""
    return output / "snapshots" / f"step_{step:07d}"
