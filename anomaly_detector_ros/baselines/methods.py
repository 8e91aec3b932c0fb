"""Baselines by name: new ones with settings, fitted ones from a file."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anomaly_detector_ros.baselines.base import KIND, Baseline
from anomaly_detector_ros.baselines.flow import FlowBaseline
from anomaly_detector_ros.baselines.gmm import GmmBaseline
from anomaly_detector_ros.baselines.nearest import NearestBaseline
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.runtime.fitted_file import open_fitted

_METHODS: dict[str, type[Baseline]] = {
    method.name: method for method in (GmmBaseline, NearestBaseline, FlowBaseline)
}
BASELINES = tuple(_METHODS)
"""The names that `make_baseline` knows."""


def make_baseline(name: str, settings: Mapping[str, Any] | None = None) -> Baseline:
    """The baseline called ``name``, not fitted yet.

    Args:
        name: one of `BASELINES`.
        settings: the class' arguments; its own defaults otherwise.

    Raises:
        UserError: unknown name or setting, or a value out of range.
    """
    if name not in _METHODS:
        raise UserError(f"unknown baseline '{name}': choose {', '.join(BASELINES)}")
    known = list(inspect.signature(_METHODS[name]).parameters)
    unknown = sorted(set(settings or {}) - set(known))
    if unknown:
        raise UserError(f"{name}: unknown setting '{unknown[0]}': choose {', '.join(known)}")
    return _METHODS[name](**(settings or {}))


def load_baseline(path: Path) -> Baseline:
    """A fitted baseline as `Baseline.save` wrote it, with the same scores.

    Raises:
        UserError: missing, truncated or altered, or a file of another kind.
    """
    with open_fitted(path, KIND, "fit") as (header, state):
        baseline = make_baseline(header["baseline"], header["settings"])
        baseline.features = dict(header["features"])
        baseline.load_state(state, int(header["channels"]))
        return baseline
