#!/usr/bin/env python3
"""Trains an autoencoder and a denoiser of its latents within a given time on one GPU.

    python scripts/train_latent.py --data ycor/train/images --validation ycor/val/images \\
        --output runs/latent --seconds 480

It is how ``models/offroad_latent`` was made; the figures of that run are in its MODEL_CARD.md. All
frames must have one size. They are held on the device, where batches are cut and augmented.
``--quick`` shows on a CPU that everything runs; what it trains is of no use.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from torch import Tensor, nn

from anomaly_detector_ros.features.dinov2_weights import load_dinov2_weights
from anomaly_detector_ros.features.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from anomaly_detector_ros.imaging.images import read_rgb
from anomaly_detector_ros.runtime.files import replace_directory
from anomaly_detector_ros.synthesis.autoencoder import Autoencoder
from anomaly_detector_ros.synthesis.schedule import Schedule
from anomaly_detector_ros.weights.registry import Registry

AUTOENCODER = {
    "latent_channels": 8,
    "channels": (64, 96, 144),
    "encoder_blocks": (1, 1, 2),
    "decoder_blocks": (2, 3, 4),
}
CHANNELS = (128, 192, 256)
BLOCKS = (3, 6, 9)  # of DINOv2, whose features the autoencoder should keep
VALIDATION_LEVELS = (0.2, 0.4, 0.6, 0.8)


@dataclass(frozen=True)
class Sizes:
    """Batches, and the part of a frame that the autoencoder sees at once."""

    crops: int
    crop: tuple[int, int]
    latents: int
    bank: int


FULL = Sizes(crops=32, crop=(240, 384), latents=128, bank=48_000)
QUICK = Sizes(crops=2, crop=(128, 192), latents=4, bank=16)


class Run:
    """One run: its device, its frames, its clock and its log ``log.jsonl``."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.sizes = QUICK if options.quick else FULL
        self.output: Path = options.output
        self.output.mkdir(parents=True, exist_ok=True)
        self.frames = self._read(options.data)
        self.validation = self._read(options.validation)
        self._start, self._seconds = time.monotonic(), options.seconds
        self._log = open(self.output / "log.jsonl", "a")  # noqa: SIM115  # as long as the run

    def _read(self, folder: Path) -> Tensor:
        files = sorted(file for file in folder.iterdir() if not file.name.startswith("."))
        if self.sizes is QUICK:
            files = files[:8]
        frames = np.stack([read_rgb(file) for file in files])
        return torch.from_numpy(frames).permute(0, 3, 1, 2).to(self.device)

    def say(self, **facts: object) -> None:
        """One line of JSON, on the screen and in the log."""
        line = json.dumps({"seconds": round(time.monotonic() - self._start, 1), **facts})
        print(line, flush=True)
        print(line, file=self._log, flush=True)

    def progress(self, seconds: float) -> Iterator[float]:
        """Shares of a phase of so many seconds, until it is over."""
        start = time.monotonic()
        while (done := (time.monotonic() - start) / seconds) < 1:
            yield done

    @property
    def left(self) -> float:
        """Seconds of the run that are left."""
        return self._seconds - (time.monotonic() - self._start)

    def autocast(self) -> torch.autocast:
        """Half precision for what runs inside."""
        return torch.autocast(self.device.type, torch.bfloat16)


class Average:
    """An exponential moving average of parameters, warmed up."""

    def __init__(self, parameters: list[Tensor], decay: float = 0.999) -> None:
        self.values = [p.detach().clone().float() for p in parameters]
        self._decay, self._steps = decay, 0

    @torch.no_grad()
    def step(self, parameters: list[Tensor]) -> None:
        """Takes new values in."""
        self._steps += 1
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        torch._foreach_lerp_(self.values, [p.detach() for p in parameters], 1 - decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Gives a network the averaged values."""
        torch._foreach_copy_(list(module.parameters()), self.values)


class Features(nn.Module):
    """Patch features of DINOv2 ViT-S/14 after `BLOCKS`, each (B, 384, h, w)."""

    def __init__(self) -> None:
        super().__init__()
        self.network = timm.create_model(
            "vit_small_patch14_dinov2", num_classes=0, depth=max(BLOCKS), dynamic_img_size=True
        )
        weights = Registry.default().fetch("dinov2_vits14_focus") / "vit_s_focus.onnx"
        self.network.load_state_dict(load_dinov2_weights(weights, max(BLOCKS)))
        self.requires_grad_(False)
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values).reshape(1, 3, 1, 1))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps of images (B, 3, H, W) in [-1, 1]."""
        height, width = (round(side * 266 / 272 / 14) * 14 for side in images.shape[-2:])
        pixels = F.interpolate(images, (height, width), mode="bilinear", antialias=True)
        maps: list[Tensor] = self.network.forward_intermediates(
            ((pixels + 1) / 2 - self.mean) / self.std,
            indices=[block - 1 for block in BLOCKS],
            intermediates_only=True,
        )
        return [each.float() for each in maps]


def photometric(images: Tensor) -> Tensor:
    """Half of the images in another light: gamma, contrast, brightness, saturation, cast."""

    def draw(low: float, high: float, channels: int = 1) -> Tensor:
        shape = (len(images), channels, 1, 1)
        return torch.empty(shape, device=images.device).uniform_(low, high)

    lit = ((images + 1) / 2).clamp(1e-4, 1) ** torch.exp(draw(-0.6, 0.6))
    mean = lit.mean((1, 2, 3), keepdim=True)
    lit = (lit - mean) * draw(0.7, 1.4) + mean + draw(-0.12, 0.12)
    grey = lit.mean(1, keepdim=True)
    lit = ((lit - grey) * draw(0.5, 1.4) + grey) * torch.exp(draw(-0.12, 0.12, 3))
    return torch.where(draw(0, 1) < 0.5, lit.clamp(0, 1) * 2 - 1, images)


def to_images(frames: Tensor) -> Tensor:
    """uint8 to float in [-1, 1]."""
    return frames.float() / 127.5 - 1


def gradients(x: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of neighbours, down and across."""
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def band_energies(images: Tensor) -> list[Tensor]:
    """Mean strength of three bands of a Laplacian pyramid, over 8x8 pixels each."""
    x, energies = images.mean(1, keepdim=True), []
    for _ in range(3):
        low = F.avg_pool2d(x, 2)
        band = x - F.interpolate(low, size=x.shape[-2:], mode="bilinear")
        energies.append(F.avg_pool2d(band.abs(), 8))
        x = low
    return energies


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """1 - cos over channels."""
    return 1 - F.cosine_similarity(a, b, dim=1)


def discriminator(width: int = 64) -> nn.Sequential:
    """Judges patches of pictures (Isola et al. 2017), with spectral norms."""
    layers: list[nn.Module] = []
    channels = 3
    for out, kernel, stride in ((1, 4, 2), (2, 4, 2), (4, 4, 2), (4, 3, 1)):
        conv = nn.Conv2d(channels, out * width, kernel, stride, padding=1)
        layers += [nn.utils.parametrizations.spectral_norm(conv), nn.LeakyReLU(0.2)]
        channels = out * width
    return nn.Sequential(*layers, nn.Conv2d(channels, 1, 3, padding=1))


def train_autoencoder(run: Run, seconds: float) -> Autoencoder:
    """L1, gradients, features, band energies; an adversary for the last two thirds."""
    features = Features().eval().to(run.device)
    network = Autoencoder(**AUTOENCODER).to(run.device, memory_format=torch.channels_last)
    parameters = list(network.parameters())
    average, last = Average(parameters), network.decoder[-2].weight
    optimizer = torch.optim.Adam(parameters, lr=7e-4, betas=(0.9, 0.99))
    judge = discriminator().to(run.device, memory_format=torch.channels_last)
    judge_optimizer = torch.optim.Adam(judge.parameters(), lr=2e-4, betas=(0.5, 0.9))
    step, shown = 0, time.monotonic()
    for done in run.progress(seconds):
        rate = 7e-4 * min(1, (step + 1) / 200) * (0.05 + 0.475 * (1 + math.cos(math.pi * done)))
        optimizer.param_groups[0]["lr"] = rate
        images = _crops(run)
        with run.autocast():
            latents = network.encode(images).float()
            # The denoiser's latents will be off a little.
            given = network.decode(latents + 0.1 * torch.randn_like(latents)).float()
            with torch.no_grad():
                wanted = features(images)
            found = features(given)
        loss = (given - images).abs().mean()
        for a, b in zip(gradients(given), gradients(images), strict=True):
            loss = loss + 0.5 * (a - b).abs().mean()
        for a, b in zip(found, wanted, strict=True):
            loss = loss + cosine_distance(a, b).mean() / len(BLOCKS)
        for a, b in zip(band_energies(given), band_energies(images), strict=True):
            loss = loss + 0.1 / 3 * ((a + 0.01).log() - (b + 0.01).log()).abs().mean()
        if done > 0.35:
            with run.autocast():
                adversary = -judge(given).float().mean()
            # As strong as the other losses where both meet (Esser et al. 2021), times 0.35.
            pulls = [
                torch.autograd.grad(each, last, retain_graph=True)[0].norm()
                for each in (loss, adversary)
            ]
            weight = (pulls[0] / (pulls[1] + 1e-6)).clamp(0, 100) * min(1, (done - 0.35) / 0.1)
            loss = loss + 0.35 * weight.detach() * adversary
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if not torch.isfinite(nn.utils.clip_grad_norm_(parameters, 1.0)):
            run.say(skipped=step)
            continue
        optimizer.step()
        average.step(parameters)
        if done > 0.3:
            with run.autocast():
                real, fake = judge(images).float(), judge(given.detach()).float()
            judge_loss = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
            judge_optimizer.zero_grad(set_to_none=True)
            judge_loss.backward()
            judge_optimizer.step()
        step += 1
        if time.monotonic() - shown > 20:
            shown = time.monotonic()
            run.say(phase="autoencoder", images=step * run.sizes.crops, loss=loss.item())
    average.copy_to(network)
    _measure_statistics(run, network)
    run.say(phase="autoencoder", images=step * run.sizes.crops, **_reconstruction(run, network))
    return network


def _crops(run: Run) -> Tensor:
    height, width = run.sizes.crop
    top = int(torch.randint(run.frames.shape[2] - height + 1, ()))
    left = int(torch.randint(run.frames.shape[3] - width + 1, ()))
    chosen = torch.randint(len(run.frames), (run.sizes.crops,), device=run.device)
    crops = to_images(run.frames[chosen, :, top : top + height, left : left + width])
    return _mirrored(photometric(crops)).contiguous(memory_format=torch.channels_last)


def _mirrored(images: Tensor) -> Tensor:
    flip = torch.rand((len(images), 1, 1, 1), device=images.device) < 0.5
    return torch.where(flip, images.flip(3), images)


@torch.no_grad()
def _measure_statistics(run: Run, network: Autoencoder) -> None:
    """Mean and deviation of the averaged encoder's latents, for its last layer."""
    network.eval()
    norm = network.encoder[-1]
    norm.reset_running_stats()
    norm.momentum = None  # a plain average of all batches
    norm.train()
    for _ in range(60 if run.sizes is FULL else 4):
        chosen = torch.randint(len(run.frames), (run.sizes.crops,), device=run.device)
        with run.autocast():
            network.encode(_mirrored(photometric(to_images(run.frames[chosen]))))
    norm.eval()


@torch.no_grad()
def _reconstruction(run: Run, network: Autoencoder) -> dict[str, float]:
    features = Features().eval().to(run.device)
    rows = []
    for image in to_images(run.validation).split(1):
        with run.autocast():
            given = network(image).float().clamp(-1, 1)
            distance = cosine_distance(features(given)[-1], features(image)[-1]).mean()
        kept = [
            sum(each.abs().mean() for each in gradients(x.mean(1, keepdim=True)))
            for x in (given, image)
        ]
        psnr = -10 * ((given - image) / 2).square().mean().log10()
        rows.append(torch.stack([psnr, distance, kept[0] / kept[1]]))
    values = torch.stack(rows).mean(0).tolist()
    return dict(zip(("psnr", "cosine", "gradients_kept"), values, strict=True))


@torch.no_grad()
def encode_bank(run: Run, network: Autoencoder) -> Tensor:
    """Latents of augmented frames, half precision: crops of at least 86% of each side."""
    parts: list[Tensor] = []
    while sum(map(len, parts)) < run.sizes.bank:
        chosen = torch.randint(len(run.frames), (64 if run.sizes is FULL else 8,))
        images = to_images(run.frames[chosen.to(run.device)])
        count = len(images)
        scale = torch.empty(count).uniform_(0.86, 1.0)
        scale[torch.rand(count) < 0.4] = 1
        scales = torch.stack(
            [scale, (scale * torch.empty(count).uniform_(0.95, 1.05)).clamp(max=1)]
        )
        shifts = (torch.rand(2, count) * 2 - 1) * (1 - scales)
        mirror = torch.where(torch.rand(count) < 0.5, -1.0, 1.0)
        warp = torch.zeros(count, 2, 3)
        warp[:, 0, 0], warp[:, 1, 1] = scales[0] * mirror, scales[1]
        warp[:, 0, 2], warp[:, 1, 2] = shifts
        grid = F.affine_grid(warp.to(run.device), list(images.shape), align_corners=False)
        images = F.grid_sample(images, grid, "bicubic", "reflection", align_corners=False)
        with run.autocast():
            parts.append(network.encode(photometric(images.clamp(-1, 1))).bfloat16())
    return torch.cat(parts)


def random_masks(count: int, size: tuple[int, int], device: torch.device) -> Tensor:
    """What the denoiser must fill in, 1 where hidden: all of it, rectangles or smooth blobs."""

    def draw(low: float, high: float) -> Tensor:
        return torch.empty((count, 1, 1, 1), device=device).uniform_(low, high)

    coarse = [torch.randn((count, 1, *shape), device=device) for shape in ((5, 8), (10, 18))]
    smooth = [F.interpolate(each, size, mode="bicubic") for each in coarse]
    blobs = (smooth[0] + 0.5 * smooth[1] > draw(-0.8, 1.8)).float()
    rows = torch.arange(size[0], device=device).reshape(1, 1, -1, 1)
    columns = torch.arange(size[1], device=device).reshape(1, 1, 1, -1)
    boxes = torch.zeros_like(blobs)
    for index in range(6):
        height, width = draw(math.log(2), math.log(22)).exp(), draw(math.log(2), math.log(30)).exp()
        inside = ((rows - draw(0, size[0])).abs() < height / 2) & (
            (columns - draw(0, size[1])).abs() < width / 2
        )
        there = draw(0, 1) < (1 if index == 0 else 0.45)
        boxes = torch.maximum(boxes, (inside & there).float())
    kind = draw(0, 1)
    return torch.where(kind < 0.4, 1.0, torch.where(kind < 0.7, boxes, blobs))


def build_unet(size: tuple[int, int]) -> UNet2DModel:
    """The denoiser: 17 channels in, as `InpaintingUnet` gives them, and 8 out."""
    latents = AUTOENCODER["latent_channels"]
    return UNet2DModel(
        sample_size=size,
        in_channels=2 * latents + 1,
        out_channels=latents,
        layers_per_block=1,
        block_out_channels=CHANNELS,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=64,
        dropout=0.1,
    )


def predict(unet: UNet2DModel, x: Tensor, t: Tensor, known: Tensor, hidden: Tensor) -> Tensor:
    """v of noisy latents, in the network's own precision, padded to what its levels need."""
    height, width = x.shape[-2:]
    given = torch.cat([x, hidden, known * (1 - hidden)], 1)
    given = F.pad(given, (0, -width % 4, 0, -height % 4), mode="replicate")
    given = given.to(unet.dtype, memory_format=torch.channels_last)
    return unet(given, t).sample[..., :height, :width].float()


def train_denoiser(run: Run, network: Autoencoder, schedule: Schedule) -> UNet2DModel:
    """v-prediction on the bank; weights in half precision beside a full copy that is optimised."""
    bank = encode_bank(run, network)
    size = (bank.shape[2], bank.shape[3])
    with torch.no_grad(), run.autocast():
        validation = torch.cat([network.encode(x) for x in to_images(run.validation).split(4)])
    master = build_unet(size).to(run.device)
    parameters = list(master.parameters())
    half = copy.deepcopy(master).to(torch.bfloat16).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(parameters, lr=5e-4, betas=(0.9, 0.99), weight_decay=0.01)
    average, averaged = Average(parameters), copy.deepcopy(half).eval()
    count, step, shown = run.sizes.latents, 0, time.monotonic()
    for done in run.progress(max(10, run.left - 10)):
        rate = 5e-4 * min(1, (step + 1) / 300) * (0.02 + 0.49 * (1 + math.cos(math.pi * done)))
        optimizer.param_groups[0]["lr"] = rate
        x0 = bank[torch.randint(len(bank), (count,), device=run.device)].float()
        noise = torch.randn_like(x0)
        t = torch.randint(schedule.num_train_timesteps, (count,))
        abar = schedule.alphas_cumprod[t].float().to(run.device).reshape(-1, 1, 1, 1)
        x = abar.sqrt() * x0 + (1 - abar).sqrt() * noise
        target = abar.sqrt() * noise - (1 - abar).sqrt() * x0
        hidden = random_masks(count, size, run.device)
        loss = (predict(half, x, t.to(run.device), x0, hidden) - target).square().mean()
        loss.backward()
        for full, low in zip(parameters, half.parameters(), strict=True):
            full.grad, low.grad = low.grad.float().contiguous(), None
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        average.step(parameters)
        with torch.no_grad():
            torch._foreach_copy_(list(half.parameters()), parameters)
        step += 1
        if time.monotonic() - shown > 30 or step == 1:
            shown = time.monotonic()
            average.copy_to(averaged)
            errors = _validation_errors(averaged, validation.float(), schedule)
            run.say(phase="denoiser", images=step * count, loss=loss.item(), validation=errors)
    average.copy_to(master)
    run.say(phase="denoiser", images=step * count)
    return master.eval()


@torch.no_grad()
def _validation_errors(unet: UNet2DModel, x0: Tensor, schedule: Schedule) -> dict[str, float]:
    """Mean squared error of v by noise level, with everything hidden and the same noise."""
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1)).to(x0)
    errors = {}
    for level in VALIDATION_LEVELS:
        t = schedule.timestep_at(level)
        steps = torch.full((len(x0),), t, device=x0.device)
        hidden = torch.ones_like(x0[:, :1])
        found = predict(unet, schedule.add_noise(x0, noise, t), steps, x0, hidden)
        error = (found - schedule.training_target(x0, noise, t)).square().mean()
        errors[str(level)] = round(error.item(), 4)
    return errors


def main() -> None:
    """Reads the command line, trains both stages and saves them as one model directory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of nominal frames")
    parser.add_argument("--validation", type=Path, required=True, help="frames held out")
    parser.add_argument("--output", type=Path, required=True, help="model directory to write")
    parser.add_argument("--seconds", type=float, default=480, help="of both stages together")
    parser.add_argument("--quick", action="store_true", help="a few steps of tiny batches")
    options = parser.parse_args()
    torch.manual_seed(0)
    run, schedule = Run(options), Schedule.named("cosine")
    network = train_autoencoder(run, 0.36 * options.seconds)
    unet = train_denoiser(run, network, schedule)
    replace_directory(run.output / "vae", network.cpu().half().save_pretrained)
    replace_directory(run.output / "unet", unet.cpu().half().save_pretrained)
    replace_directory(run.output / "scheduler", schedule.to_diffusers().save_pretrained)


if __name__ == "__main__":
    main()
