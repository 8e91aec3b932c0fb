"""The page for people: whole, escaped, and in a real browser where there is one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
from support.bag_files import FRAMES, STORAGES, image_bytes, pictures, write_bag
from support.pages import Parsed
from support.scenes import write_labelled_scenes
from typer.testing import CliRunner

from anomaly_detector_ros.bags.outputs import read_outputs
from anomaly_detector_ros.cli import page as cli_page
from anomaly_detector_ros.cli.main import app
from anomaly_detector_ros.pages.page import (
    FILE,
    FOLDER,
    LAYERS,
    Page,
    PageFrame,
    Table,
    frame_pictures,
    render_page,
)
from anomaly_detector_ros.sources.frames import find_sources

EVIL = """</script><script>alert("1")</script><img src=x onerror=alert(2)>&'"""
ODD = ["a b", "50% #1?", "ä-日本", "-x:y", "javascript:alert(1)", "no\udcffunicode", 'it\'s "q"']
HEIGHT, WIDTH = 24, 40


def layers(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    picture = cv2.resize(rng.integers(0, 256, (6, 10, 3), np.uint8), (WIDTH, HEIGHT))
    heatmap = rng.random((HEIGHT, WIDTH), np.float32)
    mask = np.where(heatmap > 0.9, 255, 0).astype(np.uint8)
    return {
        "input": picture, "edited": 255 - picture, "heatmap": heatmap, "mask": mask,
        "overlay": picture,
    }  # fmt: skip


def save(folder: Path, page: Page) -> Path:
    (folder / FILE).write_bytes(render_page(page, "1.2.3").encode())
    return folder / FILE


def framed(folder: Path, names: list[str], **common: object) -> list[PageFrame]:
    """Frames with all pictures, written beside the page."""
    (folder / FOLDER).mkdir(exist_ok=True)
    for seed, name in enumerate(names):
        for file, data in frame_pictures(name, layers(seed), calibrated=True).items():
            (folder / FOLDER / file).write_bytes(data)
    values = [{"score": 0.5, "anomalous": i / 10, "seconds": 1.0 + i} for i in range(len(names))]
    return [
        PageFrame(name, list(LAYERS), each, {"synthesis": 0.5, "scoring": 0.01}, **common)
        for name, each in zip(names, values, strict=True)
    ]


def test_pictures_are_small_jpegs_and_a_thumbnail() -> None:
    tall = np.zeros((3000, 1000, 3), np.uint8)
    heat = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    files = frame_pictures("a", {"heatmap": heat, "input": tall}, calibrated=False)
    read = {
        name: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        for name, data in files.items()
    }
    assert {name: picture.shape[:2] for name, picture in read.items()} == {
        "a_heatmap.jpg": (3, 4), "a_input.jpg": (1280, 427), "a_thumb.jpg": (160, 53)
    }  # fmt: skip
    brightness = read["a_heatmap.jpg"].mean(-1).ravel()
    assert brightness[-1] > 150 > 60 > brightness[0]


def test_odd_names_are_escaped_and_their_files_found(tmp_path: Path) -> None:
    frames = framed(tmp_path, ODD, source=EVIL)
    (tmp_path / "50% #1?_mask.png").write_bytes(b"x")
    frames[1] = PageFrame("50% #1?", files=["50% #1?_mask.png"], source=EVIL)
    table = Table(["", EVIL], [["<b>", "1"]])
    page = Page(EVIL, [EVIL], frames, table=table, links=["50% #1?_mask.png"])
    file = save(tmp_path, page)
    parsed = Parsed(file)
    assert parsed.open == []
    # None of the names became an element.
    assert (parsed.tags["script"], parsed.tags["img"], parsed.tags["b"]) == (2, 2, 0)
    assert parsed.text.count(EVIL) >= 4  # title, heading, fact, head of the table
    assert [each["name"] for each in parsed.data["frames"]] == ODD
    assert {each["source"] for each in parsed.data["frames"]} == {EVIL}
    missing = [path for path in parsed.referenced() if not path.exists()]
    assert missing == []


def test_numbers_that_are_none_are_valid_json(tmp_path: Path) -> None:
    frames = [PageFrame("a", values={"score": float("nan")}, timings={"total": float("inf")})]
    data = Parsed(save(tmp_path, Page("t", [], frames))).data
    assert data["frames"][0]["values"] == [None, None, None]
    assert data["frames"][0]["timings"] == {"total": None}


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "in"
    made.mkdir()
    for seed, name in enumerate(("a", "b #1")):
        cv2.imwrite(str(made / f"{name}.png"), layers(seed)["input"])
    return made


def test_detect_writes_a_page_of_all_results(
    folder: Path, tmp_path: Path, light_profile: str
) -> None:
    # Into the folder of the pictures: the page's own are no input to the second run.
    words = ["detect", "--output", folder, "--profile", light_profile, "--offline"]
    printed = run(*words, folder / "a.png", "--record-diffusion", "gif")
    assert str(folder / FILE) in printed
    run(*words, folder / "b #1.png")
    parsed = Parsed(folder / FILE)
    assert all(path.exists() for path in parsed.referenced())
    first, second = parsed.data["frames"]
    assert [first["name"], second["name"]] == ["a", "b #1"]
    assert len(first["has"]) == len(second["has"]) == len(LAYERS)
    assert first["motion"].endswith("a_diffusion.gif")
    assert second["motion"] == ""
    assert {label for label, _ in second["files"]} == {
        "heatmap.npy", "mask.png", "segments.png", "edited.png", "overlay.png"
    }  # fmt: skip
    assert first["timings"]["synthesis"] > 0
    lines = [json.loads(text) for text in (folder / "results.jsonl").read_text().splitlines()]
    mask = cv2.imread(str(folder / "a_mask.png"), cv2.IMREAD_UNCHANGED)
    assert lines[0]["anomalous"] == pytest.approx((mask > 0).mean())
    found = find_sources([folder], results=folder)
    assert {source.file.name for source in found} == {"a.png", "b #1.png"}


def test_bag_keeps_numbers_of_all_frames_and_pictures_of_some(
    tmp_path: Path, light_profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_page, "_PICTURED", 2)
    monkeypatch.setattr(cli_page, "_PICTURED_FIRST", 1)
    frames = [image_bytes(picture, i) for i, picture in enumerate(pictures())]
    source = write_bag(tmp_path / "in", STORAGES[0], frames, ["/camera/image_raw"])
    out = tmp_path / "out"
    printed = run("bag", source, "--output", out, "--profile", light_profile, "--offline")
    assert printed.splitlines()[-1] == f"Look at them: {out / FILE}"
    parsed = Parsed(out / FILE)
    assert len(parsed.data["frames"]) == FRAMES
    assert sum(bool(frame["has"]) for frame in parsed.data["frames"]) == 2
    assert "pictures of 2" in parsed.text
    assert all(path.exists() for path in parsed.referenced())
    assert all(frame["timings"]["synthesis"] > 0 for frame in parsed.data["frames"])
    shares = [frame["values"][0] for frame in parsed.data["frames"]]
    assert parsed.data["frames"][int(np.argmax(shares))]["has"]
    # The pictures are those that the bag holds.
    (*_, last) = read_outputs(out, "/camera/image_raw")
    assert last.number == FRAMES - 1
    assert set(last.layers) == set(LAYERS)
    assert (last.layers["mask"] > 0).mean() == pytest.approx(shares[-1], abs=1e-4)
    assert last.layers["heatmap"].dtype == np.float32


def test_evaluation_shows_truth_and_maps(tmp_path: Path, light_profile: str) -> None:
    scenes = write_labelled_scenes(tmp_path / "scenes", train=1, test=3)
    output = tmp_path / "out" / "results.json"
    words = ["evaluate", "--root", scenes / "test", "--profile", light_profile, "--offline"]
    words += ["--cache", tmp_path / "cache", "--method", "perfect", "--method", "ours"]
    run(*words, "--output", output)
    parsed = Parsed(output.parent / "results_page" / FILE)
    assert all(path.exists() for path in parsed.referenced())
    titles = {layer["title"] for layer in parsed.data["layers"]}
    assert {"Input", "Edit", "Found and missed", "Ours"} <= titles
    assert len(parsed.data["frames"]) == 3
    keys = [column["key"] for column in parsed.data["columns"]]
    for frame in parsed.data["frames"]:
        values = dict(zip(keys, frame["values"], strict=True))
        assert 0 < values["anomalous"] < 1
        assert len(frame["has"]) == len(titles)
    assert "AUC-PR (AP)" in parsed.text


# In a browser: what it did and found is written into the page, which the browser then prints.
DRIVER = """
const told = {};
const press = (key, code = "", shiftKey = false) => document.body.dispatchEvent(
  new KeyboardEvent("keydown", { key, code, shiftKey, bubbles: true, cancelable: true }));
const name = () => at("name").textContent;
const set = (id, value, event) => { at(id).value = value; at(id).dispatchEvent(new Event(event)); };
addEventListener("load", () => setTimeout(() => {
  document.body.style.width = WIDTH; dispatchEvent(new Event("resize"));
  told.width = [document.body.scrollWidth, document.body.clientWidth];
  told.loaded = ["left", "right"].map((side) => at(side).naturalWidth);
  told.first = name();
  const wide = (selector) => document.querySelector(selector).getBoundingClientRect().right;
  told.filled = wide(".stages i:last-child") - wide(".stages");
  press("ArrowRight"); told.right = name();
  press("End"); told.end = name(); told.rows = document.querySelectorAll(".row").length;
  told.selected = document.querySelector(".row[aria-selected=true] b").textContent;
  told.hash = location.hash;
  press("Home"); press("3", "Digit3"); told.layer = at("right-tag").textContent;
  press("1", "Digit1"); press("2", "Digit2", true); told.left = at("left-tag").textContent;
  press("]"); told.divider = at("compare").style.getPropertyValue("--at");
  at("slider").value = 10; at("slider").dispatchEvent(new Event("input"));
  told.clip = getComputedStyle(at("right")).clipPath;
  set("sort", "0 down", "change"); told.worst = name(); press("Home");
  told.sorted = document.querySelector(".row b").textContent;
  set("query", "frame_01", "input"); told.count = at("count").textContent;
  set("query", "nothing like it", "input"); told.none = at("count").textContent;
  set("query", "", "input");
  at("only").checked = true; at("only").dispatchEvent(new Event("change"));
  told.only = at("count").textContent;
  told.unlabelled = [...document.querySelectorAll("button, input, select, img:not([alt])")]
    .filter((e) => !e.labels?.length && !e.getAttribute("aria-label")).map((e) => e.outerHTML);
  document.body.append(Object.assign(document.createElement("pre"),
    { id: "told", textContent: JSON.stringify(told) }));
}, 300));
"""


@pytest.fixture(scope="module")
def chromium() -> str:
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("no Chromium here")
    return found


# A window has 500 pixels at least, a phone fewer.
@pytest.mark.parametrize(("width", "body"), [(1300, "1300px"), (500, "360px")])
def test_in_a_browser(chromium: str, tmp_path: Path, width: int, body: str) -> None:
    names = [f"frame_{number:04d}" for number in range(5000)]
    with_pictures = framed(tmp_path, names[:3])
    others = [PageFrame(name, values={"anomalous": 0.0, "score": 0.1}) for name in names[3:]]
    frames = [*with_pictures, *others[:-1], PageFrame(names[-1], values={"anomalous": 0.9})]
    file = save(tmp_path, Page("Many frames", ["5000 frames"], frames))
    driver = DRIVER.replace("WIDTH", f'"{body}"')
    file.write_text(file.read_text().replace("</body>", f"<script>{driver}</script></body>"))
    done = subprocess.run(
        [
            chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900",
            "--virtual-time-budget=5000", "--dump-dom", file.as_uri(),
        ],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    match = re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.S)
    assert match, done.stdout[-2000:] + done.stderr[-2000:]
    told = json.loads(match[1].replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&"))
    assert told["width"] == [int(body.removesuffix("px"))] * 2
    assert told["loaded"] == [WIDTH, WIDTH]
    assert abs(told["filled"]) < 1  # the stages' bar, whatever their seconds
    assert (told["first"], told["right"]) == ("frame_0000", "frame_0001")
    assert told["end"] == told["selected"] == "frame_4999"
    assert told["hash"] == "#frame_4999"
    assert told["rows"] < 60
    assert (told["layer"], told["left"]) == ("Heatmap", "Edit")
    assert told["divider"] == "55%"
    assert told["clip"] == "inset(0px 0px 0px 10%)"
    assert told["worst"] == told["sorted"] == "frame_4999"
    assert told["count"] == "100 of 5,000 frames"
    assert told["none"] == "0 of 5,000 frames"
    assert told["only"] == "3 of 5,000 frames"
    assert told["unlabelled"] == []
