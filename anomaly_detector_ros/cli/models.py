"""`anomaly-detector models`: list, fetch, check, convert and export them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from anomaly_detector_ros.cli.common import (
    JsonOption,
    OfflineOption,
    ProfileOption,
    console,
    download_bar,
    parse_size,
)
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.profiles import DEFAULT_PROFILE, load_profile, profile_names
from anomaly_detector_ros.weights.registry import FileStatus, Registry

app = typer.Typer(
    name="models",
    help="The models: list, fetch and verify them, convert published ones, export to ONNX.",
    no_args_is_help=True,
)


@app.command("list")
def list_models(as_json: JsonOption = False) -> None:
    """List the models of the registry, and which of them are here.

    Example: anomaly-detector models list
    """
    registry = Registry.default()
    rows = [_summary(registry, name) for name in registry.names()]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table("model", "state", "size", "licence", "what", box=None)
    for row in rows:
        size = f"{row['bytes'] / 1e6:.1f} MB" if row["bytes"] else "-"
        table.add_row(row["name"], row["state"], size, row["licence"], row["title"])
    Console().print(table)


@app.command()
def fetch(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Models; default: those of the profile."),
    ] = None,
    profile: ProfileOption = DEFAULT_PROFILE,
    offline: OfflineOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fetch models into the cache; what is here and intact is left as it is.

    Example: anomaly-detector models fetch mobile_sam
    """
    registry = Registry.default()
    wanted = names or load_profile(profile).model_names()
    results = []
    with download_bar() as listener:
        for name in wanted:
            start = time.monotonic()
            path = registry.fetch(name, offline=offline, progress=listener)
            seconds = round(time.monotonic() - start, 3)
            results.append({"name": name, "path": str(path), "seconds": seconds})
    if as_json:
        typer.echo(json.dumps(results, indent=2))
        return
    for result in results:
        typer.echo(f"{result['name']}: {result['path']}")


@app.command()
def verify(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Models; default: all that are here."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Hash the files of models; fails when one is missing or altered.

    Example: anomaly-detector models verify
    """
    registry = Registry.default()
    wanted = names or [n for n in registry.names() if _summary(registry, n)["state"] != "absent"]
    if not wanted:
        raise UserError("no model is here yet: run `anomaly-detector models fetch`")
    with download_bar() as listener:
        found = {name: registry.verify(name, progress=listener) for name in wanted}
    _print_statuses(found, as_json)
    bad = [name for name, files in found.items() if any(file.state != "ok" for file in files)]
    if bad:
        shipped = all(registry.entry(name).shipped for name in bad)
        remedy = "install the package again" if shipped else (
            f"run `anomaly-detector models fetch {' '.join(bad)}`"
        )  # fmt: skip
        raise UserError(f"missing or altered: {', '.join(bad)}: {remedy}")


def _print_statuses(found: dict[str, list[FileStatus]], as_json: bool) -> None:
    if as_json:
        rows = [
            {"model": name, "file": file.name, "state": file.state, "bytes": file.bytes,
             "sha256": file.sha256, "path": str(file.path)}
            for name, files in found.items() for file in files
        ]  # fmt: skip
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table("model", "file", "state", "sha256", box=None)
    for name, files in found.items():
        for file in files:
            table.add_row(name, file.name, file.state, (file.sha256 or "-")[:16])
    Console().print(table)


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="File of denoising-diffusion-pytorch.")],
    output: Annotated[
        Path | None, typer.Option(help="Directory to write: new, empty or an earlier conversion.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="In place of --output: the registry's model it stands for.")
    ] = None,
    image_size: Annotated[
        str | None, typer.Option(help="HEIGHTxWIDTH the model was trained at, for the record.")
    ] = None,
    prediction_type: Annotated[
        str | None,
        typer.Option(
            help="v_prediction, epsilon or sample; default: what the file's loss weights tell."
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="ema (averaged) or online; default: ema where the file has them."),
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Write float16 weights.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Convert a checkpoint of denoising-diffusion-pytorch (1.8 to 2.x) to a model directory.

    Example: anomaly-detector models convert model-10.pt --output my_models/rugd
    """
    from anomaly_detector_ros.synthesis.denoisers.lucidrains_checkpoint import (
        read_checkpoint,
        save_converted,
    )

    if output is None:
        output = _provided_directory(name)
    elif name is not None:
        raise UserError("--output and --name exclude each other: give one of them")
    size = None if image_size is None else parse_size(image_size, "--image-size")
    model = read_checkpoint(checkpoint, weights=weights, prediction_type=prediction_type)
    config = save_converted(model, output, source=checkpoint, image_size=size, half=half)
    if as_json:
        typer.echo(json.dumps({"path": str(output), **config}, indent=2))
        return
    count = sum(parameter.numel() for parameter in model.unet.parameters())
    typer.echo(
        f"{output}: {count / 1e6:.1f} million parameters ({config['weights']}), "
        f"{config['prediction_type']}, {config['num_train_timesteps']} timesteps, "
        f"{config['beta_schedule']} schedule"
    )


def _provided_directory(name: str | None) -> Path:
    """Where a model that users provide belongs."""
    registry = Registry.default()
    provided = [known for known in registry.names() if registry.entry(known).by_hand]
    if name not in provided:
        raise UserError(f"give --output DIR, or --name with one of {', '.join(provided)}")
    return registry.directory(name)


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="A denoiser: registry name or model directory.")],
    output: Annotated[Path, typer.Option(help="Directory to write: new, empty or an export.")],
    size: Annotated[
        str | None,
        typer.Option(help="HEIGHTxWIDTH of the images; default: of a profile with this model."),
    ] = None,
    half: Annotated[
        bool, typer.Option("--half", help="Convolutions and products in float16, for GPUs.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Export a denoiser to ONNX, for ONNX Runtime and TensorRT; a profile takes it as its model.

    Example: anomaly-detector models export offroad_small --output my_models/offroad_onnx
    """
    from anomaly_detector_ros.synthesis.denoisers.onnx_export import export_denoiser

    image_size = _profile_size(model) if size is None else parse_size(size, "--size")
    directory = Path(model)
    if not directory.is_dir():
        directory = Registry.default().path(model, verify=True)
    with console.status(f"exporting '{model}'"):
        config = export_denoiser(directory, output, size=image_size, half=half)
    if as_json:
        shown = {key: value for key, value in config.items() if key != "betas"}
        typer.echo(json.dumps({"path": str(output), **shown}, indent=2))
        return
    typer.echo(
        f"{output}: {image_size[0]}x{image_size[1]}, {'float16' if half else 'float32'}, "
        f"differs from torch's output by at most {config['max_abs_difference']:.1e}"
    )


def _profile_size(model: str) -> tuple[int, int]:
    """The size at which the first profile with this denoiser runs it."""
    for name in profile_names():
        settings = load_profile(name).denoiser
        if settings["model"] == model:
            height, width = settings["size"]
            return height, width
    raise UserError(f"no profile runs '{model}': give --size HEIGHTxWIDTH")


def _summary(registry: Registry, name: str) -> dict[str, Any]:
    """One model for `list`: `state` is present, incomplete (or of a wrong size), or absent."""
    entry = registry.entry(name)
    directory = registry.directory(name)
    try:
        registry.path(name)
        state = "present"
    except UserError:
        some = any((directory / file.name).exists() for file in entry.files)
        state = "incomplete" if some else "absent"
    return {
        "name": name,
        "state": state,
        "title": entry.title,
        "licence": entry.licence,
        "project": entry.project,
        "bytes": entry.bytes,
        "shipped": entry.shipped is not None,
        "path": str(directory),
    }
