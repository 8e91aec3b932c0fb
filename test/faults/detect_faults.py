"""Faults in the inputs, the output and the life of ``detect``."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from bench import small_disk
from command_process import ONE_LINE, command, ended, refused
from fault import Act, Fault, expect
from support.node_client import picture
from support.waiting import wait_until

if TYPE_CHECKING:
    from bench import Bench


def detect_words(bench: Bench, source: Path, output: Path) -> list[str]:
    return ["detect", str(source), "--output", str(output), "--profile", str(bench.profile),
            "--device", "cpu", "--offline"]  # fmt: skip


def pictures(bench: Bench, count: int = 2, size: tuple[int, int] = (48, 64)) -> Path:
    """A new folder of good pictures."""
    folder = bench.folder / f"pictures_{count}_{size[0]}"
    folder.mkdir(exist_ok=True)
    for index in range(count):
        cv2.imwrite(str(folder / f"{index:04d}.png"), picture(*size))
    return folder


def good_detect(bench: Bench) -> None:
    """Recovery: the command on good pictures to a good folder."""
    output = bench.folder / "good_results"
    shutil.rmtree(output, ignore_errors=True)
    code, line = ended(command(bench, *detect_words(bench, pictures(bench), output)))
    expect(code == 0, f"exit code {code}: {line}")
    found = np.load(output / "0000_heatmap.npy")
    expect(found.shape == (48, 64) and found.dtype == np.float32, f"heatmap {found.shape}")


def nothing_partial(folder: Path) -> None:
    """No file under its final name is half-written, and none is left beside."""
    left = [file.name for file in folder.rglob("*.partial*")]
    expect(not left, f"left behind: {left}")
    for file in folder.rglob("*.png"):
        expect(cv2.imread(str(file), cv2.IMREAD_UNCHANGED) is not None, f"{file.name} is broken")
    for file in folder.rglob("*.npy"):
        np.load(file)


def broken_picture(bench: Bench) -> str:
    folder, output = bench.folder / "some_broken", bench.folder / "some_results"
    shutil.copytree(pictures(bench), folder)
    whole = (folder / "0000.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("no picture")
    words = detect_words(bench, folder, output)
    process = command(bench, *words)
    told, _ = process.communicate(timeout=240.0)
    expect(process.returncode == 0, f"exit code {process.returncode}: {told}")
    for said in ("4 read, 2 processed, 2 skipped", "cut.png", "text.jpg"):
        expect(said in told, f"'{told}' without '{said}'")
    expect(len((output / "results.jsonl").read_text().splitlines()) == 2, "results.jsonl")
    nothing_partial(output)
    words[words.index(str(output))] = str(bench.folder / "none_results")
    stopped = refused(bench, command(bench, *words, "--on-error", "stop"), "cut.png")
    return f"the 2 good pictures have results, the others are named; --on-error stop: {stopped}"


def empty_folder(bench: Bench) -> str:
    (bench.folder / "empty").mkdir()
    words = detect_words(bench, bench.folder / "empty", bench.folder / "none")
    return refused(bench, command(bench, *words), "no pictures")


def unwritable(bench: Bench) -> str:
    (bench.folder / "a_file").write_text("")
    words = detect_words(bench, pictures(bench), bench.folder / "a_file" / "results")
    return refused(bench, command(bench, *words), "another output")


def detect_full_disk(bench: Bench) -> str:
    output = bench.folder / "small_disk"
    output.mkdir(exist_ok=True)
    words = detect_words(bench, pictures(bench, 8, (200, 300)), output)
    return refused(bench, command(bench, *words, prefix=small_disk(output, 400)), "make room")


def detect_file_limit(bench: Bench) -> str:
    output = bench.folder / "limited"
    words = detect_words(bench, pictures(bench, 2, (200, 300)), output)
    happened = refused(bench, command(bench, *words, limit=50_000), "cannot write")
    nothing_partial(output)
    return f"nothing half-written; {happened}"


def detect_interrupted(bench: Bench) -> str:
    output = bench.folder / "interrupted"
    process = command(bench, *detect_words(bench, pictures(bench, 200, (200, 300)), output))

    def some_done() -> bool:
        return len(list(output.glob("*_overlay.png"))) > 3 or process.poll() is not None

    wait_until(some_done, "results", 200)
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    code, _ = ended(process)
    expect(code == 130, f"exit code {code}")
    nothing_partial(output)
    done = len(list(output.glob("*_overlay.png")))
    return f"exit code 130 after {time.monotonic() - begun:.1f} s; {done} results, all whole"


def _detect(name: str, injected: str, expected: str, act: Act) -> Fault:
    return Fault("commands", name, injected, expected, act, good_detect, needs_node=False)


FAULTS = [
    _detect("broken_picture", "`detect` on 2 good and 2 broken pictures",
            "results of the good ones, the others counted and named; --on-error stop: exit code 1",
            broken_picture),
    _detect("empty_folder", "`detect` on an empty folder", ONE_LINE, empty_folder),
    _detect("unwritable", "`detect` to a folder that cannot be made", ONE_LINE, unwritable),
    _detect("detect_full_disk", "`detect` to a disk of 400 kB", ONE_LINE, detect_full_disk),
    _detect("detect_file_limit", "`detect` with files limited to 50 kB",
            "exit code 1 and one line, nothing half-written", detect_file_limit),
    _detect("detect_interrupted", "`detect` and SIGINT", "exit code 130, nothing half-written",
            detect_interrupted),
]  # fmt: skip
