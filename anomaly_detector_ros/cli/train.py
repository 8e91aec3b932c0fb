"""`anomaly-detector train`: a diffusion model of one's own nominal terrain."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anomaly_detector_ros.cli.common import (
    DeviceOption,
    JsonOption,
    console,
    parse_size,
    progress_bar,
    write_atomically,
)
from anomaly_detector_ros.cli.evaluate import default_splits, layouts
from anomaly_detector_ros.cli.training_data import (
    DataOptions,
    Pictures,
    describe_skipped,
    find_pictures,
    read_pictures,
)
from anomaly_detector_ros.runtime.parts import read_settings

if TYPE_CHECKING:
    from anomaly_detector_ros.training.dataset import TrainingImages
    from anomaly_detector_ros.training.ddpm import Trainer

FEW_IMAGES = 200
"""Fewer training images than this are worth a warning."""

_SAMPLES = 32


def train(
    data: Annotated[
        list[Path],
        typer.Option(
            help="Nominal images: a folder, searched recursively, a rosbag2, a video, or with "
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
    topic: Annotated[str | None, typer.Option(help="Image topic of rosbags.")] = None,
    stride: Annotated[
        int, typer.Option(min=1, help="Look at every so many frames of rosbags and videos.")
    ] = 1,
    min_sharpness: Annotated[
        float,
        typer.Option(
            min=0, help="Leave blurred frames out: variance of the Laplacian, 320 columns."
        ),
    ] = 30.0,
    min_change: Annotated[
        float,
        typer.Option(
            min=0, help="Leave frames out that differ less (grey, 0 to 255) from the last kept."
        ),
    ] = 2.0,
    size: Annotated[str, typer.Option(help="Training HEIGHTxWIDTH, multiples of 8.")] = "64x120",
    preset: Annotated[
        str, typer.Option(help="Network: small (7.1 M parameters) or base (35.0 M, for a GPU).")
    ] = "small",
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps in all.")] = 20_000,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a step and process.")] = 8,
    learning_rate: Annotated[float, typer.Option(min=0, help="Peak learning rate.")] = 4e-4,
    min_crop: Annotated[
        float, typer.Option(help="Smallest training crop as a share of each side.")
    ] = 0.8,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, batches and noise.")] = 0,
    init: Annotated[
        Path | None, typer.Option(help="Model directory whose weights to start from.")
    ] = None,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 500,
    snapshot_every: Annotated[
        int | None,
        typer.Option(min=1, help="Steps between models to keep; default: the last one alone."),
    ] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Train a diffusion model on nominal images; an interrupted run resumes where it stopped.

    Writes OUTPUT/model (a diffusers model directory), checkpoint.pt, losses.jsonl, curves.png,
    samples/, and at the end memorisation.png and .json: the samples most like a training image
    beside it, and whether samples come nearer to training images than held-out images do.
    --snapshot-every N keeps the model of every N steps as OUTPUT/snapshots/step_NNNNNNN; evaluate
    --sweep draws their quality over the images seen.

    Several GPUs or machines that share OUTPUT: accelerate launch -m anomaly_detector_ros train ...

    Example: anomaly-detector train --data my_robot/nominal --output runs/my_robot --size 96x176

    Example: anomaly-detector train --data drive_1.mcap --data drive_2.mcap --topic
    /camera/image_raw --stride 5 --validation drive_3.mcap --output runs/drives

    Example: anomaly-detector train --dataset rugd --data RUGD --validation-split val --preset base
    --size 176x216 --batch-size 32 --output runs/rugd
    """
    from anomaly_detector_ros.training.config import TrainingConfig
    from anomaly_detector_ros.training.ddpm import Trainer

    # Under `accelerate launch` one process speaks for all.
    console.quiet = int(os.environ.get("RANK", "0")) > 0
    settings = {
        "size": parse_size(size, "--size"),
        "preset": preset,
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "min_crop": min_crop,
        "seed": seed,
        "init": str(init) if init else None,
    }
    config = read_settings(TrainingConfig, settings, "training")
    options = DataOptions(dataset, topic, stride, min_sharpness, min_change)
    pictures = find_pictures(data, split, options)
    images = read_pictures("training images", pictures, config.size, min_crop, options)
    held_out_pictures = held_out = None
    if validation or validation_split:
        held_out_pictures = find_pictures(validation or data, validation_split, options)
        held_out = read_pictures(
            "validation images", held_out_pictures, config.size, min_crop, options
        )
    _warn(pictures, images, held_out_pictures)

    with console.status("starting"):
        trainer = Trainer(config, images, output, held_out, device=device)
    if not (trainer.journal is None or trainer.journal.has_tensorboard):
        console.print("no TensorBoard files: pip install tensorboard for them")
    rate = _run(trainer, save_every, snapshot_every)
    if trainer.journal is None:
        return
    summary = {
        "model": str(output / "model"),
        "preset": preset,
        "parameters": trainer.parameters,
        "size": list(config.size),
        "images": len(images),
        "validation_images": len(held_out) if held_out else 0,
        "skipped_frames": pictures.skipped,
        "images_seen": trainer.images_seen,
        "images_per_second": rate,
        "losses": trainer.journal.records[-1],
        "memorisation": _check_memorisation(trainer, images, held_out),
    }
    _print(summary, as_json)


def _warn(pictures: Pictures, images: TrainingImages, held_out: Pictures | None) -> None:
    """Says what may spoil the model."""
    notes = []
    if skipped := describe_skipped(pictures):
        notes.append(f"frames left out: {skipped}")
    if len(images) < FEW_IMAGES:
        notes.append(f"{len(images)} training images are few: some hundreds make a better model")
    if images.enlarged:
        notes.append(
            f"{images.enlarged} images are too small for their smallest crops, which are enlarged: "
            "a larger --min-crop or a smaller --size keeps them sharp"
        )
    if shared := pictures.shared_with(held_out) if held_out else 0:
        notes.append(
            f"{shared} of the validation files are trained on: "
            "validation losses and the memorisation ratio say nothing"
        )
    for note in notes:
        console.print(f"note: {note}", style="yellow", markup=False, soft_wrap=True)


def _run(trainer: Trainer, save_every: int, snapshot_every: int | None) -> float | None:
    """Trains under a progress bar; images per second, None where nothing was left to do."""
    first, start, rate = trainer.step, time.monotonic(), math.nan
    with progress_bar("training", trainer.config.steps) as advance:

        def on_step(step: int, loss: float) -> None:
            nonlocal rate
            rate = (step - first) * trainer.images_per_step / (time.monotonic() - start)
            advance(step, doing=f"loss {loss:.4f}, {rate:.1f} images/s")

        trainer.on_step, trainer.on_save = on_step, _log
        trainer.run(save_every, snapshot_every)
    return None if math.isnan(rate) else round(rate, 2)


def _log(record: dict[str, Any]) -> None:
    """One line for each checkpoint, which stays above the progress bar and in log files."""
    validation = [value for name, value in record.items() if name.startswith("validation_")]
    held_out = f", validation {sum(validation) / len(validation):.4f}" if validation else ""
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
    if memorisation["ratio"] is None:
        typer.echo("memorisation: no number without --validation; see memorisation.png")
    else:
        typer.echo(
            f"memorisation: samples are {memorisation['ratio']:.2f} times as far from training "
            f"images as held-out images are ({memorisation['memorised_ratio']:.2f} would be copies)"
        )
    typer.echo(f"model: {summary['model']}")
