"""`anomaly-detector train`: a diffusion model of one's own nominal terrain."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anomaly_detector_ros.cli.common import (
    DeviceOption,
    GreyRangeOption,
    JsonOption,
    OnError,
    OnErrorOption,
    TopicOption,
    console,
    parse_grey_range,
    parse_size,
    progress_bar,
    tell,
    write_atomically,
)
from anomaly_detector_ros.cli.evaluate import default_splits, layouts
from anomaly_detector_ros.cli.nominal import (
    MIN_CHANGE,
    MIN_SHARPNESS,
    DataOptions,
    MinChangeOption,
    MinSharpnessOption,
    StrideOption,
    find_nominal,
    read_nominal,
    shared_sources,
)
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.runtime.parts import read_settings
from anomaly_detector_ros.sources.frames import Source
from anomaly_detector_ros.sources.tally import Tally
from anomaly_detector_ros.training.defaults import SHIPPED_AUTOENCODER, STAGE_DEFAULTS

if TYPE_CHECKING:
    import numpy as np

    from anomaly_detector_ros.training.config import TrainingConfig
    from anomaly_detector_ros.training.dataset import TrainingImages
    from anomaly_detector_ros.training.trainer import Trainer

FEW_IMAGES = 200
"""Fewer training images than this are worth a warning."""

_SAMPLES = 32
_SMALL = "smaller than --size"
_RECONSTRUCTION = ("psnr", "cosine", "gradients_kept")


def _defaults(setting: str) -> str:
    """For help texts: the default of each stage, or the one of all."""
    values = {stage: each[setting] for stage, each in STAGE_DEFAULTS.items()}
    shown = {
        stage: "x".join(map(str, of)) if isinstance(of, tuple) else f"{of}"
        for stage, of in values.items()
    }
    return "default: " + ", ".join(f"{value} ({stage})" for stage, value in shown.items())


def train(
    data: Annotated[
        list[Path],
        typer.Option(
            help="Nominal images: files, folders, videos, rosbag2 and other recordings, or with "
            "--dataset the root of a labelled data set; repeatable."
        ),
    ],
    output: Annotated[Path, typer.Option(help="Run directory; an interrupted run resumes in it.")],
    dataset: Annotated[
        str | None,
        typer.Option(help=f"Layout of labelled data, whose nominal images are taken: {layouts()}."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help=f"Part of the data set to train on; default: {default_splits('nominal_split')}."
        ),
    ] = None,
    validation: Annotated[
        list[Path] | None,
        typer.Option(help="Nominal images held out, given like --data; repeatable."),
    ] = None,
    validation_split: Annotated[
        str | None,
        typer.Option(help="Part of the data set held out; of --data without --validation."),
    ] = None,
    topic: TopicOption = None,
    stride: StrideOption = 1,
    min_sharpness: MinSharpnessOption = MIN_SHARPNESS,
    min_change: MinChangeOption = MIN_CHANGE,
    grey_range: GreyRangeOption = (0.0, 0.0),
    enlarge: Annotated[
        bool,
        typer.Option(
            "--enlarge", help="Enlarge frames that are smaller than --size; else they are left out."
        ),
    ] = False,
    on_error: OnErrorOption = OnError.SKIP,
    stage: Annotated[
        str,
        typer.Option(
            help="pixels: a denoiser of pixels; autoencoder; denoiser: one of an autoencoder's "
            "latents."
        ),
    ] = "pixels",
    autoencoder: Annotated[
        str,
        typer.Option(
            help="Whose latents a denoiser works on: a model's name, or with a slash its directory."
        ),
    ] = SHIPPED_AUTOENCODER,
    size: Annotated[
        str | None,
        typer.Option(help=f"Training HEIGHTxWIDTH, multiples of 8; {_defaults('size')}."),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Denoiser: small (7.1 M parameters of pixels, 7.4 of latents) or base (35.0, 15.5)"
            f"; {_defaults('preset')}. With --init it is as large as that one."
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps in all.")] = 20_000,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help=f"Images a step and process; {_defaults('batch_size')}."),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(min=0, help=f"Peak learning rate; {_defaults('learning_rate')}."),
    ] = None,
    min_crop: Annotated[
        float | None,
        typer.Option(
            help="Smallest training crop as a share of each side, of an autoencoder the one of "
            f"all; {_defaults('min_crop')}."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, batches and noise.")] = 0,
    init: Annotated[
        Path | None, typer.Option(help="Model directory whose weights to start from.")
    ] = None,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 500,
    snapshot_every: Annotated[
        int | None,
        typer.Option(min=1, help="Steps between models to keep; default: the last one alone."),
    ] = None,
    max_seconds: Annotated[
        float,
        typer.Option(min=0, help="Save and stop after these; the same command goes on later."),
    ] = math.inf,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Train a diffusion model on nominal images; an interrupted run resumes where it stopped.

    Writes OUTPUT/model (a diffusers model directory), checkpoint.pt, losses.jsonl, curves.png,
    samples/, and at the end memorisation.png and .json: the samples most like a training image
    beside it, and whether samples come nearer to training images than held-out images do.
    --snapshot-every N keeps the model of every N steps as OUTPUT/snapshots/step_NNNNNNN; evaluate
    --sweep draws their quality over the images seen.

    --stage denoiser trains on latents of the shipped autoencoder: sharp edits at the camera's
    resolution. An autoencoder of one's own is another run, --stage autoencoder, and then
    --autoencoder RUN/model.

    Several GPUs or machines that share OUTPUT: accelerate launch -m anomaly_detector_ros train ...

    Example: anomaly-detector train --data my_robot/nominal --output runs/my_robot --size 96x176

    Example: anomaly-detector train --stage denoiser --data nominal --validation held_out --output
    runs/latent

    Example: anomaly-detector train --data drive_1.mcap --data drive_2.mcap --topic
    /camera/image_raw --stride 5 --validation drive_3.mcap --output runs/drives

    Example: anomaly-detector train --dataset rugd --data RUGD --validation-split val --preset base
    --size 176x216 --batch-size 32 --output runs/rugd
    """
    from anomaly_detector_ros.training.config import TrainingConfig
    from anomaly_detector_ros.training.trainer import Trainer

    # Under `accelerate launch` one process speaks for all.
    console.quiet = int(os.environ.get("RANK", "0")) > 0
    given = {
        "size": parse_size(size, "--size") if size else None,
        "preset": preset,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "min_crop": min_crop,
        "init": str(init) if init else None,
    }
    settings = {
        **STAGE_DEFAULTS.get(stage, {}),
        **{name: value for name, value in given.items() if value is not None},
        **{"stage": stage, "autoencoder": autoencoder, "steps": steps, "seed": seed},
    }
    config = read_settings(TrainingConfig, settings, "training")
    options = DataOptions(
        dataset, topic, stride, min_sharpness, min_change, parse_grey_range(grey_range)
    )
    tally = Tally(stop=on_error is OnError.STOP)
    sources = find_nominal(data, split, options)
    images = read_images("training images", sources, config, options, tally, enlarge)
    held_out, others = None, list[Source]()
    if validation or validation_split:
        others = find_nominal(validation or data, validation_split, options)
        held_out = read_images("validation images", others, config, options, tally, enlarge)
    _warn(images, tally, shared_sources(sources, others))

    with console.status("starting"):
        trainer = Trainer(config, images, output, held_out, device=device)
    if not (trainer.journal is None or trainer.journal.has_tensorboard):
        console.print("no TensorBoard files: pip install tensorboard for them")
    rate = _run(trainer, save_every, snapshot_every, max_seconds)
    if trainer.journal is None:
        return
    summary = {
        "model": str(output / "model"),
        "stage": config.stage,
        "preset": None if init else config.preset,
        "parameters": trainer.parameters,
        "size": list(config.size),
        "images": len(images),
        "validation_images": len(held_out) if held_out else 0,
        "frames_read": tally.read,
        "skipped_frames": tally.to_dict()["skipped"],
        "images_seen": trainer.images_seen,
        "images_per_second": rate,
        "losses": trainer.journal.records[-1],
        "memorisation": None
        if config.stage == "autoencoder"
        else _check_memorisation(trainer, images, held_out),
    }
    _print(summary, as_json)
    tell(tally)


def read_images(
    what: str,
    sources: list[Source],
    config: TrainingConfig,
    options: DataOptions,
    tally: Tally,
    enlarge: bool = False,
) -> TrainingImages:
    """Reads all frames to train on into memory.

    Args:
        what: they are, for the progress bar.
        sources: of them.
        config: gives their size.
        options: how to read them.
        tally: counts them.
        enlarge: those that are smaller than the training size, which are left out otherwise.

    Raises:
        UserError: a source is not whole, no frame is good, or there is not enough memory.
    """
    from anomaly_detector_ros.training.dataset import TrainingImages

    before = tally.processed
    pictures = all(source.kind == "picture" for source in sources)
    total = len(sources) if pictures else None  # of recordings nobody knows how many are good
    with progress_bar(what, total) as advance:
        frames = _Frames(sources, config.size, options, tally, enlarge)
        # An autoencoder's crops are cut from what is kept, not brought to the size.
        min_crop = 1.0 if config.stage == "autoencoder" else config.min_crop
        images = TrainingImages(frames, config.size, min_crop, advance)
    if tally.failed or tally.processed == before:
        tell(tally)
    if tally.failed:
        tally.check()
    if tally.processed == before:
        small = _SMALL in tally.to_dict()["skipped"]
        remedy = (
            "give --enlarge or a smaller --size"
            if small
            else "lower --min-sharpness or --min-change"
        )
        raise UserError(
            f"no frame of '{sources[0].file}' is good to train on ({tally.lines()[0]}): {remedy}"
        )
    return images


class _Frames:
    """The pixels of the frames to train on; their number is known where all are pictures."""

    def __init__(
        self,
        sources: list[Source],
        size: tuple[int, int],
        options: DataOptions,
        tally: Tally,
        enlarge: bool,
    ) -> None:
        self._sources, self._size, self._options, self._tally = sources, size, options, tally
        self._enlarge = enlarge

    def __length_hint__(self) -> int:
        return sum(source.kind == "picture" for source in self._sources)

    def __iter__(self) -> Iterator[np.ndarray]:
        import cv2

        height, width = self._size
        for frame in read_nominal(self._sources, self._options, self._tally):
            pixels, given = frame.pixels, frame.pixels.shape[:2]
            scale = max(height / given[0], width / given[1])
            if scale > 1 and not self._enlarge:
                small = UserError(f"{given[0]}x{given[1]}, the training size is {height}x{width}")
                self._tally.skip(_SMALL, frame.name, small)
                continue
            if scale > 1:
                larger = (math.ceil(given[1] * scale), math.ceil(given[0] * scale))
                pixels = cv2.resize(pixels, larger, interpolation=cv2.INTER_CUBIC)
            self._tally.processed += 1
            yield pixels


def _warn(images: TrainingImages, tally: Tally, shared: int) -> None:
    """Says what may spoil the model; `shared` files are both trained and validated on."""
    notes = []
    if skipped := tally.to_dict()["skipped"]:
        listed = ", ".join(f"{count} {reason}" for reason, count in skipped.items())
        notes.append(f"frames left out: {listed}")
    if len(images) < FEW_IMAGES:
        notes.append(f"{len(images)} training images are few: some hundreds make a better model")
    if images.enlarged:
        notes.append(
            f"{images.enlarged} images are too small for their smallest crops, which are enlarged: "
            "a larger --min-crop or a smaller --size keeps them sharp"
        )
    if shared:
        notes.append(
            f"{shared} of the validation files are trained on: "
            "validation losses and the memorisation ratio say nothing"
        )
    for note in notes:
        console.print(f"note: {note}", style="yellow", markup=False, soft_wrap=True)


def _run(
    trainer: Trainer, save_every: int, snapshot_every: int | None, max_seconds: float
) -> float | None:
    """Trains under a progress bar; images per second, None where nothing was left to do."""
    first, start, rate = trainer.step, time.monotonic(), math.nan
    with progress_bar("training", trainer.config.steps) as advance:

        def on_step(step: int, loss: float) -> None:
            nonlocal rate
            elapsed = time.monotonic() - start
            rate = (step - first) * trainer.images_per_step / elapsed
            total = trainer.config.steps
            if max_seconds < math.inf:  # which may end the run long before its last step
                total = min(total, first + math.ceil((step - first) * max_seconds / elapsed))
            advance(step, max(step, total), f"loss {loss:.4f}, {rate:.1f} images/s")

        trainer.on_step, trainer.on_save = on_step, _log
        trainer.run(save_every, snapshot_every, max_seconds)
    return None if math.isnan(rate) else round(rate, 2)


def _log(record: dict[str, Any]) -> None:
    """One line for each checkpoint, which stays above the progress bar and in log files."""
    validation = [value for name, value in record.items() if name.startswith("validation_")]
    held_out = f", validation {sum(validation) / len(validation):.4f}" if validation else ""
    held_out += "".join(
        f", {name} {record[name]:.4f}" for name in _RECONSTRUCTION if name in record
    )
    console.print(
        f"step {record['step']}, {record['images']} images: loss {record['loss']:.4f}{held_out}, "
        f"{record['images_per_second']:.1f} images/s",
        markup=False,
        soft_wrap=True,
    )


def _check_memorisation(
    trainer: Trainer, images: TrainingImages, held_out: TrainingImages | None
) -> dict[str, float | None]:
    """Compares the saved model's samples with the training images; leaves picture and numbers."""
    from anomaly_detector_ros.synthesis.denoisers.loading import load_denoiser
    from anomaly_detector_ros.training.measures import compare, draw_samples

    output, config = trainer.output, trainer.config
    with console.status("looking for memorised training images"):
        denoiser = load_denoiser(
            output / "model", device=trainer.accelerator.device, dtype=trainer.dtype
        )
        # Not the samples that the run has shown all along.
        samples = draw_samples(denoiser, _SAMPLES, config.size, config.seed + 1)
        found = compare(samples, images, held_out, config.seed)
        found.save_picture(output / "memorisation.png")
    numbers = {"ratio": found.ratio, "memorised_ratio": found.memorised_ratio}
    write_atomically(output / "memorisation.json", (json.dumps(numbers) + "\n").encode())
    return numbers


def _print(summary: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
        return
    losses = summary["losses"]
    rate = summary["images_per_second"]
    speed = f", {rate:.1f} images per second" if rate else ""
    typer.echo(
        f"step {losses['step']}, {summary['images_seen']} images: "
        f"training loss {losses['loss']:.4f}{speed}"
    )
    memorisation = summary["memorisation"]
    if memorisation is None:
        quality = ", ".join(f"{name} {losses[name]:.3f}" for name in _RECONSTRUCTION)
        typer.echo(f"reconstruction: {quality}")
    elif memorisation["ratio"] is None:
        typer.echo("memorisation: no number without --validation; see memorisation.png")
    else:
        typer.echo(
            f"memorisation: samples are {memorisation['ratio']:.2f} times as far from training "
            f"images as held-out images are ({memorisation['memorised_ratio']:.2f} would be copies)"
        )
    typer.echo(f"model: {summary['model']}")
