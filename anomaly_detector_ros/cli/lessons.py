"""`anomaly-detector lessons`: lists, undoes and exports what a detector was taught."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from anomaly_detector_ros.cli.common import (
    JsonOption,
    OfflineOption,
    ProfileOption,
    cannot_write,
    make_directory,
)
from anomaly_detector_ros.profiles import DEFAULT_PROFILE, load_profile

app = typer.Typer(help="List, undo or export what a detector was taught.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(help="File of lessons, as teach or the node writes it.")]


@app.command("list")
def list_(
    file: File,
    thumbnails: Annotated[
        Path | None, typer.Option(help="Folder to write the pictures of the lessons to.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the lessons, oldest first.

    Example: anomaly-detector lessons list mine.safetensors
    """
    from anomaly_detector_ros.lessons.journal import load_lessons

    lessons = load_lessons(file)
    told = [each.to_dict() for each in lessons.entries]
    if thumbnails is not None:
        make_directory(thumbnails)
        for number, lesson in enumerate(lessons.entries, 1):
            for index, picture in enumerate(lesson.thumbnails):
                try:
                    (thumbnails / f"{number:04d}_{index}.jpg").write_bytes(picture)
                except OSError as error:
                    raise cannot_write(thumbnails, error) from error
    if as_json:
        typer.echo(json.dumps(told, indent=2))
        return
    table = Table(*("", "time", "kind", "camera", "by", "frames", "vectors", "what"), box=None)
    for number, each in enumerate(told, 1):
        left = f", {len(each['left_out'])} left out" if each["left_out"] else ""
        named = [each[name] for name in ("time", "kind", "camera", "asked_by")]
        counts = [f"{each['frames']}{left}", str(each["vectors"])]
        table.add_row(str(number), *named, *counts, each["about"])
    Console().print(table)
    typer.echo(f"{len(told)} lessons, {lessons.vectors} vectors, {file.stat().st_size} bytes")


@app.command()
def undo(
    file: File,
    count: Annotated[int, typer.Option(min=1, help="How many, the newest first.")] = 1,
) -> None:
    """Take back the last lessons.

    A running node does not see it: there the service ~/undo_lesson does it.

    Example: anomaly-detector lessons undo mine.safetensors
    """
    from anomaly_detector_ros.lessons.journal import load_lessons

    lessons = load_lessons(file)
    undone = []
    for _ in range(count):
        lessons, last = lessons.undone()
        undone.append(last.to_dict())
    lessons.save(file)
    for each in undone:
        typer.echo(f"undone: {each['kind']} of {each['time']}, {each['vectors']} vectors")


@app.command()
def export(
    file: File,
    output: Annotated[Path, typer.Option(help="File to save the calibration in (.safetensors).")],
    profile: ProfileOption = DEFAULT_PROFILE,
    offline: OfflineOption = False,
) -> None:
    """Make a calibration that knows the lessons, for other robots or as a new beginning.

    Example: anomaly-detector lessons export mine.safetensors --output calibration.safetensors
    """
    import torch

    from anomaly_detector_ros.building import Parts

    chosen = load_profile(profile)
    parts = Parts(torch.device("cpu"), offline=offline)
    lessons = parts.lessons(chosen, file)
    calibration = parts.calibration(chosen)
    assert calibration is not None  # it has lessons
    taught = replace(calibration, lessons=lessons.scores())
    cameras = {
        name: replace(nominal, distribution=taught.in_force(name))
        for name, nominal in calibration.cameras.items()
    }
    distance = parts.distance(chosen).taught(lessons.taught())
    make_directory(output.parent)
    try:
        replace(calibration, cameras=cameras, distance=distance.tensors(), shared="").save(output)
    except OSError as error:
        raise cannot_write(output, error) from error
    typer.echo(f"saved: {output}, with {len(lessons.entries)} lessons")
