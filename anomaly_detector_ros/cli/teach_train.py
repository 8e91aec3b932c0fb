"""`anomaly-detector teach --train`: a denoiser of one's own besides, and what each brought."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.table import Table

from anomaly_detector_ros.cli.common import console, progress_bar, tell, write_atomically
from anomaly_detector_ros.cli.nominal import DataOptions, keep_files
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.sources.frames import Source, read_sources
from anomaly_detector_ros.sources.tally import Tally
from anomaly_detector_ros.training.defaults import SHIPPED_AUTOENCODER

if TYPE_CHECKING:
    from anomaly_detector_ros.building import Parts
    from anomaly_detector_ros.detector import Detector
    from anomaly_detector_ros.profiles import Profile

MOST = 2000
"""Frames that are trained on, at most; of longer drives every so many."""
_UNITS = {"s": 1, "min": 60, "h": 3600}


def parse_duration(text: str) -> float:
    """'60min' as seconds; raises UserError.

    >>> parse_duration("90s"), parse_duration("1.5h")
    (90.0, 5400.0)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(s|min|h)", text.strip())
    if not found or not float(found[1]):
        raise UserError(f"--train '{text}' is no duration: give for example 60min, 90s or 2h")
    return float(found[1]) * _UNITS[found[2]]


class Drive:
    """All frames of a drive as picture files, the last fifth of them held out.

    Args:
        sources: of the frames, in their order.
        options: how to read them.
        tally: counts them.
        folder: takes those of recordings and videos.
    """

    def __init__(
        self, sources: list[Source], options: DataOptions, tally: Tally, folder: Path
    ) -> None:
        from anomaly_detector_ros.training.trainer import MIN_IMAGES

        step = max(1, -(-sum(source.expected() for source in sources) // MOST))
        frames = read_sources(sources, tally, stride=step, grey_range=options.grey_range)
        with progress_bar("reading") as advance:
            files = keep_files(frames, folder, options, advance)
        tally.processed += len(files)
        cut = len(files) - max(1, len(files) // 5)
        self.known, self.held_out = files[:cut], files[cut:]
        if len(self.known) < MIN_IMAGES:
            tell(tally)
            raise UserError(
                f"too few frames to train on and hold a fifth out ({len(files)}): give "
                f"{math.ceil(MIN_IMAGES / 0.8)} at least, better some hundreds"
            )


def trained_profile(
    profile: Profile, parts: Parts, drive: Drive, output: Path, seconds: float, device: str
) -> tuple[Profile, Path]:
    """The profile with a denoiser trained on a drive, and the file it is written to.

    The training starts from the profile's denoiser, and the same command goes on with it. The
    memory and the shipped scores stay; what is taught afterwards fits the scores of this terrain.

    Args:
        output: file of lessons; the others have names like it.
        seconds: how long to train.
    """
    from anomaly_detector_ros.building import fingerprint
    from anomaly_detector_ros.cli.train import train
    from anomaly_detector_ros.weights.loading import is_path

    denoiser = profile.parts.denoiser
    folder = (
        Path(denoiser.model) if is_path(denoiser.model) else parts.registry.path(denoiser.model)
    )
    run = output.with_name(f"{output.stem}_denoiser")
    latent = (folder / "vae").is_dir()
    with redirect_stdout(sys.stderr):  # what teach prints is its own
        train(
            data=drive.known,
            validation=drive.held_out,
            output=run,
            stage="denoiser" if latent else "pixels",
            autoencoder=str(folder) if latent else SHIPPED_AUTOENCODER,
            size="x".join(map(str, denoiser.size)),
            init=folder,
            enlarge=True,  # as the detector does with frames of a small camera
            learning_rate=2e-4,
            min_sharpness=0.0,
            max_seconds=seconds,
            device=device,
        )
    changed = replace(
        profile,
        name=output.stem,
        denoiser={**profile.denoiser, "model": str(run.absolute() / "model")},
        calibration={},
        lessons={},
    )
    calibration = parts.calibration(profile)
    assert calibration is not None  # its detector was taught
    file = output.with_name(f"{output.stem}_calibration.safetensors")
    of = fingerprint(changed, parts.registry)
    replace(calibration, fingerprint=of, shared="", lessons=None).save(file)
    lessons = output.with_name(f"{output.stem}_trained.safetensors")
    if lessons.exists():  # of an earlier run's denoiser
        lessons.replace(lessons.with_name(f"{output.stem}_trained_before.safetensors"))
    written = changes_of(
        profile,
        denoiser={"model": f"./{run.name}/model"},
        calibration={"file": file.name},
        lessons={"file": lessons.name},
    )
    target = output.with_suffix(".yaml")
    write_atomically(target, yaml.safe_dump({output.stem: written}, sort_keys=False).encode())
    return replace(changed, calibration={"file": str(file)}), target


def changes_of(profile: Profile, **changes: Mapping[str, Any]) -> dict[str, Any]:
    """What a profile file says of another one with some settings of its parts changed.

    It names an installed profile as its base; of all others it repeats what they say.
    """
    from anomaly_detector_ros.profiles import load_profile, profile_names

    if profile.name in profile_names() and profile == load_profile(profile.name):
        return {"base": profile.name, **changes}
    said = {name: value for name, value in asdict(profile).items() if name != "name" and value}
    for part, settings in changes.items():
        said[part] = {**said.get(part, {}), **settings}
    plain: dict[str, Any] = _plain(said)
    return plain


def measured(detector: Detector, drive: Drive) -> dict[str, Any]:
    """What a detector makes of the frames held out, which are nominal."""
    from anomaly_detector_ros.fitting import measure

    with progress_bar("held-out frames") as advance:
        (rate,) = measure(
            detector, drive.held_out, rates=(1 - detector.threshold,), progress=advance
        )
    return rate.to_dict()


def print_measured(rows: Mapping[str, Mapping[str, Any]], frames: int) -> None:
    """A table of what `measured` gave."""
    table = Table(
        *("detector", "false-positive rate", "95%"),
        title=f"on the last {frames} frames of the drive, which none of them knows",
        box=None,
    )
    for name, row in rows.items():
        between = "" if row["low"] is None else f"{row['low']:.4f}-{row['high']:.4f}"
        table.add_row(name, f"{row['measured']:.4f}", between)
    console.print(table)


def _plain(value: Any) -> Any:
    """Mappings and lists of plain values, as YAML writes them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value
