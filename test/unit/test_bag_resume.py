"""Runs over a bag that are killed and resumed: real processes, ended with SIGKILL."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rosbags.rosbag2 import Reader, StoragePlugin
from support.bag_files import START, STORAGES, contents, image_bytes, pictures, write_bag
from typer.testing import CliRunner

from anomaly_detector_ros.bags.journal import BagJournal, FrameResult
from anomaly_detector_ros.bags.processing import partial_path, process_bag
from anomaly_detector_ros.cli.main import app
from anomaly_detector_ros.detection import Detection
from anomaly_detector_ros.detector import Detector
from anomaly_detector_ros.distances.cosine import CosineDistance
from anomaly_detector_ros.errors import UserError

FRAMES = 6
TOPICS = ["/left/image_raw", "/right/image_raw"]
OUTPUTS = ["mask", "heatmap", "overlay/compressed"]


class Counting:
    """A detector that leaves a byte in a file for every frame, and takes its time."""

    def __init__(self, detector: Detector, file: Path, pause: float = 0.0) -> None:
        self.detector, self.file, self.pause = detector, file, pause
        self.profile, self.threshold = detector.profile, detector.threshold

    def detect(self, image: np.ndarray, **options: Any) -> Detection:
        with self.file.open("ab") as out:
            out.write(b".")
        time.sleep(self.pause)
        return self.detector.detect(image, **options)

    def calls(self) -> int:
        return self.file.stat().st_size if self.file.exists() else 0


class Levelled(CosineDistance):
    """A distance by which what is found in a frame depends on those before it."""

    frame_level = 0.5


@pytest.fixture(scope="session")
def detector(light_profile: str) -> Detector:
    found = Detector.from_profile(light_profile, device="cpu", offline=True)
    found.distance = Levelled()
    return found


@pytest.fixture(params=STORAGES, ids=lambda s: s.name.lower())
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    frames = [image_bytes(pictures()[i % 3], i) for i in range(FRAMES)]
    return write_bag(tmp_path / "in", request.param, frames, TOPICS)


def run(source: Path, output: Path, detector: object, **options: object) -> object:
    return process_bag(source, output, detector, topics=TOPICS, outputs=OUTPUTS, **options)  # type: ignore[arg-type]


def everything(bag: Path) -> tuple[list[object], list[object]]:
    """All messages in the order in which a player gives them, and the connections."""
    with Reader(bag) as reader:
        connections = [
            (c.topic, c.msgtype, c.msgdef, c.digest, c.msgcount, c.ext) for c in reader.connections
        ]
        messages = [(c.topic, stamp, bytes(raw)) for c, stamp, raw in reader.messages()]
    return messages, connections


def killed_run(source: Path, output: Path, detector: Counting, after: int, delay: float) -> None:
    """Resume in a process of its own and kill it `delay` s after its detector's call `after`."""
    process = multiprocessing.get_context("fork").Process(
        target=run, args=(source, output, detector), kwargs={"resume": True}
    )
    start = detector.calls()
    process.start()
    until = time.monotonic() + 30
    while detector.calls() < start + after and process.is_alive() and time.monotonic() < until:
        time.sleep(0.002)
    time.sleep(delay)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(10)
    assert process.exitcode == -signal.SIGKILL


def test_killed_again_and_again_the_bag_is_that_of_one_go(
    source: Path, tmp_path: Path, detector: Detector
) -> None:
    run(source, tmp_path / "whole", detector)
    output = tmp_path / "out"
    slow = Counting(detector, tmp_path / "calls", pause=0.1)
    kills = [(0, 0.0), (1, 0.05), (2, 0.0), (3, 0.12), (2, 0.08)]
    for after, delay in kills:
        killed_run(source, output, slow, after, delay)
        assert not output.exists()
    report = run(source, output, slow, resume=True)
    assert everything(output) == everything(tmp_path / "whole")
    assert not partial_path(output).exists()
    assert report.frames == 2 * FRAMES
    assert report.resumed >= 3
    # A kill costs the frame in the detector, the one behind it and the one being written.
    assert slow.calls() <= 2 * FRAMES + 2 * len(kills)


@pytest.mark.parametrize("storage", [StoragePlugin.MCAP])
def test_any_cut_of_the_journal_gives_the_same_bag(
    tmp_path: Path, detector: Detector, storage: StoragePlugin
) -> None:
    frames = [image_bytes(picture, i) for i, picture in enumerate(pictures())]
    frames[1] = frames[1].replace(b"rgb8", b"xyz8")
    source = write_bag(tmp_path / "in", storage, frames, ["/camera/image_raw"])
    process_bag(source, tmp_path / "whole", detector, outputs=["mask"])

    def interrupt(done: int, _: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    output = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        process_bag(source, output, detector, outputs=["mask"], progress=interrupt)
    assert sorted(p.name for p in partial_path(output).iterdir()) == ["journal"]
    journal = partial_path(output) / "journal"
    whole = journal.read_bytes()
    for share, resumed in ((0.0, 0), (0.01, 0), (0.9, 2), (0.999, 2), (1.0, 3)):
        partial_path(output).mkdir(exist_ok=True)
        journal.write_bytes(whole[: int(len(whole) * share)])
        counting = Counting(detector, tmp_path / f"calls{share}")
        report = process_bag(source, output, counting, outputs=["mask"], resume=True)  # type: ignore[arg-type]
        assert (report.frames, report.skipped) == (2, 1)
        assert (report.resumed, counting.calls()) == (resumed, 2 - resumed + (resumed > 1))
        assert contents(output) == contents(tmp_path / "whole")
        for file in output.iterdir():
            file.unlink()
        output.rmdir()


def test_without_resume_it_starts_anew(source: Path, tmp_path: Path, detector: Detector) -> None:
    slow = Counting(detector, tmp_path / "calls", pause=0.05)
    killed_run(source, tmp_path / "out", slow, 3, 0.0)
    fresh = Counting(detector, tmp_path / "fresh")
    assert run(source, tmp_path / "out", fresh).resumed == 0
    assert fresh.calls() == 2 * FRAMES


def test_other_settings_or_another_input_are_refused(
    source: Path, tmp_path: Path, detector: Detector
) -> None:
    output = tmp_path / "out"
    killed_run(source, output, Counting(detector, tmp_path / "calls", pause=0.05), 4, 0.0)
    other = Counting(detector, tmp_path / "calls")
    other.threshold = 0.9
    with pytest.raises(UserError, match=r"another threshold: .* start anew without --resume"):
        run(source, output, other, resume=True)
    with pytest.raises(UserError, match="another topic"):
        process_bag(source, output, detector, topics=TOPICS[:1], outputs=OUTPUTS, resume=True)
    next(iter(source.iterdir())).with_name("note.txt").write_text("more")
    with pytest.raises(UserError, match="another input"):
        run(source, output, detector, resume=True)
    assert (partial_path(output) / "journal").exists()


def test_an_interruption_before_the_first_frame_leaves_nothing(
    source: Path, tmp_path: Path, detector: Detector
) -> None:
    class Stopped(Counting):
        def detect(self, image: np.ndarray, **options: Any) -> Detection:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "out", Stopped(detector, tmp_path / "calls"))
    assert not list(tmp_path.glob("out*"))


def test_two_processes_do_not_write_one_bag(
    source: Path, tmp_path: Path, detector: Detector
) -> None:
    partial = partial_path(tmp_path / "out")
    partial.mkdir()
    with (
        BagJournal(partial / "journal", {}, resume=False),
        pytest.raises(UserError, match="another process is writing"),
    ):
        run(source, tmp_path / "out", detector)
    assert (partial / "journal").exists()


def test_journal_gives_back_what_was_added(tmp_path: Path) -> None:
    results = [
        FrameResult({"mask": b"abc", "overlay/compressed": b""}, level=0.25),
        FrameResult(error="no picture"),
        FrameResult({"mask": bytes(START.to_bytes(8, "big"))}),
    ]
    with BagJournal(tmp_path / "journal", {"threshold": 0.5}, resume=True) as journal:
        assert journal.left == 0
        for result in results:
            journal.append(result)
    with BagJournal(tmp_path / "journal", {"threshold": 0.5}, resume=True) as journal:
        assert journal.left == 3
        assert [journal.next() for _ in range(3)] == results
    damaged = bytearray((tmp_path / "journal").read_bytes())
    damaged[-3] ^= 1
    (tmp_path / "journal").write_bytes(damaged)
    with BagJournal(tmp_path / "journal", {"threshold": 0.5}, resume=True) as journal:
        assert journal.left == 2


def test_command_with_two_cameras_resumes(
    source: Path, tmp_path: Path, detector: Detector, light_profile: str
) -> None:
    output = tmp_path / "out"
    killed_run(source, output, Counting(detector, tmp_path / "calls", pause=0.05), 5, 0.0)
    command = ["bag", str(source), "--output", str(output), "--profile", light_profile]
    command += ["--device", "cpu", "--offline", "--outputs", ",".join(OUTPUTS), "--json"]
    command += [part for topic in TOPICS for part in ("--topic", topic)]
    result = CliRunner().invoke(app, [*command, "--resume"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [(c["camera"], c["frames"]) for c in report["cameras"]] == [("left", 6), ("right", 6)]
    assert report["resumed"] >= 2
    assert (report["frames"], report["skipped"]) == (2 * FRAMES, 0)
    again = CliRunner().invoke(app, [*command, "--resume"])
    assert "exists already" in str(again.exception)
