"""Precision-recall and ROC curves of several methods as one picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from anomaly_detector_ros.evaluation.metrics import pixels
from anomaly_detector_ros.evaluation.metrics.pixels import Curve
from anomaly_detector_ros.runtime.files import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_POINTS = 1000
_STYLES = ("-", "--", "-.")


def plot_curves(methods: Mapping[str, Curve], file: Path) -> None:
    """Writes a PNG: precision over recall, and true over false positives, one line a method.

    The legends carry the areas, best method first; a dotted line shows what chance gives. Methods
    without anomalous or without nominal pixels have no curve and are left out.

    Raises:
        OSError: the file cannot be written.
    """
    # Not pyplot, which would look for a display and keep every figure.
    from matplotlib.figure import Figure

    methods = {name: curve for name, curve in methods.items() if curve.complete()}
    figure = Figure(figsize=(13, 6 + 0.24 * len(methods)), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw(left, {name: _precision_recall(curve) for name, curve in methods.items()})
    _draw(right, {name: _roc(curve) for name, curve in methods.items()})
    left.set(xlabel="Recall", ylabel="Precision")
    right.set(xlabel="False-positive rate", ylabel="True-positive rate (recall)")
    if methods:
        anomalous, nominal = (of[-1] for of in next(iter(methods.values()))[1:])
        share = anomalous / (anomalous + nominal)
        left.plot([0, 1], [share, share], "k:", label=f"{share:.3f}  chance")
        right.plot([0, 1], [0, 1], "k:", label="0.500  chance")
        for axes, title in ((left, "AUC-PR"), (right, "AUROC")):
            axes.legend(title=title, loc="upper center", bbox_to_anchor=(0.5, -0.1), frameon=False)
    replace_file(file, lambda path: figure.savefig(path, format="png", dpi=120))


class _Line(NamedTuple):
    area: float
    x: np.ndarray
    y: np.ndarray
    drawstyle: str


def _precision_recall(curve: Curve) -> _Line:
    _, true, false = curve
    chosen = _spread(curve)
    precision = true[chosen] / (true + false)[chosen]
    area = float(pixels.average_precision(true, false))
    # Steps, as average precision sums them: P_i holds from R_{i-1} to R_i.
    return _Line(
        area,
        np.append(0, true[chosen] / true[-1]),
        np.append(precision[:1], precision),
        "steps-pre",
    )


def _roc(curve: Curve) -> _Line:
    _, true, false = curve
    chosen = _spread(curve)
    x, y = (np.append(0, of[chosen] / of[-1]) for of in (false, true))
    return _Line(float(pixels.auroc(true, false)), x, y, "default")


def _draw(axes: Axes, lines: Mapping[str, _Line]) -> None:
    # A method looks the same in both panels, wherever its area puts it.
    looks = {name: (f"C{i % 10}", _STYLES[i // 10 % len(_STYLES)]) for i, name in enumerate(lines)}
    for name, line in sorted(lines.items(), key=lambda item: -item[1].area):
        color, style = looks[name]
        axes.plot(
            line.x,
            line.y,
            color=color,
            linestyle=style,
            drawstyle=line.drawstyle,
            label=f"{line.area:.3f}  {name}",
        )
    axes.set(xlim=(0, 1), ylim=(0, 1.01))
    axes.grid(alpha=0.3)


def _spread(curve: Curve) -> np.ndarray:
    """Indices of at most `_POINTS` points of a curve, evenly spread over both its rates."""
    shares = np.linspace(0, 1, _POINTS // 2)
    counts = (curve.anomalous, curve.nominal)
    return np.unique([np.searchsorted(of, shares * of[-1]) for of in counts])
