import shutil

import numpy as np
import pytest
from PIL import Image as PilImage
from support.dataset_files import SIZE, blank, write

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.evaluation.datasets.base import (
    DATASETS,
    open_dataset,
    open_nominal,
    read_ids,
)


@pytest.fixture
def rellis(tmp_path):
    """Two sequences of 80 x 100 pixels, of which 2 are the least that make an image anomalous."""
    root = tmp_path / "rellis"
    for sequence, anomalous in (("00000", 1), ("00004", 2)):
        labels = np.full((80, 100), 3, np.uint8)
        labels[0] = 0
        labels[40, :anomalous] = 34
        write(root / sequence / "pylon_camera_node" / "frame0.jpg", blank((80, 100)))
        write(root / sequence / "pylon_camera_node_label_id" / "frame0.png", labels)
    return root


@pytest.fixture
def folder(tmp_path):
    """Two images: grass alone, and with an anomaly of two values."""
    root = tmp_path / "folder"
    for i in range(2):
        mask = np.zeros(SIZE, np.uint8)
        mask[-1] = 255
        mask[:i, 0], mask[:i, 1] = 1, 254
        write(root / "images" / f"{i}.jpg", blank())
        write(root / "masks" / f"{i}.png", mask)
    return root


@pytest.mark.parametrize("level", ["Rellis-3D", ".", "00004"])
def test_rellis_from_any_level(rellis, tmp_path, level):
    if level == "Rellis-3D":
        root = tmp_path / "download"
        root.mkdir()
        rellis.rename(root / level)
    else:
        root = rellis / level
    assert len(open_dataset("rellis", root)) == (1 if level == "00004" else 2)


def test_rellis_splits_by_the_share_of_anomalous_pixels(rellis):
    train, ood = open_dataset("rellis", rellis, "train"), open_dataset("rellis", rellis, "ood")
    assert [file.parts[-3] for file in train.image_files()] == ["00000"]
    assert [file.parts[-3] for file in ood.image_files()] == ["00004"]
    assert open_nominal("rellis", rellis).image_files() == train.image_files()
    assert ood[0].anomaly.sum() == 2
    assert (~ood[0].valid).sum() == 100


def test_rellis_ids_without_a_name_count_as_the_benchmark_counts_them(rellis):
    labels = np.full((80, 100), 3, np.uint8)
    labels[0, :3] = 29, 30, 32
    write(rellis / "00000" / "pylon_camera_node_label_id" / "frame0.png", labels)
    assert open_dataset("rellis", rellis)[0].labels[0, :4].tolist() == [3, 3, 6, 3]


def test_every_value_of_a_mask_but_0_and_255_is_anomalous(folder):
    dataset = open_dataset("folder", folder)
    nominal, anomalous = dataset
    assert not nominal.anomaly.any()
    assert anomalous.labels[0, :3].tolist() == [1, 1, 0]
    assert anomalous.anomaly.sum() == 2
    assert (~anomalous.valid).sum() == 50
    assert open_nominal("folder", folder).image_files() == [folder / "images" / "0.jpg"]
    assert dataset.class_frequencies() == {0: 1.0, 1: 0.5, 255: 1.0}


@pytest.mark.parametrize("kind", ["P.png", "P.bmp", "L.bmp", "1.png", "mask"])
def test_masks_as_tools_save_them(folder, kind):
    """Palettes by index, BMP, one bit, and other names: the same anomalies as in a grey PNG."""
    ids = np.zeros(SIZE, np.uint8)
    ids[3:9, 4:20] = 1
    for i in range(2):
        file = folder / "masks" / f"{i}.png"
        file.unlink()
        mode, _, suffix = kind.partition(".")
        if kind == "mask":
            write(folder / "masks" / f"{i}_mask.png", ids)
            continue
        picture = PilImage.fromarray(ids * (255 if mode == "1" else 1))
        if mode == "P":
            picture.putpalette([0, 0, 0, 200, 0, 0] + [9] * 762)
        picture = picture.convert("1") if mode == "1" else picture
        picture.save(file.with_suffix(f".{suffix}"))
    for each in open_dataset("folder", folder):
        np.testing.assert_array_equal(each.anomaly, ids == 1)
        assert each.valid.all()


def test_masks_of_2_and_4_bits_hold_their_ids(tmp_path):
    ids = np.arange(16, dtype=np.uint8).reshape(2, 8) % 4
    for bits in (2, 4):
        file = tmp_path / f"{bits}.png"
        scaled = PilImage.fromarray(ids)
        scaled.putpalette(bytes(range(256)) * 3)
        scaled.save(file, bits=bits)
        np.testing.assert_array_equal(read_ids(file), ids)


def test_masks_of_0_and_255_alone_hold_no_void(folder, caplog):
    ids = np.zeros(SIZE, np.uint8)
    ids[3:9, 4:20] = 255
    for i in range(2):
        write(folder / "masks" / f"{i}.png", ids if i else ids * 0)
    dataset = open_dataset("folder", folder)
    assert [int(each.anomaly.sum()) for each in dataset] == [0, 96]
    assert all(each.valid.all() for each in dataset)
    assert "255 is the anomaly" in caplog.text
    write(folder / "masks" / "0.png", ids // 255)  # an id of its own: 255 is void
    assert [int(each.anomaly.sum()) for each in open_dataset("folder", folder)] == [96, 0]


def test_a_folder_without_masks_is_nominal(folder):
    shutil.rmtree(folder / "masks")
    nominal = open_nominal("folder", folder)
    assert len(nominal) == len(open_dataset("folder", folder))
    assert not nominal[0].anomaly.any()


def test_ycor_by_part_and_by_split(folder):
    (folder / "masks").rename(folder / "labels")
    for i in range(2):
        write(folder / "labels" / f"{i}.png", np.full(SIZE, 7 + i, np.uint8))
    parts = folder.parent / "ycor"
    parts.mkdir()
    folder.rename(parts / "val")
    part, split = open_dataset("ycor", parts / "val"), open_dataset("ycor", parts, "val")
    assert part.image_files() == split.image_files()
    assert split[1].anomaly.all()
    assert open_nominal("ycor", parts, "val").image_files() == [parts / "val" / "images" / "0.jpg"]
    with pytest.raises(UserError, match="give a part of YCOR as root, or one of the splits train"):
        open_dataset("ycor", parts)
    with pytest.raises(UserError, match=r"train/images' is not a folder"):
        open_dataset("ycor", parts, "train")


def test_unknown_names_list_the_known(tmp_path):
    with pytest.raises(UserError, match="'kitti': choose one of folder, rellis, rugd, ycor"):
        open_dataset("kitti", tmp_path)
    for name in DATASETS.names():
        with pytest.raises(UserError, match=rf"{name} has no split 'all-of-it'"):
            open_dataset(name, tmp_path, "all-of-it")


@pytest.mark.parametrize("name", DATASETS.names())
def test_an_empty_root_is_named(name, tmp_path):
    with pytest.raises(UserError, match=str(tmp_path)):
        open_dataset(name, tmp_path)
    with pytest.raises(UserError, match="absent"):
        open_dataset(name, tmp_path / "absent")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: f.unlink(), "no readable label '.*1.png' for image '.*1.jpg': add it"),
        (lambda f: write(f, np.zeros((9, 8), np.uint8)), r"is \(9, 8\), its image \(40, 50\)"),
        (
            lambda f: write(f, np.zeros(SIZE, np.uint16)),
            "is a grey PNG of 16 bits: save it as grey of 8",
        ),
        (lambda f: write(f, np.zeros((*SIZE, 4), np.uint8)), "is a RGBA PNG of 8 bits"),
        (lambda f: write(f, np.zeros((*SIZE, 3), np.uint8)), "is a RGB PNG of 8 bits"),
        (lambda f: f.write_bytes(b"no picture"), "is no PNG file"),
        (lambda f: f.write_bytes(f.read_bytes()[:-30]), "is truncated or corrupt"),
        (lambda f: f.write_bytes(f.read_bytes()[:20]), "is no PNG file"),
    ],
)
def test_unfit_labels_are_named(folder, damage, message):
    damage(folder / "masks" / "1.png")
    with pytest.raises(UserError, match=message) as caught:
        list(open_dataset("folder", folder))
    assert "masks/1.png" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_id_is_located(rellis):
    labels = np.full((80, 100), 3, np.uint8)
    labels[12, 34] = 2
    write(rellis / "00004" / "pylon_camera_node_label_id" / "frame0.png", labels)
    expected = r"frame0.png' has id 2 at row 12, column 34: rellis knows 0, 1, 3, 4, "
    with pytest.raises(UserError, match=expected):
        list(open_dataset("rellis", rellis))
    with pytest.raises(UserError, match=expected):
        open_dataset("rellis", rellis, "train")


def test_an_unreadable_image_is_named(folder):
    (folder / "images" / "1.jpg").write_bytes(b"no picture")
    dataset = open_dataset("folder", folder)
    assert dataset[0].image.shape == (*SIZE, 3)
    with pytest.raises(UserError, match=r"cannot read '.*images/1.jpg'"):
        dataset[1]


def test_real_ycor(shared_data):
    root = shared_data / "ycor"
    parts = {split: open_dataset("ycor", root, split) for split in ("train", "val", "test")}
    # The part to train on grows; what it is for does not: no frame of it holds an obstacle.
    frequencies = parts["train"].class_frequencies()
    assert frequencies[8] == 0.0
    assert frequencies[0] == 1.0
    assert 0 < frequencies[7] < 0.2 < 0.9 < frequencies[5] < 1
    spread = [parts["train"][i] for i in range(0, len(parts["train"]), 40)]
    assert all(frame.image.shape == (272, 512, 3) for frame in spread)
    assert not any(frame.anomaly.any() for frame in spread)
    assert (len(parts["val"]), len(parts["test"])) == (60, 34)
    assert parts["test"].class_frequencies()[8] == 1.0
    assert len(open_nominal("ycor", root, "val")) == 60
    frames = list(parts["test"])
    assert all(frame.image.shape == (272, 512, 3) for frame in frames)
    share = sum(f.anomaly.sum() for f in frames) / sum(f.valid.sum() for f in frames)
    assert share == pytest.approx(0.016, abs=0.001)


def test_real_rellis(shared_data):
    dataset = open_dataset("rellis", shared_data / "rellis")
    assert [frame.anomaly.sum() for frame in dataset] == [201, 197]
    # Some pixels of a vehicle, under 0.00025 of 1920 x 1200.
    assert len(open_dataset("rellis", shared_data / "rellis", "train")) == 2
    with pytest.raises(UserError, match=r"none of the 2 images .* counts as out of distribution"):
        open_dataset("rellis", shared_data / "rellis", "ood")
    frequencies = dataset.class_frequencies()
    assert [id_ for id_, share in frequencies.items() if share] == [3, 4, 7, 8, 9, 18, 19, 31, 33]
