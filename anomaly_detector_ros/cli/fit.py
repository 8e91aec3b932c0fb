"""`anomaly-detector fit`: the baselines, fitted on nominal images."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anomaly_detector_ros.cli.common import (
    DeviceOption,
    JsonOption,
    OfflineOption,
    ProfileOption,
    cannot_write,
    console,
    make_directory,
    progress_bar,
)
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.profiles import DEFAULT_PROFILE, load_profile

if TYPE_CHECKING:
    from anomaly_detector_ros.features.extractors import FeatureExtractor


def fit(
    method: Annotated[
        str,
        typer.Argument(help="Baseline by name, or FILE.py:NAME; an unknown name lists the known."),
    ],
    data: Annotated[
        list[Path],
        typer.Option(help="Nominal images, or folders of them, searched recursively; repeatable."),
    ],
    output: Annotated[Path, typer.Option(help="File to save the baseline in (.safetensors).")],
    features: Annotated[
        str | None, typer.Option(help="Features by name; default: those of the profile.")
    ] = None,
    profile: ProfileOption = DEFAULT_PROFILE,
    count: Annotated[int, typer.Option(min=1, help="Feature vectors to draw.")] = 50_000,
    seed: Annotated[int, typer.Option(min=0, help="Of the drawing and the fit.")] = 0,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="The method's setting; repeatable; an unknown one lists the known.",
        ),
    ] = None,
    device: DeviceOption = "auto",
    offline: OfflineOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fit a baseline on nominal images: draws feature vectors from them, fits, saves one file.

    Example: anomaly-detector fit gmm --data nominal_images/ --output gmm.safetensors
    """
    from anomaly_detector_ros.baselines.base import BASELINES
    from anomaly_detector_ros.features.sampling import sample_features

    baseline = BASELINES.read({**parse_settings(settings or []), "name": method})
    overrides = {"features": {"name": features}} if features else None
    described = dict(load_profile(profile, overrides=overrides).features)
    files = _find_files(data)
    make_directory(output.parent)
    extractor = _load_features(described, device, offline)

    start = time.monotonic()
    with progress_bar("features", len(files)) as advance:
        vectors = sample_features(extractor, files, count, seed, advance)
    extracted = time.monotonic()
    with progress_bar(baseline.name) as advance:
        result = baseline.fit(vectors, seed, advance, described)
    fitted = time.monotonic()
    try:
        result.save(output)
    except OSError as error:
        raise cannot_write(output, error) from error

    summary = {
        "method": baseline.name,
        "settings": asdict(baseline),
        "features": described,
        "channels": result.channels,
        "images": len(files),
        "vectors": len(vectors),
        "extraction_seconds": round(extracted - start, 3),
        "fit_seconds": round(fitted - extracted, 3),
        "output": str(output),
    }
    _print(summary, as_json)


def parse_settings(texts: list[str]) -> dict[str, Any]:
    """Settings as typed: JSON values, and anything else as text.

    >>> parse_settings(["components=10", "pca_dims=null", "metric=l2"])
    {'components': 10, 'pca_dims': None, 'metric': 'l2'}
    """
    parsed: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise UserError(f"--set '{text}' is not NAME=VALUE: give for example components=10")
        try:
            parsed[name] = json.loads(value)
        except json.JSONDecodeError:
            parsed[name] = value
    return parsed


def _find_files(data: list[Path]) -> list[Path]:
    from anomaly_detector_ros.imaging.images import find_images

    files: list[Path] = []
    for given in data:
        # A labelled data set's labels are picture files too.
        folder = given / "images" if (given / "images").is_dir() else given
        files += [given] if given.is_file() else find_images(folder)
    return files


def _load_features(settings: dict[str, Any], device: str, offline: bool) -> FeatureExtractor:
    from anomaly_detector_ros.cli.models import fetch_missing
    from anomaly_detector_ros.features.extractors import make_features, weights_needed
    from anomaly_detector_ros.runtime.devices import choose_device
    from anomaly_detector_ros.weights.registry import Registry

    name, chosen = settings["name"], choose_device(device)
    fetch_missing(weights_needed(name, settings), offline)
    with console.status(f"loading the features '{name}'"):
        return make_features(name, settings, Registry.default(), chosen, offline=offline)


def _print(summary: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
        return
    typer.echo(
        f"{summary['method']} of {summary['vectors']} {summary['features']['name']} vectors "
        f"({summary['channels']} channels) from {summary['images']} images: "
        f"features {summary['extraction_seconds']:.1f} s, fit {summary['fit_seconds']:.1f} s"
    )
    typer.echo(f"saved: {summary['output']}")
