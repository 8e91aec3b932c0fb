"""What colcon needs, which may not read pyproject.toml; all else stands there."""

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
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=[PACKAGE, f"{PACKAGE}.*"]),
    package_data={PACKAGE: ["py.typed", "pages/page.html", "pages/page.css", "pages/page.js"]},
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
