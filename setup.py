"""Installs the package by pip and, as an ament_python package, by colcon."""

import re
from pathlib import Path

from setuptools import find_packages, setup

PACKAGE = "anomaly_detector_ros"
SHARE = f"share/{PACKAGE}"
VERSION = re.search(r'__version__ = "(.+)"', Path(PACKAGE, "__init__.py").read_text())[1]


def files_under(*folders: str) -> list[tuple[str, list[str]]]:
    """Each folder's files, to be installed below share/ with the same layout."""
    found: dict[str, list[str]] = {}
    for folder in folders:
        for file in sorted(Path(folder).rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                found.setdefault(f"{SHARE}/{file.parent.as_posix()}", []).append(file.as_posix())
    return list(found.items())


setup(
    name=PACKAGE,
    version=VERSION,
    description="Pixel-wise anomaly detection for off-road robots: analysis by synthesis",
    license="Apache-2.0",
    maintainer="anomaly_detector_ros maintainers",
    maintainer_email="maintainers@anomaly-detector-ros.invalid",
    packages=find_packages(include=[PACKAGE, f"{PACKAGE}.*"]),
    package_data={PACKAGE: ["py.typed"]},
    python_requires=">=3.10",
    install_requires=[
        "accelerate>=0.33,<2",
        "backports.zstd>=1,<2; python_version < '3.14'",
        "diffusers>=0.30,<1",
        "faiss-cpu>=1.8,<2",
        "huggingface_hub>=0.24,<3",
        "lz4>=4.3,<5",
        "matplotlib>=3.7,<4",
        "numpy>=1.24,<3",
        "onnx>=1.16,<2",
        "onnxruntime>=1.17,<2",
        "open_clip_torch>=2.31,<4",
        "opencv-python-headless>=4.8,<6",
        "pillow>=10.1,<14",
        "psutil>=5.9,<8",
        "pydantic>=2.6,<3",
        "PyYAML>=6,<7",
        "rich>=13,<17",
        "rosbags>=0.11.9,<0.12",
        "safetensors>=0.4,<1",
        "scikit-image>=0.22,<1",
        "scikit-learn>=1.3,<2",
        "segment-anything>=1,<2",
        "setuptools",
        "timm>=1.0.9,<2",
        "torch>=2.4,<3",
        "torchvision>=0.19,<1",
        "typer>=0.12,<1",
        "zuko>=1.6,<2",
    ],
    extras_require={
        # ROS 2 for machines without a ROS installation.
        "ros": [
            "ros-jazzy-rclpy[fastrtps]",
            "ros-jazzy-diagnostic-msgs",
            "ros-jazzy-geometry-msgs",
            "ros-jazzy-nav-msgs",
            "ros-jazzy-sensor-msgs",
            "ros-jazzy-std-srvs",
            "ros-jazzy-visualization-msgs",
        ],
        "train": ["tensorboard>=2.14,<3"],
        "test": [
            "denoising-diffusion-pytorch>=2.0.12,<3",
            "hypothesis>=6,<7",
            "import-linter>=2.8,<3",
            "pytest>=8,<10",
            "ruff>=0.6,<1",
            "tensorboard>=2.14,<3",
        ],
    },
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (SHARE, ["package.xml"]),
        # Where `ros2 run` looks; a plain file, so that pip and colcon put it in the same place.
        (f"lib/{PACKAGE}", ["scripts/anomaly_detector_node"]),
        *files_under("launch", "config", "models", "demo"),
    ],
    entry_points={"console_scripts": [f"anomaly-detector = {PACKAGE}.cli.main:main"]},
    zip_safe=False,
)
