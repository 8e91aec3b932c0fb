"""`anomaly-detector evaluate`: metrics on labelled images, and the paper's table."""

from __future__ import annotations

import json
import math
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from anomaly_detector_ros.cli.common import (
    DeviceOption,
    JsonOption,
    OfflineOption,
    ProfileOption,
    cannot_write,
    console,
    make_directory,
    progress_bar,
    write_atomically,
)
from anomaly_detector_ros.cli.models import fetch_missing
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.profiles import DEFAULT_PROFILE, load_profile

if TYPE_CHECKING:
    import torch

    from anomaly_detector_ros.evaluation.report import Report
    from anomaly_detector_ros.evaluation.run import Evaluation


class DatasetName(str, Enum):
    """Layouts of labelled images."""

    RUGD = "rugd"
    RELLIS = "rellis"
    YCOR = "ycor"
    FOLDER = "folder"


# What the paper tests on: the images that count as out of distribution.
_DEFAULT_SPLITS = {DatasetName.RUGD: "ood", DatasetName.RELLIS: "ood"}


def evaluate(
    root: Annotated[Path, typer.Option(help="Directory of the data set.")],
    dataset: Annotated[
        DatasetName,
        typer.Option(help="Its layout; folder: images/ and masks/ (0 nominal, 255 void)."),
    ] = DatasetName.FOLDER,
    split: Annotated[
        str | None,
        typer.Option(
            help="rugd: train, val, test, ood (default), all; rellis: train, ood "
            "(default), all; ycor: train, val, test below the root."
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="A row of the table, several times for several; default: the profile."),
    ] = None,
    table1: Annotated[
        bool, typer.Option("--table1", help="Every row of the paper's table.")
    ] = False,
    train_root: Annotated[
        Path | None,
        typer.Option(help="Nominal images, for the baselines and the paper's class weights."),
    ] = None,
    train_dataset: Annotated[
        DatasetName | None, typer.Option(help="Layout of --train-root; default: as --dataset.")
    ] = None,
    train_split: Annotated[
        str | None, typer.Option(help="Part of --train-root; rugd: train by default.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="JSON file; a table (.md), curves (_curves.png) and a gallery go beside it."
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Keeps edits, features, masks and maps; default: in the user's cache."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the baselines and the intervals.")] = 0,
    profile: ProfileOption = DEFAULT_PROFILE,
    device: DeviceOption = "auto",
    offline: OfflineOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure a profile, and the rows of the paper's table around it, on labelled images.

    Methods: ours, no_segments, no_upsampler, mismatched, forward, resnet, rgb, dinov2, vit, clip,
    dino, ssim, gmm, nearest, flow, random, perfect. Without --method: ours beside three
    references: rgb, random and perfect, the analysis of an edit with the anomalies inpainted.

    An interrupted run goes on where it was: what is computed is kept by the hash of its inputs.
    Several GPUs, or machines that share the cache: accelerate launch -m anomaly_detector_ros
    evaluate ...; several processes on CPUs: torchrun in place of accelerate launch.

    Example: anomaly-detector evaluate --dataset ycor --root ycor/test --output results.json

    Example: anomaly-detector evaluate --table1 --dataset rugd --root RUGD --train-root RUGD
    --profile paper_rugd --output rugd.json
    """
    if table1 and method:
        raise UserError("--table1 and --method exclude each other: --table1 holds every row")
    from anomaly_detector_ros.evaluation.cache import Cache
    from anomaly_detector_ros.evaluation.cached import CachedParts
    from anomaly_detector_ros.evaluation.datasets import open_dataset, open_nominal
    from anomaly_detector_ros.evaluation.rows import DEFAULT_ROWS, TABLE1_ROWS
    from anomaly_detector_ros.evaluation.run import Evaluation
    from anomaly_detector_ros.models.registry import cache_directory

    chosen = load_profile(profile)
    fetch_missing(chosen.model_names(), offline)
    names = TABLE1_ROWS if table1 else tuple(dict.fromkeys(method or DEFAULT_ROWS))
    kept = Cache(cache or cache_directory() / "evaluation")
    with progress_bar("methods") as advance:
        evaluation = Evaluation(
            chosen,
            CachedParts(kept, _device_of_this_process(device), offline=offline),
            open_dataset(dataset.value, root, split or _DEFAULT_SPLITS.get(dataset)),
            open_nominal((train_dataset or dataset).value, train_root, train_split)
            if train_root
            else None,
            seed=seed,
            progress=advance,
        )
        report = evaluation.run(names, strict=not table1)
        if report is None:  # not the first of several processes
            return
        if output is not None:
            _write(output, evaluation, report)
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
    else:
        _print(report)


def _device_of_this_process(name: str) -> torch.device:
    """The device to run on; of several processes with the name auto, each takes its own GPU."""
    import torch
    from accelerate import PartialState

    from anomaly_detector_ros.devices import choose_device

    state = PartialState(cpu=name == "cpu" or not torch.cuda.is_available())
    return state.device if name == "auto" and state.num_processes > 1 else choose_device(name)


def _write(output: Path, evaluation: Evaluation, report: Report) -> None:
    """The JSON file last: whoever finds it finds the others too."""
    make_directory(output.parent)
    stem = output.with_suffix("")
    try:
        evaluation.plot(Path(f"{stem}_curves.png"))
    except OSError as error:
        raise cannot_write(output, error) from error
    if "ours" in report.metrics:
        evaluation.gallery(Path(f"{stem}_gallery.jpg"))
    write_atomically(Path(f"{stem}.md"), report.to_markdown().encode())
    write_atomically(output, (json.dumps(report.to_dict(), indent=2) + "\n").encode())


def _print(report: Report) -> None:
    from anomaly_detector_ros.evaluation.report import number
    from anomaly_detector_ros.evaluation.rows import ROWS

    columns = ("AUC-PR", "95%", "AUROC", "FPR95", "F1*", "weighted AUC-PR", "weighted F1*")
    table = Table("", *columns, title=f"{report.dataset}, profile {report.profile}", box=None)
    for name, found in report.metrics.items():
        low, high = found.intervals.get("auc_pr", (math.nan, math.nan))
        table.add_row(
            ROWS[name].title,
            number(found.auc_pr),
            f"{number(low)}-{number(high)}",
            number(found.auroc),
            number(found.fpr95),
            number(found.f1_star),
            number(found.paper_auc_pr),
            number(found.paper_f1_star),
        )
    out = Console()
    # A pipe has no width of its own, and 80 columns are too few.
    (out if out.is_terminal else Console(width=140)).print(table)
    for name, why in report.not_run.items():
        console.print(f"not run: {ROWS[name].title}: {why}", markup=False, soft_wrap=True)
