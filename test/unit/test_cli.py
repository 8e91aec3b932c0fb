"""The command line as its users meet it: output, files and exit code."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
from support.processes import start_python
from support.waiting import wait_until

from anomaly_detector_ros.cli.common import append_line, write_atomically
from anomaly_detector_ros.cli.main import main
from anomaly_detector_ros.cli.results import unique_names
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.sources.frames import Source, find_sources

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = [
    ["detect"], ["bag"], ["train"], ["calibrate"], ["evaluate"], ["benchmark"], ["demo"],
    ["models", "list"], ["models", "fetch"], ["models", "verify"], ["models", "convert"],
    ["models", "export"],
]  # fmt: skip
KINDS = {"heatmap.npy", "mask.png", "segments.png", "edited.png", "overlay.png"}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "anomaly_detector_ros", *map(str, arguments)]


@dataclass
class Result:
    """What a command printed and its exit code."""

    returncode: int
    stdout: str
    stderr: str


def run(*arguments: object) -> Result:
    """The command line within this process, as importing torch takes seconds."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.dict(os.environ, {"COLUMNS": "200", "TERM": "dumb"}),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as leave:
            code = int(leave.code or 0)
    return Result(code, out.getvalue(), err.getvalue())


def only_line(result: Result) -> str:
    """The one line on standard error of a failed command."""
    assert result.returncode == 1, result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def picture(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return cv2.resize(rng.integers(0, 256, (9, 12, 3), np.uint8), (60, 40))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(2):
        cv2.imwrite(str(folder / f"p{index}.png"), picture(index))
    return folder


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_of_every_command_has_an_example(words: list[str]) -> None:
    result = run(*words, "--help")
    assert result.returncode == 0
    assert "Example" in result.stdout
    assert f"anomaly-detector {' '.join(words)}" in result.stdout


def test_help_does_not_load_torch() -> None:
    code = "import sys, anomaly_detector_ros.cli.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_wrong_usage() -> None:
    assert run("nonsense").returncode == 2
    assert run("detect").returncode == 2
    assert run("detect", "x", "--output", "y", "--threshold", "2").returncode == 2


def test_detect_writes_all_files(tmp_path: Path, pictures: Path, light_profile: str) -> None:
    out = tmp_path / "out"
    result = run("detect", pictures, "--output", out, "--profile", light_profile, "--json")
    assert result.returncode == 0, result.stderr
    printed = json.loads(result.stdout)
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert lines == printed
    assert [line["name"] for line in lines] == ["p0", "p1"]
    assert lines[0]["input"] == str(pictures / "p0.png")
    assert 0 <= lines[0]["score"] <= 1
    assert lines[0]["timings"]["total"] > 0
    files = {f"p{i}_{kind}" for i in range(2) for kind in KINDS}
    files |= {"results.jsonl", "index.html", "index_files"}
    assert {p.name for p in out.iterdir()} == files
    heatmap = np.load(out / "p0_heatmap.npy")
    mask = cv2.imread(str(out / "p0_mask.png"), cv2.IMREAD_UNCHANGED)
    assert (heatmap.dtype, heatmap.shape) == (np.float32, (40, 60))
    np.testing.assert_array_equal(mask, (heatmap >= 0.3) * 255)
    segments = cv2.imread(str(out / "p0_segments.png"), cv2.IMREAD_UNCHANGED)
    assert segments.dtype == np.uint16


def test_detect_does_not_replace_results_unasked(
    tmp_path: Path, pictures: Path, light_profile: str
) -> None:
    out = tmp_path / "out"
    arguments = ["detect", pictures / "p0.png", "--output", out, "--profile", light_profile]
    assert run(*arguments).returncode == 0
    assert "p0_heatmap.npy' exists already: give --overwrite" in only_line(run(*arguments))
    assert run(*arguments, "--overwrite").returncode == 0
    assert len((out / "results.jsonl").read_text().splitlines()) == 1


def test_same_stems_lose_nothing(tmp_path: Path, light_profile: str) -> None:
    for folder in ("left", "right"):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "x.png"), picture(len(folder)))
    out = tmp_path / "out"
    inputs = [tmp_path / "left", tmp_path / "right", tmp_path / "left" / "x.png"]
    assert run("detect", *inputs, "--output", out, "--profile", light_profile).returncode == 0
    edited = [cv2.imread(str(out / f"{name}_x_edited.png")) for name in ("left", "right")]
    assert (edited[0] != edited[1]).any()
    assert len((out / "results.jsonl").read_text().splitlines()) == 2


def test_corrupt_picture_is_skipped_and_counted(
    tmp_path: Path, pictures: Path, light_profile: str
) -> None:
    whole = cv2.imencode(".jpg", picture(5))[1].tobytes()
    (pictures / "a_cut.jpg").write_bytes(whole[: len(whole) // 2])
    arguments = ["detect", pictures, "--profile", light_profile]
    result = run(*arguments, "--output", tmp_path / "skip")
    assert result.returncode == 0
    *_, counts, first = result.stderr.splitlines()
    assert counts == "3 read, 2 processed, 1 skipped (1 unreadable)"
    assert re.match(r"unreadable: cannot read '.*a_cut.jpg': .*truncated or corrupt", first)
    assert len((tmp_path / "skip" / "results.jsonl").read_text().splitlines()) == 2
    stopped = run(*arguments, "--output", tmp_path / "stop", "--on-error", "stop")
    assert "a_cut.jpg" in only_line(stopped)
    assert not (tmp_path / "stop" / "results.jsonl").exists()


def test_video(tmp_path: Path, light_profile: str) -> None:
    video = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"MJPG"), 5, (60, 40))
    if not writer.isOpened():
        pytest.skip("this OpenCV cannot write videos")
    for index in range(3):
        writer.write(picture(index))
    writer.release()
    out = tmp_path / "out"
    result = run("detect", video, "--output", out, "--profile", light_profile)
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [(line["name"], line["frame"]) for line in lines] == [
        (f"clip_{i:06d}", i) for i in range(3)
    ]
    assert (out / "clip_000002_overlay.png").exists()
    video.write_bytes(b"RIFFnothing")
    broken = run("detect", video, "--output", tmp_path / "o", "--profile", light_profile)
    assert broken.returncode == 1
    assert "no frame of the video can be decoded" in broken.stderr


def test_errors_are_one_line(tmp_path: Path, pictures: Path, light_profile: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    light = ["--profile", light_profile]
    out = ["--output", tmp_path / "out"]
    assert "no pictures in" in only_line(run("detect", tmp_path / "empty", *out, *light))
    assert "does not exist" in only_line(run("detect", tmp_path / "nope", *out, *light))
    assert "unknown profile 'nope'" in only_line(run("detect", pictures, *out, "--profile", "nope"))
    assert "unknown device" in only_line(run("detect", pictures, *out, *light, "--device", "tpu"))
    assert "cannot make" in only_line(
        run("detect", pictures, "--output", tmp_path / "file" / "out", *light)
    )
    assert "there is no bag" in only_line(
        run("bag", tmp_path / "nope", "--output", tmp_path / "b", *light)
    )
    assert "exclude each other" in only_line(
        run("demo", "--output", tmp_path / "d", "--images", "a", "--bag", "b")
    )


def test_debug_shows_the_traceback_wherever_it_stands(tmp_path: Path) -> None:
    for arguments in (["--debug", "detect", "nope"], ["detect", "nope", "--debug"]):
        result = run(*arguments, "--output", tmp_path / "out")
        assert result.returncode == 1
        assert "Traceback" in result.stderr
        assert "nope" in result.stderr.strip().splitlines()[-1]


def test_quiet_leaves_results_and_errors_and_verbose_adds_times(
    tmp_path: Path, pictures: Path, light_profile: str
) -> None:
    (pictures / "broken.png").write_bytes(b"no picture")
    words = ["detect", pictures, "--profile", light_profile, "--json", "--output"]
    quiet = run(*words, tmp_path / "quiet", "--quiet")
    verbose = run("--verbose", *words, tmp_path / "verbose")
    assert (quiet.returncode, verbose.returncode) == (0, 0), verbose.stderr
    assert quiet.stderr == ""
    assert "broken.png" in verbose.stderr
    results = json.loads(verbose.stdout)
    assert [each["name"] for each in json.loads(quiet.stdout)] == [r["name"] for r in results]
    times = [line for line in verbose.stderr.splitlines() if "synthesis" in line]
    assert len(times) == len(results)
    assert "total" in times[0]
    assert "exists already" in only_line(run(*words, tmp_path / "quiet", "--quiet"))


def test_no_color_is_honoured(tmp_path: Path) -> None:
    def error(**environment: str) -> str:
        return subprocess.run(
            command("detect", "nope", "--output", tmp_path / "out"),
            cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment},
        ).stderr  # fmt: skip

    colour = "\x1b[3"
    assert colour in error(FORCE_COLOR="1", TERM="xterm")
    plain = error(FORCE_COLOR="1", TERM="xterm", NO_COLOR="1")
    assert "error: " in plain
    assert colour not in plain


def test_full_disk_leaves_no_half_file(tmp_path: Path, pictures: Path, light_profile: str) -> None:
    out = tmp_path / "out"

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))

    done = subprocess.run(
        command("detect", pictures, "--output", out, "--profile", light_profile),
        cwd=ROOT, capture_output=True, text=True, preexec_fn=limit,
    )  # fmt: skip
    result = Result(done.returncode, done.stdout, done.stderr)
    assert "cannot write" in only_line(result)
    assert "p0_heatmap.npy" in result.stderr
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_and_leaves_nothing_half_written(
    tmp_path: Path, light_profile: str, number: int, code: int
) -> None:
    many = tmp_path / "many"
    many.mkdir()
    for index in range(300):
        cv2.imwrite(str(many / f"{index}.png"), picture(index))
    out = tmp_path / "out"
    process = start_python(
        *command("detect", many, "--output", out, "--profile", light_profile)[1:],
        cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    wait_until((out / "results.jsonl").exists, "a result", 90)
    process.send_signal(number)
    try:
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code
    assert "Traceback" not in errors
    for line in (out / "results.jsonl").read_text().splitlines():
        json.loads(line)
    assert not list(out.glob("*.partial"))


def test_frames_that_were_unpacked_go_when_it_is_told_to_end(
    tmp_path: Path, light_profile: str
) -> None:
    many, scratch = tmp_path / "many", tmp_path / "scratch"
    for folder in (many, scratch):
        folder.mkdir()
    for index in range(400):
        cv2.imwrite(str(many / f"{index}.png"), picture(index))
    process = start_python(
        *command(
            "calibrate", "--profile", light_profile, "--data", many, "--grey-range", "0", "255",
            "--output", tmp_path / "new.safetensors",
        )[1:],
        cwd=ROOT, env={**os.environ, "TMPDIR": str(scratch)},
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until(lambda: list(scratch.glob("anomaly-detector-frames-*/*")), "frames", 90)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143
    assert not list(scratch.glob("anomaly-detector-*"))
    assert not list(tmp_path.glob("new*"))


def test_demo_does_not_delete_what_it_shall_play(tmp_path: Path, pictures: Path) -> None:
    pytest.importorskip("rclpy", reason="no ROS 2 here")
    overlays = pictures.rename(tmp_path / "overlays")
    for output in (tmp_path, overlays):
        result = run("demo", "--images", overlays, "--output", output)
        assert "is replaced: give another --output" in only_line(result)
    assert len(list(overlays.iterdir())) == 2


def test_evaluation_without_anomalies_is_valid_json(
    tmp_path: Path, pictures: Path, light_profile: str
) -> None:
    pictures.rename(tmp_path / "images")
    (tmp_path / "masks").mkdir()
    for index in range(2):
        cv2.imwrite(str(tmp_path / "masks" / f"p{index}.png"), np.zeros((40, 60), np.uint8))
    result = run("evaluate", "--root", tmp_path, "--profile", light_profile, "--json")
    assert result.returncode == 0, result.stderr

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    rows = json.loads(result.stdout, parse_constant=refuse)["rows"]
    assert [row["auc_pr"] for row in rows] == [None] * 4


def test_names_are_unique() -> None:
    files = [Path(p) for p in ("a/x.png", "b/x.png", "b/x.jpg", "c/b_x.png", "d/a/x.png")]
    pictures = [Source(file, "picture") for file in files]
    names = unique_names(pictures)
    assert list(names) == pictures
    assert len(set(names.values())) == len(files)
    assert names[Source(Path("c/b_x.png"), "picture")] == "b_x"
    clip, frame = Source(Path("clip.mp4"), "video"), Source(Path("clip_000001.png"), "picture")
    video = unique_names([clip, frame])
    assert video[clip] == "clip"
    assert video[frame] != "clip_000001"
    long = [Source(Path(folder, "ü" * 125 + ".png"), "picture") for folder in "ab"]
    shortened = list(unique_names(long).values())
    assert len(set(shortened)) == 2
    assert all(len(name.encode()) <= 200 for name in shortened)


def test_results_are_no_inputs(tmp_path: Path, pictures: Path) -> None:
    for kind in ("mask", "segments", "edited", "overlay"):
        (pictures / f"p0_{kind}.png").write_bytes(b"")
    (pictures / "p0_heatmap.npy").write_bytes(b"")
    found = [source.file.name for source in find_sources([pictures], results=pictures)]
    assert found == ["p0.png", "p1.png"]
    inside = pictures / "results"
    inside.mkdir()
    (inside / "q.png").write_bytes(b"")
    assert len(find_sources([pictures / "p0.png", pictures], results=inside)) == 6


def test_files_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", b"first")
    with pytest.raises(UserError, match="cannot write"):
        write_atomically(tmp_path / "b" / "c", b"x")
    assert (tmp_path / "a").read_bytes() == b"first"
    append_line(tmp_path / "lines", "one")
    append_line(tmp_path / "lines", "two")
    assert (tmp_path / "lines").read_text() == "one\ntwo\n"


def test_of_a_data_set_the_images_are_taken_and_its_labels_left(tmp_path: Path) -> None:
    for folder, count in (("images", 3), ("labels", 3)):
        (tmp_path / folder).mkdir()
        for index in range(count):
            cv2.imwrite(str(tmp_path / folder / f"{index}.png"), np.zeros((8, 8, 3), np.uint8))
    for given in (tmp_path, tmp_path / "images"):
        found = [source.file for source in find_sources([given])]
        assert found == [tmp_path / "images" / f"{index}.png" for index in range(3)]
