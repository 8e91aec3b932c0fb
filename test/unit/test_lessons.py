"""Lessons: what a detector is taught after it was fitted, and the journal of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from support.calibration_data import pooled
from support.lesson_data import (
    BARREL,
    GRAVEL,
    MEADOW,
    PUDDLE,
    teachable_profile,
    terrain,
    with_thing,
    write_terrain,
)
from support.waiting import wait_until
from typer.testing import CliRunner, Result

from anomaly_detector_ros.building import Parts
from anomaly_detector_ros.calibration.calibration import NominalScores
from anomaly_detector_ros.calibration.drift import NominalLevels
from anomaly_detector_ros.cli.main import app
from anomaly_detector_ros.cli.teach_train import changes_of
from anomaly_detector_ros.detector import Detector
from anomaly_detector_ros.distances.base import Taught
from anomaly_detector_ros.distances.cosine import CosineDistance
from anomaly_detector_ros.distances.novelty import Novelty, NoveltyDistance
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.lessons import journal
from anomaly_detector_ros.lessons.journal import Lesson, Lessons, load_lessons, remove_partial
from anomaly_detector_ros.lessons.teaching import (
    Look,
    Teaching,
    outlying,
    point_at,
    thumbnail,
    vectors_at,
)
from anomaly_detector_ros.profiles import load_profile


@pytest.fixture(scope="module")
def profile(light_profile: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(teachable_profile(light_profile, tmp_path_factory.mktemp("teachable")))


@pytest.fixture
def detector(profile: str) -> Detector:
    return Detector.from_profile(profile, device="cpu", offline=True)


def directions(*degrees: float) -> torch.Tensor:
    angles = torch.tensor(degrees, dtype=torch.float32).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], 1)


def alarmed(detector: Detector, picture: np.ndarray) -> float:
    return float(detector.detect(picture).mask.mean())


def looks(detector: Detector, pictures: list[np.ndarray]) -> list[Look]:
    found = detector.detect_batch(pictures)
    return [
        Look.of(f"frame {number}", picture, each, detector.threshold)
        for number, (picture, each) in enumerate(zip(pictures, found, strict=True))
    ]


def lesson_of(detector: Detector, taken: list[Look], **options: bool) -> Lesson:
    before = detector.lessons.taught() if detector.lessons else []
    teaching = Teaching(taken, detector.distance, before, detector.rescore, **options)
    assert sum(1 for _ in teaching.work()) == teaching.count
    return teaching.lesson(camera="", asked_by="test")


def begun(detector: Detector) -> Lessons:
    return Parts(torch.device("cpu"), offline=True).lessons(detector.profile)


def entry(count: int = 3, **fields: object) -> Lesson:
    return Lesson("accept", torch.ones(count, 2, dtype=torch.int8), **fields)


# -- the memory ------------------------------------------------------------------------------------


def test_what_is_known_adds_nothing_and_what_is_new_is_thinned_out():
    distance = NoveltyDistance(directions(*range(0, 40, 4)), Novelty(neighbours=1))
    assert len(distance.unknown(directions(*range(0, 38, 3)), 100)) == 0
    many = directions(*np.linspace(60, 90, 400))
    found = distance.unknown(many, 100)
    assert 1 < len(found) < 30
    taught = distance.taught([Taught(found)])
    assert len(taught.unknown(many, 100)) == 0
    assert len(distance.unknown(many, 4)) <= 4
    assert torch.equal(distance.memory, taught.memory)
    assert (
        taught.taught([])
        ._novelty(many.T[None, :, :, None])
        .equal(distance._novelty(many.T[None, :, :, None]))
    )


def test_what_was_pointed_at_counts_by_itself():
    distance = NoveltyDistance(directions(0, 1, 2, 3), Novelty(neighbours=3))
    place = directions(80).T[None, :, :, None]
    along = distance.taught([Taught(directions(80, 40, 30))])
    shown = distance.taught([Taught(directions(80, 40, 30), shown=True)])
    assert distance._novelty(place) > along._novelty(place) > 0.1
    assert shown._novelty(place) == pytest.approx(0, abs=1e-5)


def test_what_was_rejected_is_anomalous_where_it_looks_more_like_that_than_like_the_memory():
    distance = NoveltyDistance(directions(*range(0, 20, 2)), Novelty(neighbours=1))
    taught = distance.taught([Taught(directions(40), nominal=False, shown=True)])
    places = directions(0, 20, 40, 42).T[None, :, :, None]
    before, after = (each._novelty(places).flatten() for each in (distance, taught))
    torch.testing.assert_close(after[:2], before[:2])
    assert after[2] - before[2] == pytest.approx(0.25, abs=1e-4)
    assert 0.2 < after[3] - before[3] < 0.25


def test_a_later_lesson_takes_back_an_earlier_one():
    distance = NoveltyDistance(directions(*range(0, 20, 2)), Novelty(neighbours=1))
    place = directions(60).T[None, :, :, None]
    accept = Taught(directions(60), shown=True)
    reject = replace(accept, nominal=False)
    unknown = distance._novelty(place)
    assert distance.taught([accept, reject])._novelty(place) > unknown
    assert distance.taught([reject, accept])._novelty(place) < 1e-5


def test_a_distance_without_memory_refuses():
    assert CosineDistance().taught([]) is not None
    with pytest.raises(UserError, match="distance is novelty"):
        CosineDistance().taught([Taught(directions(0))])
    with pytest.raises(ValueError, match="channels"):
        NoveltyDistance(directions(0), Novelty()).taught([Taught(torch.ones(1, 3))])


# -- frames ----------------------------------------------------------------------------------------


def test_a_few_frames_make_new_terrain_nominal_and_leave_anomalies(detector: Detector):
    gravel = [terrain(GRAVEL, seed) for seed in range(18)]
    others, meadow = gravel[12:], terrain(MEADOW, 7)
    assert np.mean([alarmed(detector, each) for each in others]) > 0.5
    meadow_before = detector.detect(meadow).scores
    lesson = lesson_of(detector, looks(detector, gravel[:12]))
    assert lesson.frames + len(lesson.left_out) == 12
    assert len(lesson.vectors) > 0
    memory = detector.distance.memory.clone()
    detector.teach(begun(detector).added(lesson))
    assert torch.equal(detector.distance.memory, memory)
    assert np.mean([alarmed(detector, each) for each in others]) < 0.03
    assert detector.detect(with_thing(others[0])).mask[18:30, 22:34].mean() > 0.9
    assert np.abs(detector.detect(meadow).scores - meadow_before).max() < 0.02
    # The old terrain keeps its scale, the new one has another.
    calibration = detector.calibration
    for picture, is_new in ((meadow, False), (others[0], True)):
        found = detector.detect(picture)
        expected = calibration.heatmap(found.scores, taught=is_new)
        assert np.array_equal(found.heatmap, expected)
        assert not np.array_equal(expected, calibration.heatmap(found.scores, taught=not is_new))
    detector.teach(begun(detector))  # undone
    assert np.mean([alarmed(detector, each) for each in others]) > 0.5
    assert np.array_equal(detector.detect(meadow).scores, meadow_before)


def test_scores_after_a_lesson_are_those_of_a_detector_that_has_it(detector: Detector):
    """What a lesson's scores are fitted to is what the next frames will have."""
    pictures = [terrain(GRAVEL, seed) for seed in range(6)]
    seen = looks(detector, pictures)
    distance = detector.distance.taught([Taught(seen[0].vectors)])
    scores, level = detector.rescore(seen[1], distance)
    detector.distance = distance
    step = pictures[1].shape[0] // scores.shape[0]
    expected = detector.detect(pictures[1])
    assert np.abs(scores - expected.scores[::step, ::step]).max() < 0.01
    assert level == pytest.approx(expected.level, abs=0.01)


def test_frames_on_which_an_anomaly_stands_are_left_out(detector: Detector):
    pictures = [terrain(MEADOW, seed) for seed in range(12)]
    for spoilt in (4, 9):
        pictures[spoilt] = with_thing(pictures[spoilt])
    seen = looks(detector, pictures)
    lesson = lesson_of(detector, seen)
    assert {"frame 4", "frame 9"} <= set(lesson.left_out)
    assert len(lesson.left_out) <= 4
    assert lesson_of(detector, seen, accept_all=True).left_out == ()
    # Nothing stands out of the same frame time and again, nor where no alarm is raised.
    assert not any(outlying([seen[0]] * 8))
    assert not any(outlying([replace(each, alarmed=False) for each in seen]))


def test_few_frames_add_vectors_and_leave_the_scale_as_it_is(detector: Detector):
    lesson = lesson_of(detector, looks(detector, [terrain(GRAVEL, 1)]))
    assert len(lesson.vectors) > 0
    assert lesson.scores is None
    detector.teach(begun(detector).added(lesson))
    assert len(lesson_of(detector, looks(detector, [terrain(GRAVEL, 1)])).vectors) == 0


# -- points ----------------------------------------------------------------------------------------


def test_a_point_means_the_segment_below_it():
    segments = np.ones((40, 60), np.int32)
    segments[10:20, 30:50] = 2
    segments[0:10] = 0
    pointed = point_at(segments, (8, 12), 15, 40)
    assert pointed.region.sum() == 200
    assert np.argwhere(pointed.cells).tolist() == [[r, c] for r in (2, 3) for c in range(6, 10)]
    around = point_at(segments, (8, 12), 3, 59)
    assert np.argwhere(around.cells).tolist() == [[r, c] for r in (0, 1) for c in (10, 11)]
    segments[30:32, 30:32] = 3  # smaller than a place of the grid
    assert np.argwhere(point_at(segments, (8, 12), 31, 31).cells).tolist() == [[6, 6]]
    for row, column in ((-1, 0), (40, 0), (0, 60)):
        with pytest.raises(UserError, match="not in the frame of 60x40"):
            point_at(segments, (8, 12), row, column)


@pytest.mark.parametrize(("kind", "colour"), [("accept", BARREL), ("reject", PUDDLE)])
def test_one_click_on_a_segment(detector: Detector, kind: str, colour: tuple[int, int, int]):
    places = range(8, 48, 8)
    frames = [with_thing(terrain(MEADOW, left), left, colour) for left in places]

    def alarms() -> list[int]:
        """Whether most of the thing's inside raises an alarm, in each frame."""
        masks = [each.mask for each in detector.detect_batch(frames)]
        inside = [mask[20:28, x + 4 : x + 12] for mask, x in zip(masks, places, strict=True)]
        return [round(each.mean()) for each in inside]

    untaught, taught = (1, 0) if kind == "accept" else (0, 1)
    assert alarms() == [untaught] * len(frames)
    first = detector.detect(frames[0])
    cells = point_at(first.segments, first.features.shape[2:], 24, 16).cells
    detector.teach(begun(detector).added(Lesson(kind, vectors_at(first.features, cells))))
    assert alarms() == [taught] * len(frames)
    assert alarmed(detector, terrain(MEADOW, 3)) < 0.05


# -- the journal -----------------------------------------------------------------------------------


def test_a_journal_comes_back_as_it_was_written(tmp_path: Path):
    file = tmp_path / "new" / "lessons.safetensors"
    lessons = Lessons({"features": {"name": "x"}}, "memory")
    lessons = lessons.added(
        Lesson(
            "teach",
            torch.randint(-127, 127, (5, 4), dtype=torch.int8),
            "front",
            "~/teach",
            12.5,
            7,
            ("frame 3",),
            "frame 1 to frame 9",
            (thumbnail(terrain(MEADOW, 0)),),
            NominalScores(pooled(np.linspace(0, 1, 50)), NominalLevels(0.1, 0.2, 3.0, 12), 1, 50),
        )
    ).added(entry(about="pixel 3, 4"))
    lessons.save(file)
    back = load_lessons(file)
    assert [each.to_dict() for each in back.entries] == [each.to_dict() for each in lessons.entries]
    first, there = back.entries[0], lessons.entries[0]
    assert torch.equal(first.vectors, there.vectors)
    assert first.thumbnails == there.thumbnails
    scores = np.linspace(-1, 2, 99)
    first_shares, shares = (each.scores.distribution(scores) for each in (first, there))
    np.testing.assert_array_equal(first_shares, shares)
    assert first.scores.levels == there.scores.levels
    fewer, last = back.undone()
    assert (len(fewer.entries), last.about) == (1, "pixel 3, 4")
    with pytest.raises(UserError, match="nothing was taught"):
        fewer.undone()[0].undone()


def test_a_journal_never_outgrows_its_bounds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    lessons = Lessons({}, "")
    lessons = replace(lessons, entries=tuple(entry() for _ in range(999))).added(entry())
    lessons.save(tmp_path / "many.safetensors")
    size = (tmp_path / "many.safetensors").stat().st_size
    assert size < lessons.size < journal.MOST_BYTES
    assert len(load_lessons(tmp_path / "many.safetensors").entries) == 1000
    with pytest.raises(UserError, match="no room for another lesson: 1000 hold 3000 of 8000"):
        lessons.added(entry(journal.MOST_VECTORS - 2999))
    monkeypatch.setattr(journal, "MOST_BYTES", lessons.size)
    with pytest.raises(UserError, match="no room"):
        lessons.added(entry())


def test_damaged_journals_are_refused(tmp_path: Path):
    file = tmp_path / "lessons.safetensors"
    with pytest.raises(UserError, match="cannot read lessons"):
        load_lessons(file)
    Lessons({}, "").added(entry()).save(file)
    whole = file.read_bytes()
    for data in (whole[: len(whole) // 2], b"", whole[:-1] + bytes([whole[-1] ^ 1])):
        file.write_bytes(data)
        with pytest.raises(UserError, match="is no lessons"):
            load_lessons(file)


_KILLED = """
import sys, torch
from anomaly_detector_ros.lessons.journal import Lesson, load_lessons
file = __import__("pathlib").Path(sys.argv[1])
lessons = load_lessons(file)
print("ready", flush=True)
while True:
    lessons = lessons.added(Lesson("accept", torch.ones(1, 64, dtype=torch.int8)))
    lessons.save(file)
"""


def test_a_kill_at_any_moment_leaves_a_whole_journal(tmp_path: Path):
    """The writer is killed in the middle of something, most of the time of a write."""
    file = tmp_path / "lessons.safetensors"
    Lessons({}, "memory").save(file)
    writer = subprocess.Popen(
        [sys.executable, "-c", _KILLED, str(file)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout.readline() == "ready\n"
    wait_until(lambda: len(load_lessons(file).entries) > 20, "lessons")  # whole at any moment
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    remove_partial(file)
    assert [each.name for each in tmp_path.iterdir()] == [file.name]
    assert len(load_lessons(file).entries) > 20


def test_a_full_disk_changes_nothing(tmp_path: Path):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full")
    file = tmp_path / "lessons.safetensors"
    Lessons({}, "").save(file)
    before = file.read_bytes()
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before), hard))
    try:
        with pytest.raises(UserError, match="make room or choose another file; nothing was"):
            Lessons({}, "").added(entry(5000)).save(file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert file.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == [file.name]


def test_lessons_of_another_profile_or_memory_are_refused(
    profile: str, detector: Detector, tmp_path: Path
):
    parts = Parts(torch.device("cpu"), offline=True)
    file = tmp_path / "lessons.safetensors"
    own = begun(detector)
    own.save(file)
    assert parts.lessons(detector.profile, file) == own
    other = {**own.fingerprint, "features": {**own.fingerprint["features"], "input_size": [8, 8]}}
    replace(own, fingerprint=other).save(file)
    with pytest.raises(UserError, match=r"not for profile 'teachable' \(features.input_size"):
        parts.lessons(detector.profile, file)
    replace(own, memory="x").save(file)
    with pytest.raises(UserError, match="another memory"):
        parts.lessons(detector.profile, file)
    (settings,) = yaml.safe_load(Path(profile).read_text()).values()
    settings |= {"calibration": {"file": str(Path(profile).parent / "meadow.safetensors")}}
    changed = tmp_path / "changed.yaml"
    changed.write_text(yaml.safe_dump({"changed": {**settings, "lessons": {"file": str(file)}}}))
    with pytest.raises(UserError, match="another memory"):
        Detector.from_profile(str(changed), device="cpu", offline=True)


# -- commands --------------------------------------------------------------------------------------


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_teaching_on_files_listing_undoing_and_exporting(profile: str, tmp_path: Path):
    write_terrain(tmp_path / "drive", GRAVEL, 14, 500)
    file, options = tmp_path / "mine.safetensors", ("--profile", profile, "--offline")
    teach = ("teach", "--data", tmp_path / "drive", "--output", file, "--device", "cpu", *options)
    told = json.loads(run(*teach, "--frames", 7, "--json").stdout)
    assert told["lesson"]["frames"] + len(told["lesson"]["left_out"]) == 7
    assert told["alarmed_before"] > 0.5
    assert told["refitted"]
    assert "2 lessons" in run(*teach, "--accept", "all").stdout
    listed = json.loads(run("lessons", "list", file, "--thumbnails", tmp_path, "--json").stdout)
    assert [each["frames"] for each in listed][1] == 14
    assert (tmp_path / "0001_0.jpg").stat().st_size > 100
    assert "2 lessons" in run("lessons", "list", file).stdout

    def masks(**changes: object) -> list[np.ndarray]:
        (settings,) = yaml.safe_load(Path(profile).read_text()).values()
        settings |= {"calibration": {"file": str(Path(profile).parent / "meadow.safetensors")}}
        changed = tmp_path / "changed.yaml"
        changed.write_text(yaml.safe_dump({"changed": {**settings, **changes}}))
        detector = Detector.from_profile(str(changed), device="cpu", offline=True)
        return [detector.detect(terrain(GRAVEL, seed)).heatmap for seed in (1, 2)]

    exported = tmp_path / "exported.safetensors"
    run("lessons", "export", file, "--output", exported, *options)
    taught = masks(lessons={"file": str(file)})
    assert np.mean([each >= 0.99 for each in taught]) < 0.05
    baked = masks(calibration={"file": str(exported)})
    assert max(np.abs(a - b).max() for a, b in zip(taught, baked, strict=True)) < 0.02
    assert "undone: teach" in run("lessons", "undo", file, "--count", 2).stdout
    assert np.mean([each >= 0.99 for each in masks(lessons={"file": str(file)})]) > 0.5
    with pytest.raises(UserError, match="nothing was taught"):
        run("lessons", "undo", file)


def test_teaching_and_training_say_what_each_brought(
    profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """With frames that are smaller than the denoiser's, which is none of the presets."""
    monkeypatch.setattr("anomaly_detector_ros.cli.train._SAMPLES", 4)
    monkeypatch.setattr("anomaly_detector_ros.training.measures._SAMPLING_STEPS", 2)
    (settings,) = yaml.safe_load(Path(profile).read_text()).values()
    first = Path(settings["denoiser"]["model"]) / "unet"
    write_terrain(tmp_path / "drive", GRAVEL, 26, 700)
    for picture in (tmp_path / "drive").iterdir():
        cv2.imwrite(str(picture), cv2.resize(cv2.imread(str(picture)), (22, 14)))
    file, written = tmp_path / "mine.safetensors", tmp_path / "mine.yaml"
    arguments = ("--profile", profile, "--data", tmp_path / "drive", "--output", file)
    told = json.loads(run("teach", *arguments, "--train", "2s", "--json").stdout)
    record = json.loads((tmp_path / "mine_denoiser" / "training.json").read_text())
    assert (record["size"], record["init"]) == ([16, 24], str(first.parent))
    before, taught, trained = (row["measured"] for row in told["held_out"].values())
    assert told["held_out_frames"] == 5
    assert before > 0.5
    assert max(taught, trained) < 0.1
    assert told["frames_read"]["read"] == 26
    moved = tmp_path / "robot"  # with all that belongs to it
    moved.mkdir()
    for each in tmp_path.glob("mine*"):
        each.rename(moved / each.name)
    detector = Detector.from_profile(str(moved / written.name), device="cpu", offline=True)
    assert detector.profile.denoiser["model"] == str(moved / "mine_denoiser" / "model")
    assert alarmed(detector, terrain(GRAVEL, 99)) < 0.1
    assert detector.lessons.vectors > 0
    ours, theirs = (
        load_file(folder / "diffusion_pytorch_model.safetensors")
        for folder in (moved / "mine_denoiser" / "model" / "unet", first)
    )
    assert ours.keys() == theirs.keys()
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)
    with pytest.raises(UserError, match="--train 'long' is no duration"):
        run("teach", *arguments, "--train", "long")
    few = ("--profile", profile, "--data", picture, "--output", tmp_path / "few.safetensors")
    with pytest.raises(UserError, match=r"too few frames to train .* \(1\): give 25 at least"):
        run("teach", *few, "--train", "2s")


def test_a_profile_of_ones_own_names_the_installed_one_that_it_changes(profile: str):
    changes = {"denoiser": {"model": "./mine/model"}, "lessons": {"file": "mine.safetensors"}}
    light = load_profile("light")
    assert changes_of(light, **changes) == {"base": "light", **changes}
    others = load_profile("light", overrides={"sampler": {"steps": 9}})
    for other in (others, load_profile(profile)):
        said = changes_of(other, **changes)
        assert said["denoiser"] == {**other.denoiser, "model": "./mine/model"}
        assert said["sampler"] == other.sampler
        assert yaml.safe_load(yaml.safe_dump(said)) == said
