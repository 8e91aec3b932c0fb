import os

import numpy as np
import pytest
from support.dataset_files import SIZE, blank, stems, write

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.evaluation.cache import Cache
from anomaly_detector_ros.evaluation.datasets.base import (
    open_dataset,
    open_nominal,
)
from anomaly_detector_ros.evaluation.datasets.rugd import SCENES, AnnotationColours, Rugd

COLORMAP = """\
0 void 0 0 0
3 grass 0 102 0
7 sky 0 0 255
8 vehicle 255 255 0
9 container/generic-object 255 0 127
12 building 255 0 0
16 bicycle 0 255 128
17 person 204 153 255
22 bridge 102 255 255
24 picnic-table 114 85 47
"""


def rugd_colours(anomalous=0):
    """Grass under sky, the first pixels a vehicle."""
    colours = np.zeros((*SIZE, 3), np.uint8)
    colours[:20], colours[20:] = (0, 0, 255), (0, 102, 0)
    colours.reshape(-1, 3)[:anomalous] = (255, 255, 0)
    return colours


@pytest.fixture
def rugd(tmp_path):
    """Nominal and anomalous frames of one scene of each split, and of one that no split names."""
    root = tmp_path / "rugd"
    for scene in ("trail", "trail-5", "creek", "village"):
        for i, anomalous in enumerate((0, 99, 100)):
            write(root / "RUGD_frames-with-annotations" / scene / f"{scene}_{i}.png", blank())
            write(root / "RUGD_annotations" / scene / f"{scene}_{i}.png", rugd_colours(anomalous))
    (root / "RUGD_annotations" / "RUGD_annotation-colormap.txt").write_text(COLORMAP)
    return root


def test_rugd_splits_by_scene_and_out_of_distribution_rule(rugd):
    assert stems(open_dataset("rugd", rugd, "train")) == ["trail_0", "trail_1"]
    assert stems(open_dataset("rugd", rugd, "val")) == ["trail-5_0", "trail-5_1"]
    assert stems(open_dataset("rugd", rugd, "test")) == ["creek_0", "creek_1", "creek_2"]
    assert stems(open_dataset("rugd", rugd, "ood")) == [
        "creek_2",
        "trail_2",
        "trail-5_2",
    ]
    assert len(open_dataset("rugd", rugd)) == len(open_dataset("rugd", rugd, "all")) == 12
    assert (
        open_nominal("rugd", rugd).image_files()
        == open_dataset("rugd", rugd, "train").image_files()
    )
    assert stems(open_nominal("rugd", rugd, "test")) == ["creek_0", "creek_1"]
    with pytest.raises(UserError, match=r"none of the 3 images in .* is nominal"):
        open_nominal("rugd", rugd, "ood")


def test_village_belongs_to_no_split_of_the_paper(tmp_path):
    """Of RUGD's 18 scenes the paper has 17; each holds a frame with and one without anomalies."""
    root = tmp_path / "rugd"
    trails = [f"trail-{number}" for number in range(3, 16) if number != 8]
    for scene in ("creek", "park-1", "park-2", "park-8", "trail", *trails, "village"):
        for i, anomalous in enumerate((0, 100)):
            write(root / "RUGD_frames-with-annotations" / scene / f"{scene}_{i}.png", blank())
            write(root / "RUGD_annotations" / scene / f"{scene}_{i}.png", rugd_colours(anomalous))
    (root / "RUGD_annotations" / "RUGD_annotation-colormap.txt").write_text(COLORMAP)
    counts = {split: len(open_dataset("rugd", root, split)) for split in Rugd.splits}
    assert counts == {"train": 11, "val": 2, "test": 8, "ood": 17, "all": 36}
    for split in ("train", "val", "test", "ood"):
        assert not any(
            name.startswith("village") for name in stems(open_dataset("rugd", root, split))
        )


def test_scenes_of_the_splits_are_disjoint():
    scenes = [scene for part in SCENES.values() for scene in part]
    assert len(scenes) == len(set(scenes)) == 17


def test_rugd_colours_become_ids(rugd):
    image = open_dataset("rugd", rugd, "test")[2]
    assert image.name == "creek_2"
    assert image.file == rugd / "RUGD_frames-with-annotations" / "creek" / "creek_2.png"
    assert image.labels.dtype == np.uint8
    assert image.labels[0, 0] == image.labels[1, 49] == 8
    assert image.labels[2, 0] == 7
    assert image.labels[-1, -1] == 3
    assert image.anomaly.sum() == 100
    assert image.anomaly[:2].all()
    assert image.valid.all()


def test_rugd_colormap_may_lie_in_the_root(rugd):
    file = rugd / "RUGD_annotations" / "RUGD_annotation-colormap.txt"
    file.rename(rugd / file.name)
    assert len(open_dataset("rugd", rugd)) == 12


def test_a_colour_outside_the_colormap_is_located(rugd):
    colours = rugd_colours()
    colours[7, 31] = (1, 2, 3)
    write(rugd / "RUGD_annotations" / "creek" / "creek_1.png", colours)
    expected = r"creek/creek_1.png' has the colour 1 2 3 at row 7, column 31, which"
    dataset = open_dataset("rugd", rugd)
    assert dataset[0].valid.all()
    with pytest.raises(UserError, match=expected):
        dataset[1]
    with pytest.raises(UserError, match=expected):
        dataset.class_frequencies()
    with pytest.raises(UserError, match=expected):
        open_dataset("rugd", rugd, "ood")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 void 0 0", "line 1 is no 'id name red green blue'"),
        ("0 void 0 0 0 0", "line 1 is no"),
        ("0 void 0 0 256", "line 1 is no"),
        ("0 void 0 0 0\n255 sky 0 0 1", "line 2 is no"),
        ("x void 0 0 0", "line 1 is no"),
        ("0 void 0 0 0\n\n1 sky 0 0 0", "line 3 repeats an id, name or colour"),
        ("0 void 0 0 0\n1 void 0 0 1", "line 2 repeats"),
        ("0 void 0 0 0\n0 sky 0 0 1", "line 2 repeats"),
        (COLORMAP.replace("person", "human"), "lacks class 'person'"),
        ("", "lacks class 'void'"),
    ],
)
def test_malformed_colormaps_are_refused(rugd, text, message):
    (rugd / "RUGD_annotations" / "RUGD_annotation-colormap.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        open_dataset("rugd", rugd)


def test_missing_colormap_is_named(rugd):
    (rugd / "RUGD_annotations" / "RUGD_annotation-colormap.txt").unlink()
    with pytest.raises(UserError, match=r"cannot read colormap '.*colormap.txt'"):
        open_dataset("rugd", rugd)


@pytest.mark.parametrize("pixels", [np.zeros(SIZE, np.uint8), np.zeros((*SIZE, 4), np.uint8)])
def test_a_rugd_annotation_must_be_rgb(rugd, pixels):
    write(rugd / "RUGD_annotations" / "creek" / "creek_0.png", pixels)
    with pytest.raises(
        UserError, match=r"creek_0.png' is a \w+ PNG of 8 bits: save it as RGB of 8"
    ):
        open_dataset("rugd", rugd)[0]


def test_a_split_without_images_is_an_error(rugd):
    for scene in ("RUGD_frames-with-annotations", "RUGD_annotations"):
        (rugd / scene / "creek").rename(rugd / scene / "trail-9")
    with pytest.raises(UserError, match=r"no such images in .*: check the folder and the split"):
        open_dataset("rugd", rugd, "test")


def test_class_frequencies_are_shares_of_images(rugd):
    seen = []
    dataset = open_dataset("rugd", rugd, "test")
    frequencies = dataset.class_frequencies(lambda done, total, doing: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert frequencies == {
        **dict.fromkeys((0, 9, 12, 16, 17, 22, 24), 0.0),
        3: 1.0,
        7: 1.0,
        8: pytest.approx(2 / 3),
    }


def test_finding_a_split_reports_progress_once(rugd):
    seen = []
    open_nominal("rugd", rugd, None, lambda done, total, doing: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.fixture
def reads(monkeypatch):
    """The names of the annotations that are read, in order."""
    names = []
    alone = AnnotationColours.decode

    def noted(self, file):
        names.append(file.stem)
        return alone(self, file)

    monkeypatch.setattr(AnnotationColours, "decode", noted)
    return names


def test_each_label_is_read_once_while_a_data_set_is_open(rugd, reads):
    open_nominal("rugd", rugd).class_frequencies()
    assert reads == ["trail_0", "trail_1", "trail_2"]


def test_opening_a_data_set_again_reads_no_label(rugd, reads, tmp_path):
    cache, seen = Cache(tmp_path / "cache"), []

    def advance(done, total, doing):
        seen.append((done, total, doing))

    def opened():
        frequencies = open_nominal("rugd", rugd, None, advance, cache).class_frequencies()
        return stems(open_dataset("rugd", rugd, "ood", advance, cache)), frequencies

    first = opened()
    # Of the nine frames of known scenes the three of train are known when ood is opened.
    assert seen == [
        *((i, 3, "labels") for i in (1, 2, 3)),
        *((i, 6, "labels") for i in range(1, 7)),
    ]
    assert len(reads) == len(set(reads)) == 9
    assert opened() == first
    assert len(seen) == len(reads) == 9
    # The picture's own labels are read whenever it is.
    assert open_dataset("rugd", rugd, "ood", None, cache)[0].anomaly.sum() == 100
    assert reads[9:] == ["creek_2"]


def test_an_index_of_labels_follows_the_files(rugd, reads, tmp_path):
    cache = Cache(tmp_path / "cache")
    assert "trail_0" in stems(open_dataset("rugd", rugd, "train", None, cache))
    reads.clear()
    changed = rugd / "RUGD_annotations" / "trail" / "trail_0.png"
    write(changed, rugd_colours(300))
    os.utime(changed, ns=(0, 1))
    assert stems(open_dataset("rugd", rugd, "train", None, cache)) == ["trail_1"]
    assert reads == ["trail_0"]
    # Another colormap gives the same files another meaning.
    file = rugd / "RUGD_annotations" / "RUGD_annotation-colormap.txt"
    file.write_text(COLORMAP.replace("3 grass", "1 grass"))
    reads.clear()
    assert open_dataset("rugd", rugd, "train", None, cache).class_frequencies()[1] == 1
    assert len(reads) == 3


@pytest.mark.parametrize("content", [b"", b"no JSON", b"[1, 2]", b'[["a", 1, 2, 3]]', b"\xff"])
def test_a_damaged_index_is_made_anew(rugd, reads, tmp_path, content):
    cache = Cache(tmp_path / "cache")
    first = stems(open_dataset("rugd", rugd, "ood", None, cache))
    (index,) = (tmp_path / "cache").rglob("*.json")
    index.write_bytes(content)
    assert stems(open_dataset("rugd", rugd, "ood", None, cache)) == first
    assert len(reads) == 18
    open_dataset("rugd", rugd, "ood", None, cache)
    assert len(reads) == 18


def test_what_was_read_before_an_interruption_is_kept(rugd, reads, tmp_path):
    def stop(done, total, doing):
        if done == 2:
            raise KeyboardInterrupt

    cache = Cache(tmp_path / "cache")
    with pytest.raises(KeyboardInterrupt):
        open_dataset("rugd", rugd, "train", stop, cache)
    open_dataset("rugd", rugd, "train", None, cache)
    assert reads == ["trail_0", "trail_1", "trail_2"]


def test_labels_are_read_where_no_index_can_be_kept(rugd, tmp_path):
    (tmp_path / "file").touch()
    assert len(open_dataset("rugd", rugd, "ood", None, Cache(tmp_path / "file" / "cache"))) == 3


def test_real_rugd(shared_data):
    root = shared_data / "rugd"
    assert stems(open_dataset("rugd", root, "ood")) == [
        "creek_00001",
        "park-1_00001",
        "park-2_02001",
        "trail-13_00001",
        "trail-14_01001",
        "trail-3_00001",
        "trail-4_00001",
    ]
    assert stems(open_dataset("rugd", root, "train")) == [
        "park-2_00501",
        "trail_00001",
        "trail-10_00001",
        "trail-6_00001",
        "trail-9_00001",
    ]
    assert stems(open_dataset("rugd", root, "val")) == ["trail-5_00001"]
    assert len(open_dataset("rugd", root, "test")) == 3
    everything = open_dataset("rugd", root)
    assert len(everything) == 13
    assert len(everything.classes.names) == 25
    assert {everything.classes.names[i] for i in everything.classes.anomalous} == {
        "vehicle",
        "container/generic-object",
        "building",
        "bicycle",
        "person",
        "bridge",
        "picnic-table",
    }
    creek = everything[0]
    # Vehicle, bridge and container; nothing else counts.
    assert creek.anomaly.sum() == 3254 + 313 + 23
    assert np.unique(creek.labels).tolist() == [1, 2, 3, 4, 6, 7, 8, 9, 14, 19, 21, 22]
