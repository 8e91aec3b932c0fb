"""The files that are mutated: small, good ones of every kind, and how the package reads each."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import yaml
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from safetensors.torch import save_file
from support.tiny import save_tiny_unet

from anomaly_detector_ros.bags.processing import process_bag
from anomaly_detector_ros.baselines.base import FittedBaseline
from anomaly_detector_ros.baselines.gmm import Gmm
from anomaly_detector_ros.calibration.calibration import (
    DEFAULT_CAMERA,
    Calibration,
    NominalScores,
    load_calibration,
)
from anomaly_detector_ros.calibration.distribution import ScoreDistribution
from anomaly_detector_ros.detection import Detection
from anomaly_detector_ros.distances.whitened import WhitenedDistance
from anomaly_detector_ros.imaging.images import read_rgb
from anomaly_detector_ros.imaging.messages import image_fields
from anomaly_detector_ros.profiles import Profile, load_profile, profile_names
from anomaly_detector_ros.runtime.files import hash_file
from anomaly_detector_ros.sources.recordings import IMAGE, typestore
from anomaly_detector_ros.synthesis.denoisers.loading import load_denoiser
from anomaly_detector_ros.synthesis.denoisers.onnx_export import export_denoiser
from anomaly_detector_ros.weights.landing import Landing
from anomaly_detector_ros.weights.onnx_weights import OnnxExport
from anomaly_detector_ros.weights.packages import land_tar_member, land_wheel_member
from anomaly_detector_ros.weights.published import read_state
from anomaly_detector_ros.weights.registry import Registry

SIZE = (16, 24)
FRAMES = 3


@dataclass(frozen=True)
class Subject:
    """A good file or directory, and what reads it.

    Attributes:
        name: for messages.
        make: writes it under a folder and gives its path.
        read: the path of a copy, mutated or not; checks what it gets.
    """

    name: str
    make: Callable[[Path], Path]
    read: Callable[[Path], object]


class Quick:
    """Stands for the detector, which would take most of the time: finds nothing, at once."""

    profile = Profile("quick")
    threshold = 0.5

    def detect(self, image: np.ndarray, **options: object) -> Detection:
        assert image.dtype == np.uint8
        assert image.shape[2] == 3
        zeros = np.zeros(image.shape[:2], np.float32)
        return Detection(
            zeros, zeros > 0, zeros.astype(np.int32), np.array(image), 0.0, {"total": 0.0}, zeros
        )


def _bag(storage: StoragePlugin, mode: CompressionMode) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        store = typestore()
        writer = Writer(folder / "bag", version=8, storage_plugin=storage)
        writer.set_compression(mode, CompressionFormat.ZSTD)
        with writer:
            text = writer.add_connection("/text", "std_msgs/msg/String", typestore=store)
            images = writer.add_connection("/camera/image_raw", IMAGE, typestore=store)
            for index in range(FRAMES):
                message = store.types["std_msgs/msg/String"](data="hello")
                data = store.serialize_cdr(message, "std_msgs/msg/String")
                writer.write(text, 10 * index, data)
                writer.write(images, 10 * index + 1, _frame(index))
        return folder / "bag"

    return make


def _frame(index: int) -> memoryview:
    store = typestore()
    stamp = store.types["builtin_interfaces/msg/Time"](sec=index, nanosec=0)
    header = store.types["std_msgs/msg/Header"](stamp=stamp, frame_id="camera")
    fields = image_fields(np.full((8, 10, 3), index, np.uint8), "rgb8")
    fields["data"] = np.frombuffer(fields["data"], np.uint8)
    return store.serialize_cdr(store.types[IMAGE](header=header, **fields), IMAGE)


def _read_bag(bag: Path) -> object:
    output = bag.with_name("output")
    report = process_bag(bag, output, Quick(), outputs=["mask", "heatmap"])  # type: ignore[arg-type]
    assert output.is_dir()
    assert report.copied <= 2 * FRAMES + 2
    return report


def _denoiser(folder: Path) -> Path:
    return save_tiny_unet(folder / "model", SIZE)


def _exported(folder: Path) -> Path:
    export_denoiser(save_tiny_unet(folder / "source", SIZE), folder / "model", size=SIZE)
    return folder / "model"


def _read_denoiser(directory: Path) -> object:
    denoiser = load_denoiser(directory)
    x = torch.zeros(1, 3, *SIZE)
    with torch.no_grad():
        try:
            found = denoiser(x, 500)
        except Exception:  # of one image: the node and the bag tool count it and go on
            return denoiser
    assert found.shape == x.shape
    return denoiser


def _network(folder: Path) -> Path:
    """An ONNX file of a size that is mutated with effect."""
    import onnx
    from onnx import TensorProto, helper

    weight = helper.make_tensor("w", TensorProto.FLOAT, [3, 3, 1, 1], [0.5] * 9)
    shape = ["batch", 3, 8, 8]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Relu", ["c"], ["y"])],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(folder / "network.onnx"))
    return folder / "network.onnx"


def _calibration(folder: Path) -> Path:
    scores = np.linspace(0.1, 0.9, 50)
    distribution = ScoreDistribution(scores, np.linspace(0.0, 0.98, 50), 0.1)
    whitening = WhitenedDistance(torch.zeros(4), torch.eye(4))
    settings = {"denoiser": {"model": "m"}, "weights": {}}
    nominal = {DEFAULT_CAMERA: NominalScores(distribution, None, 3, 1000)}
    Calibration(nominal, settings, whitening.tensors()).save(folder / "calibration")
    return folder / "calibration"


def _read_calibration(file: Path) -> object:
    heatmap = load_calibration(file).heatmap(np.random.default_rng(0).random((5, 7)) * 2)
    assert heatmap.shape == (5, 7)
    assert ((heatmap >= 0) & (heatmap <= 1)).all()
    return heatmap


def _baseline(folder: Path) -> Path:
    vectors = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    Gmm(components=2).fit(vectors).save(folder / "baseline")
    return folder / "baseline"


def _weights(folder: Path) -> Path:
    file = folder / "weights.safetensors"
    save_file({"a.weight": torch.zeros(3, 4), "a.bias": torch.zeros(3)}, file)
    return file


def _pickled(folder: Path) -> Path:
    torch.save({"state_dict": {"a.weight": torch.zeros(3, 4)}}, folder / "weights.pt")
    return folder / "weights.pt"


def _registry(folder: Path) -> Path:
    (folder / "file.bin").write_bytes(b"content")
    (folder / "there").mkdir()
    (folder / "there" / "file.bin").write_bytes(b"content")
    digest = hash_file(folder / "file.bin")
    file = {
        "name": "sub/file.bin",
        "bytes": 7,
        "sha256": digest,
        "sources": [{"local": "file.bin"}],
    }
    entry = {"title": "t", "licence": "MIT", "project": "p", "files": [file]}
    shipped = {**entry, "shipped": "there", "files": [{"name": "file.bin", "bytes": 7}]}
    content = {"models": {"fetched": entry, "shipped": shipped}}
    (folder / "registry.yaml").write_text(yaml.safe_dump(content))
    return folder / "registry.yaml"


def _read_registry(file: Path) -> object:
    cache = file.parent / "cache"
    registry = Registry.from_file(file, cache)
    for name in registry.names():
        assert registry.directory(name).resolve().is_relative_to(file.parent.resolve())
        registry.fetch(name, offline=True)
    return registry


def _profiles(folder: Path) -> Path:
    profile = {
        "title": "t", "denoiser": {"model": "./model", "size": list(SIZE), "dtype": "float32"},
        "sampler": {"name": "few_step", "noise_level": 0.5, "steps": 2, "num_edits": 1, "seed": 0},
        "features": {"name": "rgb", "input_size": [32, 48]}, "upsampler": {"name": "bilinear"},
        "segmenter": {"name": "none"}, "threshold": 0.3,
    }  # fmt: skip
    content = {"first": profile, "second": {"base": "first", "threshold": 0.5}}
    (folder / "profiles.yaml").write_text(yaml.safe_dump(content))
    return folder / "profiles.yaml"


def _read_profiles(file: Path) -> object:
    for name in profile_names(file.parent):
        load_profile(name, models_dir=file.parent).model_names()
    return True


def _wheel(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "package.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("other.txt", "text")
        archive.writestr("package/weights.bin", b"content" * 20)
    return folder / "package.whl"


def _tarball(folder: Path) -> Path:
    (folder / "weights.bin").write_bytes(b"content" * 20)
    with tarfile.open(folder / "package.tgz", "w:gz") as archive:
        archive.add(folder / "weights.bin", "package/weights.bin")
    return folder / "package.tgz"


def _read_member(land: Callable[[Path, str, Landing], None]) -> Callable[[Path], object]:
    def read(archive: Path) -> object:
        import hashlib

        content = b"content" * 20
        target = archive.parent / "landed"
        digest = hashlib.sha256(content).hexdigest()
        land(archive, "package/weights.bin", Landing(target, "weights", len(content), digest))
        assert target.read_bytes() == content
        return target

    return read


def _picture(suffix: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
        assert cv2.imwrite(str(folder / f"picture{suffix}"), picture)
        return folder / f"picture{suffix}"

    return make


def _read_picture(file: Path) -> object:
    found = read_rgb(file)
    assert found.dtype == np.uint8
    assert found.ndim == 3
    assert found.shape[2] == 3
    return found


_PLAIN = CompressionMode.NONE
SUBJECTS = (
    Subject("mcap bag", _bag(StoragePlugin.MCAP, _PLAIN), _read_bag),
    Subject("sqlite3 bag", _bag(StoragePlugin.SQLITE3, _PLAIN), _read_bag),
    Subject("mcap bag, chunks", _bag(StoragePlugin.MCAP, CompressionMode.STORAGE), _read_bag),
    Subject("sqlite3 bag, files", _bag(StoragePlugin.SQLITE3, CompressionMode.FILE), _read_bag),
    Subject("mcap bag, messages", _bag(StoragePlugin.MCAP, CompressionMode.MESSAGE), _read_bag),
    Subject("diffusers model", _denoiser, _read_denoiser),
    Subject("exported model", _exported, _read_denoiser),
    Subject("onnx", _network, OnnxExport),
    Subject("calibration", _calibration, _read_calibration),
    Subject("baseline", _baseline, FittedBaseline.load),
    Subject("safetensors", _weights, read_state),
    Subject("tensors", _pickled, read_state),
    Subject("registry", _registry, _read_registry),
    Subject("profiles", _profiles, _read_profiles),
    Subject("wheel", _wheel, _read_member(land_wheel_member)),
    Subject("tarball", _tarball, _read_member(land_tar_member)),
    *(
        Subject(f"picture{suffix}", _picture(suffix), _read_picture)
        for suffix in (".jpg", ".png", ".tiff", ".webp")
    ),
)
