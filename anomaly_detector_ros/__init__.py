"""Pixel-wise anomaly detection for off-road robots: analysis by synthesis.

>>> from anomaly_detector_ros import Detector
>>> Detector.__name__
'Detector'
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from anomaly_detector_ros.errors import UserError

if TYPE_CHECKING:
    from anomaly_detector_ros.detection import Detection
    from anomaly_detector_ros.detector import Detector
    from anomaly_detector_ros.profiles import load_profile

__all__ = ["Detection", "Detector", "UserError", "__version__", "load_profile"]

__version__ = "0.2.0"

# ONNX Runtime reads it when it is imported, and disable_telemetry_events() comes too late. Unset,
# recent versions keep an identifier of the device and a data base of reports in the user's cache.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_MODULES = {"Detection": "detection", "Detector": "detector", "load_profile": "profiles"}


def __getattr__(name: str) -> Any:
    """Imports what is asked for: torch takes seconds, which `--help` need not wait for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
