"""`anomaly-detector evaluate`: metrics on labelled images, and the paper's table."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from anomaly_detector_ros.cli.common import (
    DeviceOption,
    GreyRangeOption,
    JsonOption,
    OfflineOption,
    OnError,
    OnErrorOption,
    ProfileOption,
    cannot_write,
    console,
    fetch_missing,
    make_directory,
    parse_grey_range,
    progress_bar,
    tell,
    write_atomically,
)
from anomaly_detector_ros.cli.nominal import DataOptions, keep_files, picture_files
from anomaly_detector_ros.cli.page import save_evaluation_page
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.evaluation.datasets.base import DATASETS, Dataset
from anomaly_detector_ros.pages.page import FILE
from anomaly_detector_ros.profiles import DEFAULT_PROFILE, load_profile
from anomaly_detector_ros.runtime.files import replace_directory
from anomaly_detector_ros.sources.frames import Frame, Source, read_sources
from anomaly_detector_ros.sources.tally import Tally

if TYPE_CHECKING:
    import torch

    from anomaly_detector_ros.evaluation.edits import EditReport
    from anomaly_detector_ros.evaluation.metrics.measures import Metrics
    from anomaly_detector_ros.evaluation.sweep.run import SweepReport
    from anomaly_detector_ros.evaluation.table.report import Report


def layouts() -> str:
    """For help texts: the data sets, each with its splits."""
    known = {name: ", ".join(DATASETS.get(name).splits) for name in DATASETS.names()}
    listed = [f"{name} (splits {splits})" if splits else name for name, splits in known.items()]
    return f"{', '.join(listed)}, or FILE.py:NAME for your own"


def default_splits(kind: str) -> str:
    """For help texts: what is taken of each data set where nothing is said."""
    chosen = {name: getattr(DATASETS.get(name), kind) for name in DATASETS.names()}
    return ", ".join(
        [*(f"{split} of {name}" for name, split in chosen.items() if split), "else all"]
    )


def evaluate(
    root: Annotated[Path, typer.Option(help="Directory of the data set.")],
    dataset: Annotated[
        str,
        typer.Option(
            help=f"Its layout: {layouts()}. folder: images/ and masks/ (0 nominal, 255 void)."
        ),
    ] = "folder",
    split: Annotated[
        str | None,
        typer.Option(help=f"Part of the data set; default: {default_splits('evaluated_split')}."),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="A row of the table, several times for several; default: the profile."),
    ] = None,
    table1: Annotated[
        bool, typer.Option("--table1", help="Every row of the paper's table.")
    ] = False,
    sweep: Annotated[
        Path | None,
        typer.Option(help="YAML file of grids of settings: every variant of the profile."),
    ] = None,
    edits: Annotated[
        bool, typer.Option("--edits", help="Measure the profile's edits by themselves.")
    ] = False,
    held_out: Annotated[
        list[Path] | None,
        typer.Option(
            help="With --edits: nominal images that neither the denoiser nor --train-root holds; "
            "repeatable."
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(min=1, help="Use only so many of the images, evenly spread."),
    ] = None,
    train_root: Annotated[
        Path | None,
        typer.Option(
            help="Nominal images, for the baselines, the paper's weighted metrics, in a sweep "
            "whitened distances, and with --edits what looks nominal."
        ),
    ] = None,
    train_dataset: Annotated[
        str | None, typer.Option(help="Layout of --train-root; default: as --dataset.")
    ] = None,
    train_split: Annotated[
        str | None,
        typer.Option(help=f"Part of --train-root; default: {default_splits('nominal_split')}."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="JSON file; a table (.md), curves (_curves.png), a gallery (_gallery.jpg) and a "
            "page of the frames (_page/index.html) go beside it."
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Keeps edits, features, masks, maps and what labels hold; default: in the user's "
            "cache."
        ),
    ] = None,
    baselines: Annotated[
        str,
        typer.Option(
            help="Settings of gmm, nearest and flow: ours, or paper for the authors' (FeatUp's "
            "features of every pixel at 546x686, full covariances, a residual flow)."
        ),
    ] = "ours",
    seed: Annotated[int, typer.Option(help="Of the baselines and the intervals.")] = 0,
    grey_range: GreyRangeOption = (0.0, 0.0),
    on_error: OnErrorOption = OnError.SKIP,
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

    --sweep measures variants of the profile instead, beside the rows that --method names: a table
    with the denoiser's passes, and a plot of quality against them (_pareto.png). Snapshots of a
    training run (train --snapshot-every) as denoiser.model give a curve over training as well
    (_training.png).

    --edits measures how sharp and how nominal the profile's edits are, what they change, and
    whether the anomalies are gone from them; --output adds a sheet of them (_edits.jpg).

    Example: anomaly-detector evaluate --edits --dataset ycor --root ycor/test --train-root
    ycor/train --held-out ycor/val --output edits.json

    Example: anomaly-detector evaluate --table1 --dataset rugd --root RUGD --train-root RUGD
    --profile paper_rugd --baselines paper --output rugd.json

    Example: anomaly-detector evaluate --sweep edit.yaml --dataset ycor --root ycor/test
    --train-root ycor/train --method nearest --output edit.json
    """
    if table1 and (method or sweep):
        other = "--method" if method else "--sweep"
        raise UserError(f"--table1 and {other} exclude each other: --table1 holds every row")
    if edits and (table1 or method or sweep):
        raise UserError("--edits measures the profile's edits alone: leave other methods out")
    if edits != bool(held_out):
        raise UserError("--edits and --held-out go together: give both, or neither")
    from anomaly_detector_ros.evaluation.cache import Cache
    from anomaly_detector_ros.evaluation.cached import CachedParts
    from anomaly_detector_ros.evaluation.datasets.base import open_dataset, open_nominal
    from anomaly_detector_ros.evaluation.edits import EditEvaluation
    from anomaly_detector_ros.evaluation.run import Evaluation
    from anomaly_detector_ros.evaluation.sweep.plots import plot_pareto, plot_training
    from anomaly_detector_ros.evaluation.sweep.run import run_sweep
    from anomaly_detector_ros.evaluation.sweep.variants import load_variants
    from anomaly_detector_ros.evaluation.table.methods import DEFAULT_ROWS, TABLE1_ROWS, preset
    from anomaly_detector_ros.weights.registry import cache_directory

    preset(baselines)  # which says so, if there are none
    chosen = load_profile(profile)
    variants = load_variants(sweep, profile) if sweep else []
    needed = [n for p in (chosen, *(v.profile for v in variants)) for n in p.model_names()]
    fetch_missing(list(dict.fromkeys(needed)), offline)
    default = () if variants else DEFAULT_ROWS
    names = TABLE1_ROWS if table1 else tuple(dict.fromkeys(method or default))
    kept = Cache(cache or cache_directory() / "evaluation")
    options = DataOptions(grey_range=parse_grey_range(grey_range))
    tally, unused = (Tally(stop=on_error is OnError.STOP) for _ in range(2))
    with (
        progress_bar("methods") as advance,
        tempfile.TemporaryDirectory(prefix="anomaly-detector-frames-") as folder,
    ):
        data = open_dataset(
            dataset, root, split or DATASETS.get(dataset).evaluated_split, advance, kept
        )
        nominal = (
            open_nominal(train_dataset or dataset, train_root, train_split, advance, kept)
            if train_root
            else None
        )
        data = _readable(data, tally, options, Path(folder, "data"))
        nominal = nominal and _readable(nominal, unused, options, Path(folder, "nominal"))
        evaluation = Evaluation(
            chosen,
            CachedParts(kept, _device_of_this_process(device), offline=offline),
            data,
            nominal,
            baselines=baselines,
            count=count,
            seed=seed,
            tally=tally,
            progress=advance,
        )
        # None on all but the first of several processes.
        swept = run_sweep(evaluation, variants, names) if variants else None
        edited = None
        if held_out:
            kept_out = _kept(picture_files(held_out), tally, options, Path(folder, "held-out"))
            edited = EditEvaluation(evaluation, list(kept_out.values()))
        measured = edited.run() if edited else None
        report = None if variants or edited else evaluation.run(names, strict=not table1)
        if output is not None and edited is not None and measured is not None:
            _write(output, measured, {"_edits.jpg": edited.gallery})
        if output is not None and swept is not None:
            plots = {"_pareto.png": plot_pareto, "_training.png": plot_training}
            _write(output, swept, {name: partial(plot, swept) for name, plot in plots.items()})
        if output is not None and report is not None:
            pictures: dict[str, Callable[[Path], object]] = {"_curves.png": evaluation.plot}
            if "ours" in report.metrics:
                pictures["_gallery.jpg"] = evaluation.gallery
            page = partial(save_evaluation_page, evaluation, report)
            pictures["_page"] = partial(replace_directory, write=page)
            _write(output, report, pictures)
    if output is not None and report is not None:
        index = output.with_name(f"{output.stem}_page") / FILE
        console.print(f"Look at the frames: {index}", markup=False, soft_wrap=True)
    found = swept or measured or report
    if as_json and found is not None:
        typer.echo(json.dumps(found.to_dict(), indent=2))
    elif swept is not None:
        _print_sweep(swept)
    elif measured is not None:
        _print_edits(measured)
    elif report is not None:
        _print_rows(report)
    if found is not None:
        tally.processed = tally.processed or len(evaluation.indices)
        tell(tally)


def _readable(data: Dataset, tally: Tally, options: DataOptions, folder: Path) -> Dataset:
    """The data set without images that cannot be read; see `_kept`."""
    labels = dict(data.pairs)
    kept = _kept(labels, tally, options, folder)
    if not kept:
        tally.check()
    return data.of([(file, labels[image]) for image, file in kept.items()])


def _kept(
    pictures: Iterable[Path], tally: Tally, options: DataOptions, folder: Path
) -> dict[Path, Path]:
    """Of each picture that can be read its file, or a copy in ``folder``, which is made."""
    order: list[Path] = []

    def noted() -> Iterator[Frame]:
        sources = (Source(picture, "picture") for picture in pictures)
        for frame in read_sources(sources, tally, grey_range=options.grey_range):
            order.append(frame.source.file)
            yield frame

    folder.mkdir()
    files = keep_files(noted(), folder, options)
    return dict(zip(order, files, strict=True))


def _device_of_this_process(name: str) -> torch.device:
    """The device to run on; of several processes with the name auto, each takes its own GPU."""
    import torch
    from accelerate import PartialState

    from anomaly_detector_ros.runtime.devices import choose_device

    state = PartialState(cpu=name == "cpu" or not torch.cuda.is_available())
    return state.device if name == "auto" and state.num_processes > 1 else choose_device(name)


def _write(
    output: Path,
    report: Report | SweepReport | EditReport,
    pictures: dict[str, Callable[[Path], object]],
) -> None:
    """Pictures and a Markdown table, and JSON last: whoever finds it finds the others too.

    Args:
        output: the JSON file.
        report: what was measured.
        pictures: what writes each picture, by what its name adds to that of `output`.

    Raises:
        UserError: one cannot be written.
    """
    make_directory(output.parent)
    try:
        for added, save in pictures.items():
            save(output.with_name(output.stem + added))
    except OSError as error:
        raise cannot_write(output, error) from error
    write_atomically(output.with_suffix(".md"), report.to_markdown().encode())
    write_atomically(output, (json.dumps(report.to_dict(), indent=2) + "\n").encode())


def _print_rows(report: Report) -> None:
    """One line for each row of the paper's table."""
    from anomaly_detector_ros.evaluation.table.methods import row_of
    from anomaly_detector_ros.evaluation.table.report import COLUMNS, number

    table = Table("", *COLUMNS, title=f"{report.dataset}, profile {report.profile}", box=None)
    for name, found in report.metrics.items():
        theirs = (found.envelope_auc_pr, found.weighted_auc_pr, found.weighted_f1_star)
        quality = _quality(found)
        quality.insert(2, report.margin(name))
        table.add_row(row_of(name).title, *quality, *map(number, theirs))
    _print(table)
    for name, why in report.not_run.items():
        console.print(f"not run: {row_of(name).title}: {why}", markup=False, soft_wrap=True)


def _print_sweep(report: SweepReport) -> None:
    """One line for each variant, then the rows that were measured beside them."""
    from anomaly_detector_ros.evaluation.table.methods import row_of

    columns = ("AUC-PR", "95%", "AUROC", "FPR95", "F1*", "passes", "multiply-adds", "best in")
    images = report.measured[0].metrics.images
    title = f"{report.dataset}, {images} of {report.dataset_images} images, {report.profile}"
    table = Table("#", "variant", *columns, title=title, box=None)
    for index, each in enumerate(report.measured):
        cost = (str(each.cost.passes), f"{each.relative_multiply_adds:.2f}")
        table.add_row(str(index), each.variant.name, *_quality(each.metrics), *cost, each.best_in())
    for name, found in report.references.items():
        table.add_row("", row_of(name).title, *_quality(found))
    _print(table)


def _print_edits(report: EditReport) -> None:
    """One line for each metric."""
    found = report.quality
    title = (
        f"{report.dataset}, {found.labelled_frames} frames, {found.anomalies} anomalies, "
        f"{found.nominal_frames} nominal frames, profile {report.profile}"
    )
    table = Table("", "", "95% interval", title=title, box=None)
    for row in report.rows():
        table.add_row(*row)
    _print(table)


def _quality(found: Metrics) -> list[str]:
    from anomaly_detector_ros.evaluation.table.report import number

    low, high = found.intervals.get("auc_pr", (math.nan, math.nan))
    return [
        number(found.auc_pr), f"{number(low)}-{number(high)}", number(found.auroc),
        number(found.fpr95), number(found.f1_star),
    ]  # fmt: skip


def _print(table: Table) -> None:
    out = Console()
    # A pipe has no width of its own, and 80 columns are too few.
    (out if out.is_terminal else Console(width=160)).print(table)
