"""Work that processes share and are killed at: the results are those of one process."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from rosbags.rosbag2 import Reader, StoragePlugin
from support.bag_files import image_bytes, write_bag
from support.waiting import wait_until
from typer.testing import CliRunner

from anomaly_detector_ros.bags import many
from anomaly_detector_ros.bags.processing import describe_settings, process_bag
from anomaly_detector_ros.calibration.level import StreamLevels, levels_before
from anomaly_detector_ros.cli import bag as bag_command
from anomaly_detector_ros.cli import common, detect
from anomaly_detector_ros.cli.main import app
from anomaly_detector_ros.detection import Detection
from anomaly_detector_ros.detector import Detector
from anomaly_detector_ros.distances.cosine import CosineDistance
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.runtime import worklist
from anomaly_detector_ros.runtime.worklist import WorkList, share

SLICE = 4
PAUSE = 0.01
TWO = ["/left/image_raw", "/right/image_raw"]


class Levelled(CosineDistance):
    """A distance by which what is found in a frame depends on those before it."""

    frame_level = 0.5


class Counting:
    """A detector that leaves a byte in a file for every frame, and takes its time."""

    def __init__(self, detector: Detector, file: Path) -> None:
        self.detector, self.file = detector, file
        self.profile, self.threshold = detector.profile, detector.threshold
        self.distance, self.denoiser = detector.distance, detector.denoiser
        self.calibrated = detector.calibrated

    def detect(self, image: np.ndarray, **options: Any) -> Detection:
        with self.file.open("ab") as out:
            out.write(b".")
        time.sleep(PAUSE)
        return self.detector.detect(image, **options)

    def calls(self) -> int:
        return self.file.stat().st_size if self.file.exists() else 0


@pytest.fixture(scope="module")
def plain(light_profile: str) -> Detector:
    found = Detector.from_profile(light_profile, device="cpu", offline=True)
    found.distance = Levelled()
    return found


@pytest.fixture
def detector(plain: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Counting:
    """Used by the commands too; pieces are small, and nobody waits long."""
    counting = Counting(plain, tmp_path / "calls")
    monkeypatch.setattr(many, "SLICE", SLICE)
    monkeypatch.setattr(detect, "PART", SLICE)
    monkeypatch.setattr(worklist, "_POLL", 0.02)
    for command in (detect, bag_command):
        monkeypatch.setattr(command, "load_detector", lambda *_, **__: counting)
    return counting


def frames(count: int, seed: int) -> list[bytes]:
    """Dark and bright ones, so that their levels differ."""
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 256, (count, 34, 51, 3), np.uint8)
    return [image_bytes(p // (1 + i % 4), i) for i, p in enumerate(pictures)]


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """A folder of a short one, a long one with a bad frame, and one of two cameras."""
    long = frames(26, 1)
    long[17] = long[17].replace(b"rgb8", b"xyz8")
    for name, storage, content, topics in (
        ("a", StoragePlugin.SQLITE3, frames(3, 0), TWO[:1]),
        ("b", StoragePlugin.MCAP, long, TWO[:1]),
        ("c", StoragePlugin.MCAP, frames(9, 2), TWO[:1]),
    ):
        write_bag(tmp_path / "in" / "deep" / name, storage, content, topics)
    return tmp_path / "in"


def everything(bag: Path) -> tuple[list[object], list[object]]:
    """All messages in the order in which a player gives them, and the connections."""
    with Reader(bag) as reader:
        connections = [
            (c.topic, c.msgtype, c.msgdef, c.digest, c.msgcount, c.ext) for c in reader.connections
        ]
        messages = [(c.topic, stamp, bytes(raw)) for c, stamp, raw in reader.messages()]
    return messages, connections


def run(*words: object, code: int = 0, **environment: str) -> str:
    """Standard output of a command."""
    result = CliRunner().invoke(app, [str(word) for word in words], env=environment)
    assert result.exit_code == code, result.output + repr(result.exception)
    return result.stdout


def start(work: Callable[[], object]) -> BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def share_and_kill(work: Callable[[], object], detector: Counting, kills: int) -> None:
    """Two processes at work, of which now and then one is killed and another started."""
    chance = random.Random(kills)
    running = [start(work), start(work)]
    for _ in range(kills):
        until = detector.calls() + chance.randrange(1, 12)
        wait_until(lambda: detector.calls() >= until or not any(p.is_alive() for p in running))  # noqa: B023
        victim = running.pop(chance.randrange(2))
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGKILL)
        running.append(start(work))  # while that one is not even waited for
    for process in running:
        process.join(60)
        assert process.exitcode == 0


def test_recordings_shared_by_processes_that_are_killed(
    tmp_path: Path, recordings: Path, plain: Detector, detector: Counting
) -> None:
    command = ["bag", recordings, "--output", tmp_path / "out", "--outputs", "mask,heatmap"]
    share_and_kill(lambda: run(*command), detector, kills=3)
    calls = detector.calls()
    for name, count in (("a", 3), ("b", 25), ("c", 9)):
        source, whole = recordings / "deep" / name, tmp_path / "whole" / name
        assert process_bag(source, whole, plain, outputs=["mask", "heatmap"]).frames == count
        assert everything(tmp_path / "out" / name) == everything(whole)
    # A kill costs at most a slice, and the frames before the next one that is begun.
    assert calls <= 37 + 6 * (SLICE + 2 * 14)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "a", "b", "c", "results.jsonl", "summary.json",
    }  # fmt: skip
    printed = json.loads(run(*command, "--json"))  # once more: all is done
    assert detector.calls() == calls
    assert [(line["frames"], line["skipped"]) for line in printed] == [(3, 0), (25, 1), (9, 0)]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["read"], summary["processed"]) == (38, 37)
    assert summary["skipped"] == {"unreadable": 1}


def test_one_long_recording_of_two_cameras(
    tmp_path: Path, plain: Detector, detector: Counting
) -> None:
    source = write_bag(tmp_path / "in", StoragePlugin.SQLITE3, frames(12, 3), TWO)
    output = tmp_path / "out"
    command = ["bag", source, "--output", output, "--share", "--outputs", "mask,heatmap"]
    command += [part for topic in TWO for part in ("--topic", topic)]
    share_and_kill(lambda: run(*command), detector, kills=2)
    process_bag(source, tmp_path / "whole", plain, topics=TWO, outputs=["mask", "heatmap"])
    assert everything(output) == everything(tmp_path / "whole")
    assert not list(tmp_path.glob("out?*"))
    assert json.loads(run(*command, "--json"))["frames"] == 24


def test_pictures_a_video_and_a_recording_shared(
    tmp_path: Path, recordings: Path, detector: Counting
) -> None:
    rng = np.random.default_rng(5)
    film = cv2.VideoWriter(str(tmp_path / "film.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 5, (48, 32))
    for index in range(18):
        picture = rng.integers(0, 256, (32, 48, 3), np.uint8) // (1 + index % 3)
        film.write(picture)
        cv2.imwrite(str(tmp_path / f"p{index % 5}.png"), picture)
    film.release()
    (tmp_path / "p1.png").write_bytes(b"no picture")
    inputs = [*sorted(tmp_path.glob("p?.png")), tmp_path / "film.avi", recordings / "deep" / "b"]
    run("detect", *inputs, "--output", tmp_path / "one")
    run("detect", tmp_path / "p0.png", "--output", tmp_path / "two", "--overwrite")
    command = ["detect", *inputs, "--output", tmp_path / "two", "--overwrite", "--share"]
    share_and_kill(lambda: run(*command), detector, kills=2)

    def results(folder: Path) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
        return [{k: v for k, v in line.items() if k != "timings"} for line in lines]

    assert results(tmp_path / "two") == results(tmp_path / "one")
    assert len(results(tmp_path / "two")) == 4 + 18 + 25
    made = {file.name for file in (tmp_path / "one").iterdir()}
    assert {file.name for file in (tmp_path / "two").iterdir()} == {*made, "summary.json"}
    for name in made - {"results.jsonl", "index.html", "index_files"}:
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    summary = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert (summary["processed"], summary["skipped"]) == (47, {"unreadable": 2})


def test_a_recording_that_is_damaged_does_not_stop_the_others(
    tmp_path: Path, recordings: Path, detector: Counting
) -> None:
    file = next((recordings / "deep" / "b").glob("*.mcap"))
    file.write_bytes(file.read_bytes()[:5000])
    result = CliRunner().invoke(app, ["bag", str(recordings), "--output", str(tmp_path / "out")])
    assert "truncated" in str(result.exception)
    assert [p.name for p in sorted((tmp_path / "out").iterdir()) if p.is_dir()] == ["a", "c"]
    assert not (tmp_path / "out" / ".shared").exists()


def test_another_job_is_refused(tmp_path: Path, recordings: Path, detector: Counting) -> None:
    command = ["bag", recordings, "--output", tmp_path / "out", "--outputs"]
    (tmp_path / "out").mkdir()
    shared = WorkList(tmp_path / "out" / ".shared", {"choice of outputs": ["heatmap"]})
    result = CliRunner().invoke(app, [*map(str, command), "mask"])
    assert "another list of recordings: give it as before" in str(result.exception)
    shared.directory.rename(tmp_path / "out" / "other")
    result = CliRunner().invoke(app, [*map(str, command), "mask"])
    assert "exists already" in str(result.exception)
    assert detector.calls() == 0


def test_of_a_launchers_processes_one_speaks_and_each_has_its_gpu(
    tmp_path: Path, recordings: Path, detector: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["bag", recordings / "deep" / "a", "--output", tmp_path / "out", "--json"]
    monkeypatch.setattr(common.console, "quiet", False)
    assert run(*command, WORLD_SIZE="2", RANK="1") == ""
    monkeypatch.setattr(common.console, "quiet", False)
    assert json.loads(run(*command, WORLD_SIZE="2", RANK="0"))["frames"] == 3
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert common.own_device("auto") == "auto"
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert [common.own_device(name) for name in ("auto", "cpu", "cuda:0")] == [
        "cuda:1", "cpu", "cuda:0",
    ]  # fmt: skip


def test_a_profile_is_known_by_what_its_files_hold(tmp_path: Path, plain: Detector) -> None:
    def described(folder: str, scores: bytes) -> dict[str, Any]:
        file = tmp_path / folder / "scores.safetensors"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(scores)
        profile = replace(plain.profile, calibration={"file": str(file)})
        return describe_settings(["mask"], profile, 0.5, None)

    here = described("here", b"one")
    assert described("there", b"one") == here  # as another machine has it
    assert described("here", b"two") != here


def test_levels_known_from_few_frames_are_those_of_all() -> None:
    chance = random.Random(1)
    for _ in range(50):
        stamp, stream = 0, list[tuple[float, int] | None]()
        for _ in range(60):
            stamp += chance.choice([1, 1, 1, 1, 40]) * 10**9
            stream.append(None if chance.random() < 0.3 else (chance.random(), stamp))
        cut = chance.randrange(61)
        whole = StreamLevels()
        for each in stream[:cut]:
            if each:
                whole.add(*each)
        assert levels_before(cut, lambda a: filter(None, stream[a:cut])).state == whole.state  # noqa: B023


def test_a_piece_is_claimed_once(tmp_path: Path) -> None:
    with WorkList(tmp_path, {}) as one, WorkList(tmp_path, {}) as two:
        pieces = [["a", "b", "c"]]
        first, second = one.pieces(pieces), two.pieces(pieces)
        assert next(first) == "a"
        assert next(second) == "c"
        one.finish("a", {"found": 1})
        assert next(first) == "b"
        assert two.result("a") == {"found": 1}
        two.finish("c", None)
        one.finish("b", None)
        assert list(first) == list(second) == []


def test_pieces_of_the_dead_are_taken_and_those_of_the_living_are_not(tmp_path: Path) -> None:
    def claim() -> None:
        assert next(WorkList(tmp_path, {}).pieces([["a"]])) == "a"
        os.kill(os.getpid(), signal.SIGKILL)

    process = start(claim)
    wait_until((tmp_path / "a.1.claim").exists)
    with WorkList(tmp_path, {}) as here:
        assert next(here.pieces([["a"]])) == "a"  # though nobody has waited for the process yet
    process.join()
    assert (tmp_path / "a.2.claim").exists()

    # The same claim of another machine, on which no process can be asked for.
    claim_file = tmp_path / "a.2.claim"
    owner = json.loads(claim_file.read_text())
    claim_file.write_text(json.dumps({**owner, "host": "far away"}))
    with WorkList(tmp_path, {}, dead_after=0.5) as here:
        for beat in range(5):  # it gives signs of life
            os.utime(claim_file, (beat, beat))
            here._look()
            assert here._is_alive("a")
        wait_until(lambda: not here._is_alive("a"))
        assert next(here.pieces([["a"]])) == "a"


def test_signs_of_life_are_given(tmp_path: Path) -> None:
    with WorkList(tmp_path, {}, beat=0.01) as here:
        assert next(here.pieces([["a"]])) == "a"
        os.utime(tmp_path / "a.1.claim", (0, 0))
        wait_until(lambda: (tmp_path / "a.1.claim").stat().st_mtime > 0)


def test_without_links_a_claim_is_made_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", link)
    with WorkList(tmp_path, {}) as one, WorkList(tmp_path, {}) as two:
        first, second = one.pieces([["a"], ["b"]]), two.pieces([["a"], ["b"]])
        assert {next(first), next(second)} == {"a", "b"}


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    done: list[str] = []

    def work() -> dict[str, Any]:
        return share(
            tmp_path / "work", {"n": 1}, tmp_path / "summary.json", [["a", "b"]], {},
            lambda _, piece: done.append(piece), lambda _: {"pieces": len(done)},
        )  # fmt: skip

    assert work()["pieces"] == work()["pieces"] == 2
    assert done == ["a", "b"]
    assert not (tmp_path / "work").exists()
    WorkList(tmp_path / "work", {"n": 1})
    with pytest.raises(UserError, match="another n: give it as before"):
        WorkList(tmp_path / "work", {"n": 2})
