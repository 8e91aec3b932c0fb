"""A rosbag2 recording to a new one that also holds what the detector finds, without a ROS graph."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rosbags.rosbag2 import StoragePlugin, Writer

from anomaly_detector_ros import __version__
from anomaly_detector_ros.bags.journal import BagJournal, FrameResult
from anomaly_detector_ros.bags.outputs import OUTPUTS
from anomaly_detector_ros.bags.passes import BagPass, BagReport
from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.imaging.images import Range
from anomaly_detector_ros.runtime.files import hash_file
from anomaly_detector_ros.runtime.progress import Progress, silent
from anomaly_detector_ros.sources.recordings import BagReader, camera_name, choose_topic

if TYPE_CHECKING:
    from anomaly_detector_ros.detector import Detector
    from anomaly_detector_ros.profiles import Profile

# Humble reads metadata of version 8, not of 9; later releases read both.
_METADATA_VERSION: Literal[8] = 8


def partial_path(output: Path) -> Path:
    """Where an unfinished bag and the journal of its finished frames lie."""
    return output.with_name(output.name + ".partial")


def process_bag(
    source: Path,
    output: Path,
    detector: Detector,
    *,
    topics: Sequence[str] = (),
    outputs: Sequence[str] = tuple(OUTPUTS),
    skip_errors: bool = True,
    resume: bool = False,
    grey_range: Range | None = None,
    progress: Progress = silent,
) -> BagReport:
    """Write `output`: all topics of `source` as they are, and the detector's outputs.

    Outputs carry the stamp and frame id of their frame and its bag timestamp; storage kind and QoS
    profiles are those of the input. The bag appears under its name only when it is complete. Until
    then it lies in `OUTPUT.partial`, with a journal of finished frames; that stays when a run is
    interrupted that finished any.

    Args:
        source: bag directory, or one .mcap or .db3 file.
        output: directory to make.
        detector: runs on every frame of the topics.
        topics: image topics, one for each camera; by default the only one there is.
        outputs: names from :data:`OUTPUTS`.
        skip_errors: skip and count frames that cannot be read, rather than stop.
        resume: take the finished frames of an interrupted run with the same input and settings
            from its journal; the messages of the bag are those of a run in one go.
        grey_range: see `images.to_8_bit`.
        progress: called with frames done and frames in all.

    Raises:
        UserError: missing, truncated or unreadable bag; no or several camera topics; unknown
            output; `output` exists or cannot be written; a bad frame unless `skip_errors`; the
            interrupted run had another input or other settings.
    """
    check_outputs(outputs)
    if output.exists():
        raise UserError(f"'{output}' exists already: remove it or give another output")
    partial = partial_path(output)
    with BagReader(source) as reader:
        chosen = choose_topics(reader, topics)
        settings = describe_settings(outputs, detector.profile, detector.threshold, grey_range)
        job = {"input": describe_input(source, reader), "topic": chosen, **settings}
        _storage(source, output)  # which refuses some names
        try:
            partial.mkdir(parents=True, exist_ok=True)
            with BagJournal(partial / "journal", job, resume=resume) as journal:
                try:
                    shutil.rmtree(partial / output.name, ignore_errors=True)
                    # The storage file takes its directory's name: the final one, from the start.
                    report = write_bag(
                        reader,
                        partial / output.name,
                        detector,
                        chosen,
                        outputs,
                        skip_errors=skip_errors,
                        grey_range=grey_range,
                        progress=progress,
                        known=lambda _: journal.next(),
                        keep=journal.append,
                    )
                    (partial / output.name).replace(output)
                finally:
                    keep = journal.finished and not output.exists()
                    shutil.rmtree(partial / output.name if keep else partial, ignore_errors=True)
        except (OSError, sqlite3.Error) as error:
            with suppress(OSError):
                partial.rmdir()  # where not even the journal could be made
            raise cannot_write(output, error) from error
    return report


def write_bag(
    reader: BagReader,
    output: Path,
    detector: Detector,
    topics: Sequence[str],
    outputs: Sequence[str],
    *,
    skip_errors: bool,
    grey_range: Range | None,
    progress: Progress,
    known: Callable[[str], FrameResult | None],
    keep: Callable[[FrameResult], object] = lambda _: None,
) -> BagReport:
    """Write a bag in one pass over an open one; arguments as in `process_bag` and `BagPass`.

    Raises:
        UserError: the input is damaged, or a frame is bad, unless `skip_errors`.
        OSError, sqlite3.Error: it cannot be written.
    """
    storage = _storage(reader.bag, output)
    with Writer(output, version=_METADATA_VERSION, storage_plugin=storage) as writer:
        job = BagPass(reader, writer, topics, outputs, grey_range, known=known, keep=keep)
        return job.run(detector, skip_errors, progress)


def check_outputs(names: Sequence[str]) -> None:
    """Raises UserError for a name that is not in :data:`OUTPUTS`."""
    unknown = [name for name in names if name not in OUTPUTS]
    if unknown:
        raise UserError(f"unknown output '{unknown[0]}': choose from {', '.join(OUTPUTS)}")


def cannot_write(output: Path, error: Exception) -> UserError:
    """The user's error for a bag that cannot be written."""
    return UserError(
        f"cannot write '{output}' ({one_line(error)}): make room or give another output"
    )


def choose_topics(reader: BagReader, topics: Sequence[str]) -> list[str]:
    """The camera topics asked for, or the only one there is.

    Raises:
        UserError: no such topic, another type, no image topic or several; two of one camera.
    """
    cameras: dict[str, str] = {}
    for topic in topics or (None,):
        chosen = choose_topic(reader, topic)
        other = cameras.setdefault(camera_name(chosen), chosen)
        if other != chosen:
            raise UserError(
                f"'{other}' and '{chosen}' are of one camera, '{camera_name(chosen)}': choose one"
            )
    return list(cameras.values())


def describe_input(source: Path, reader: BagReader) -> list[Any]:
    """What tells a recording from another: its files and topics."""
    files = sorted(file for file in source.iterdir()) if source.is_dir() else [source]
    return [
        [[file.name, file.stat().st_size] for file in files],
        [[c.topic, c.msgtype, c.msgcount] for c in reader.connections],
    ]


def describe_settings(
    outputs: Sequence[str], profile: Profile, threshold: float, grey_range: Range | None
) -> dict[str, Any]:
    """What outputs depend on besides their input, by the words in which an error names it."""
    return {
        "version of this package": __version__,
        "choice of outputs": list(outputs),
        "profile": _by_content(asdict(profile)),
        "threshold": threshold,
        "range of grey values": grey_range,
    }


def _by_content(settings: Any) -> Any:
    """Settings with what files hold in place of their paths: those differ between machines."""
    if isinstance(settings, Mapping):
        return {key: _by_content(value) for key, value in settings.items()}
    if isinstance(settings, list):
        return [_by_content(each) for each in settings]
    path = Path(settings) if isinstance(settings, str) and settings.startswith("/") else None
    if path is not None and path.is_file():
        return hash_file(path)
    if path is not None and path.is_dir():
        return sorted([file.name, file.stat().st_size] for file in path.rglob("*"))
    return settings


def _storage(bag: Path, output: Path) -> StoragePlugin:
    names = [bag.name] if bag.is_file() else [file.name for file in bag.iterdir()]
    if not any(".db3" in name for name in names):
        return StoragePlugin.MCAP
    # rosbags gives the name to SQLite as an address, in which these have a meaning.
    if any(mark in str(output) for mark in "?#%"):
        raise UserError(f"'{output}': a name with ?, # or % is no place for a .db3 file: rename it")
    return StoragePlugin.SQLITE3
