"""Where the package's models, configuration and launch files lie once installed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

PACKAGE = "anomaly_detector_ros"


def share_dir(kind: str) -> Path:
    """The installed directory ``models``, ``config``, ``launch`` or ``demo``.

    Looked for in the source checkout, then where colcon installs (AMENT_PREFIX_PATH), then beside
    the environment that holds this file (pip).

    Raises:
        FileNotFoundError: the installation is incomplete.
    """
    source = Path(__file__).resolve().parents[2]
    prefixes = [Path(p) for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p]
    prefixes += [Path(sys.prefix), *Path(__file__).parents]
    candidates = [source / kind] if (source / "package.xml").is_file() else []
    candidates += [prefix / "share" / PACKAGE / kind for prefix in prefixes]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(
        f"the package's '{kind}' directory is not installed: reinstall {PACKAGE}"
    )
