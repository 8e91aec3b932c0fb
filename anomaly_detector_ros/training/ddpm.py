"""Training of a denoising diffusion model (Ho et al. 2020) on nominal images.

The model directory is a diffusers `DDPMPipeline`: ``unet/``, ``scheduler/``, ``model_index.json``.
Batches, noise and timesteps of a step depend on (seed, step) alone, so a run that was killed and
resumed is the run that was not killed.
"""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from accelerate import Accelerator
from diffusers import DDPMPipeline, UNet2DModel
from diffusers.training_utils import EMAModel

from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.files import replace_file
from anomaly_detector_ros.synthesis.denoisers import DiffusersDenoiser
from anomaly_detector_ros.synthesis.samplers import few_step
from anomaly_detector_ros.synthesis.schedule import Schedule
from anomaly_detector_ros.synthesis.similarity import GaussianSimilarity
from anomaly_detector_ros.tensors import to_pictures, to_tensor
from anomaly_detector_ros.training.dataset import TrainingImages

SIZE_PRESETS = {
    "small": (32, 64, 128, 192),
    "base": (64, 128, 256, 512),
}
# Noise fractions (see Schedule.timestep_at) at which the validation loss is reported.
VALIDATION_LEVELS = (0.2, 0.4, 0.6, 0.8)


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides the result of a run.

    Attributes:
        size: training height and width in pixels, multiples of 8.
        preset: key of `SIZE_PRESETS`, the width of the U-Net.
        steps: optimiser steps in all.
        batch_size: images a step and process.
        learning_rate: peak of the AdamW rate; linear warm-up, cosine decay to a tenth.
        warmup_steps: steps of the warm-up.
        ema_decay: decay of the exponential moving average of the weights, which is what is saved.
        beta_schedule: see `synthesis.schedule.make_betas`.
        seed: of weights, batches, noise and timesteps.
        init: a model directory whose weights to start from (at any image size), or None.
    """

    size: tuple[int, int] = (64, 120)
    preset: str = "small"
    steps: int = 20_000
    batch_size: int = 8
    learning_rate: float = 4e-4
    warmup_steps: int = 300
    ema_decay: float = 0.999
    beta_schedule: str = "cosine"
    seed: int = 0
    init: str | None = None

    def __post_init__(self) -> None:
        if any(side < 16 or side % 8 for side in self.size):
            raise UserError(
                f"training size {self.size[0]}x{self.size[1]} does not fit the network: "
                "height and width must be multiples of 8, at least 16"
            )
        if self.preset not in SIZE_PRESETS:
            raise UserError(
                f"unknown preset '{self.preset}': choose one of {', '.join(SIZE_PRESETS)}"
            )


def build_unet(preset: str, size: tuple[int, int]) -> UNet2DModel:
    """A U-Net with one residual layer a block and attention at the lowest resolution only."""
    channels = SIZE_PRESETS[preset]
    plain = len(channels) - 1
    return UNet2DModel(
        sample_size=size,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=channels,
        down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * plain,
    )


class Trainer:
    """Trains one model into one output directory.

    Args:
        config: see `TrainingConfig`.
        images: training images at ``config.size``.
        output: directory for the model, ``checkpoint.pt``, ``losses.jsonl`` and ``samples/``.
        validation: nominal images held out, for the loss per noise level; optional.
        on_step: called after each step with (step, loss).

    Raises:
        UserError: ``output`` holds another run, or ``config.init`` no model of this shape.
    """

    def __init__(
        self,
        config: TrainingConfig,
        images: TrainingImages,
        output: Path,
        validation: TrainingImages | None = None,
        on_step: Callable[[int, float], None] | None = None,
    ) -> None:
        self.config, self.images, self.output = config, images, output
        self.validation, self.on_step = validation, on_step
        self.schedule = Schedule.named(config.beta_schedule)
        torch.manual_seed(config.seed)
        unet = build_unet(config.preset, config.size)
        if config.init:
            _load_weights(unet, config.init)
        self.accelerator = Accelerator(mixed_precision="bf16", cpu=not torch.cuda.is_available())
        self.ema = EMAModel(unet.parameters(), decay=config.ema_decay, use_ema_warmup=True)
        self.ema.to(self.accelerator.device)
        unet = unet.to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(unet.parameters(), lr=config.learning_rate)
        self.unet, self.optimizer = self.accelerator.prepare(unet, optimizer)
        self.step = 0
        self._open_output()

    def _open_output(self) -> None:
        """Resumes the run in ``output`` or starts one there."""
        recorded = json.loads(json.dumps(asdict(self.config)))
        config_file = self.output / "training.json"
        if config_file.exists():
            if json.loads(config_file.read_text()) != recorded:
                raise UserError(
                    f"'{self.output}' holds a run with other settings: "
                    "choose another --output, or repeat the settings of its training.json"
                )
        elif self.output.exists() and any(self.output.iterdir()):
            raise UserError(f"'{self.output}' is not empty and not a run: choose another --output")
        self.output.mkdir(parents=True, exist_ok=True)
        replace_file(
            config_file, lambda path: path.write_text(json.dumps(recorded, indent=2) + "\n")
        )
        checkpoint = self.output / "checkpoint.pt"
        if checkpoint.exists():
            state = torch.load(checkpoint, map_location="cpu", weights_only=True)
            self.accelerator.unwrap_model(self.unet).load_state_dict(state["unet"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.ema.load_state_dict(state["ema"])
            self.ema.to(self.accelerator.device)
            self.step = state["step"]
        self._forget_later_losses()

    def _forget_later_losses(self) -> None:
        """Drops the losses of steps behind the checkpoint: those steps are taken again."""
        file = self.output / "losses.jsonl"
        if file.exists():
            lines = file.read_text().splitlines(keepends=True)
            kept = [line for line in lines if _step_of(line) <= self.step]
            replace_file(file, lambda path: path.write_text("".join(kept)))

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then a half cosine down to a tenth of the peak."""
        config = self.config
        if step < config.warmup_steps:
            return config.learning_rate * (step + 1) / config.warmup_steps
        progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
        return config.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))

    def train_step(self) -> float:
        """One optimiser step on an augmented batch; returns the loss."""
        config, device = self.config, self.accelerator.device
        rng = np.random.default_rng([config.seed, self.step, self.accelerator.process_index])
        x0 = self.images.batch(config.batch_size, rng)
        noise = torch.from_numpy(rng.standard_normal(x0.shape, dtype=np.float32))
        t = torch.from_numpy(rng.integers(self.schedule.num_train_timesteps, size=len(x0)))
        x = self.schedule.add_noise(x0, noise, t)
        target = self.schedule.training_target(x0, noise, t).to(device)
        x = x.to(device, memory_format=torch.channels_last)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        loss = (self.unet(x, t.to(device)).sample.float() - target).square().mean()
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.step(self.unet.parameters())
        self.step += 1
        return float(loss.detach())

    def run(self, save_every: int = 500) -> None:
        """Trains up to ``config.steps``, saving every ``save_every`` steps and at the end."""
        recent: list[float] = []
        while self.step < self.config.steps:
            recent.append(self.train_step())
            if self.on_step:
                self.on_step(self.step, recent[-1])
            if self.step % save_every == 0 or self.step == self.config.steps:
                self.save(float(np.mean(recent)))
                recent.clear()

    def save(self, loss: float) -> None:
        """Writes model, samples, a line of losses and then the checkpoint they belong to."""
        if not self.accelerator.is_main_process:
            return
        unet = self.accelerator.unwrap_model(self.unet)
        self.ema.store(unet.parameters())
        self.ema.copy_to(unet.parameters())
        try:
            self._save_model(unet)
            record = {"step": self.step, "loss": loss, **self._validate(unet)}
            self._save_samples(unet)
        finally:
            self.ema.restore(unet.parameters())
        with open(self.output / "losses.jsonl", "a") as file:
            file.write(json.dumps(record) + "\n")
        state = {
            "step": self.step,
            "unet": unet.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict(),
        }
        replace_file(self.output / "checkpoint.pt", lambda path: torch.save(state, path))

    def _save_model(self, unet: UNet2DModel) -> None:
        # Half precision is enough to run the model; the checkpoint keeps the full one.
        pipeline = DDPMPipeline(copy.deepcopy(unet).half(), self.schedule.to_diffusers())
        final, partial = self.output / "model", self.output / "model.partial"
        shutil.rmtree(partial, ignore_errors=True)
        pipeline.save_pretrained(partial)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)

    def _denoiser(self, unet: UNet2DModel) -> DiffusersDenoiser:
        return DiffusersDenoiser(unet, self.schedule, torch.bfloat16)

    @torch.no_grad()
    def _validate(self, unet: UNet2DModel) -> dict[str, float]:
        """Mean squared error of v per noise level, on the same noise each time."""
        if self.validation is None:
            return {}
        rng = np.random.default_rng(self.config.seed)
        count = min(32, len(self.validation))
        x0 = to_tensor(np.stack([self.validation.whole(i) for i in range(count)])).contiguous()
        losses, denoiser = {}, self._denoiser(unet)
        for level in VALIDATION_LEVELS:
            t = self.schedule.timestep_at(level)
            noise = torch.from_numpy(rng.standard_normal(x0.shape, dtype=np.float32))
            x = self.schedule.add_noise(x0, noise, t)
            # v = (alpha x_t - x_0) / sigma
            error = (denoiser(x, t) - x0).square().mean()
            losses[f"validation_{level}"] = float(error) / self.schedule.noise_level(t) ** 2
        return losses

    @torch.no_grad()
    def _save_samples(self, unet: UNet2DModel, rows: int = 2, columns: int = 4) -> None:
        """A grid of samples drawn with 25 deterministic steps from fixed noise."""
        generator = torch.Generator().manual_seed(self.config.seed)
        noise = torch.randn((rows * columns, 3, *self.config.size), generator=generator)
        # From the highest noise level nothing is left of the input.
        x = few_step(
            self._denoiser(unet),
            torch.zeros_like(noise),
            GaussianSimilarity(0.0),
            noise_level=1.0,
            steps=25,
            initial_noise=noise,
        )
        height, width = self.config.size
        grid = to_pictures(x).reshape(rows, columns, height, width, 3).transpose(0, 2, 1, 3, 4)
        grid = np.ascontiguousarray(grid.reshape(rows * height, columns * width, 3))
        folder = self.output / "samples"
        folder.mkdir(exist_ok=True)
        png = cv2.imencode(".png", cv2.cvtColor(grid, cv2.COLOR_RGB2BGR))[1].tobytes()
        replace_file(folder / f"{self.step:07d}.png", lambda path: path.write_bytes(png))


def _load_weights(unet: UNet2DModel, directory: str) -> None:
    try:
        given = UNet2DModel.from_pretrained(
            directory, subfolder="unet", use_safetensors=True, local_files_only=True
        )
        unet.load_state_dict(given.state_dict())
    except Exception as error:  # diffusers raises many kinds; torch RuntimeError on other shapes
        raise UserError(
            f"cannot start from the weights of '{directory}' ({one_line(error, 200)}): "
            "give a model directory of the same preset"
        ) from error


def _step_of(line: str) -> float:
    """The step of a line of losses; infinite where the line was cut off."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
