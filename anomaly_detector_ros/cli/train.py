"""`anomaly-detector train`: a diffusion model of one's own nominal terrain."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anomaly_detector_ros.errors import UserError


def parse_size(text: str) -> tuple[int, int]:
    """'96x176' as (height, width)."""
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise UserError(f"--size '{text}' is not HEIGHTxWIDTH: give for example 96x176")
    return int(height), int(width)


def train(
    data: Annotated[Path, typer.Option(help="Folder of nominal images, searched recursively.")],
    output: Annotated[Path, typer.Option(help="Run directory; an interrupted run resumes in it.")],
    validation: Annotated[
        Path | None, typer.Option(help="Nominal images held out, for the validation loss.")
    ] = None,
    size: Annotated[str, typer.Option(help="Training HEIGHTxWIDTH, multiples of 8.")] = "64x120",
    preset: Annotated[str, typer.Option(help="Width of the network: small or base.")] = "small",
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps in all.")] = 20_000,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a step.")] = 8,
    learning_rate: Annotated[float, typer.Option(min=0, help="Peak learning rate.")] = 4e-4,
    seed: Annotated[int, typer.Option(help="Of weights, batches and noise.")] = 0,
    init: Annotated[
        Path | None, typer.Option(help="Model directory whose weights to start from.")
    ] = None,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 500,
) -> None:
    """Train a diffusion model on nominal images; an interrupted run resumes where it stopped.

    Writes OUTPUT/model (a diffusers model directory), samples/, losses.jsonl and checkpoint.pt.

    Example:

        anomaly-detector train --data my_robot/nominal --output runs/my_robot --size 96x176
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from anomaly_detector_ros.images import find_images
    from anomaly_detector_ros.training.dataset import TrainingImages
    from anomaly_detector_ros.training.ddpm import Trainer, TrainingConfig

    config = TrainingConfig(
        size=parse_size(size),
        preset=preset,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        init=str(init) if init else None,
    )
    images = TrainingImages(find_images(data), config.size)
    held_out = TrainingImages(find_images(validation), config.size) if validation else None
    columns = ("loss {task.fields[loss]:.4f}", BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn()) as progress:
        task = progress.add_task("train", total=steps, loss=float("nan"))

        def on_step(step: int, loss: float) -> None:
            progress.update(task, completed=step, loss=loss)

        Trainer(config, images, output, held_out, on_step).run(save_every)
    typer.echo(f"model: {output / 'model'}")
