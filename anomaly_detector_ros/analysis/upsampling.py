"""From the feature grid to the image's pixels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def upsample_bilinear(anomaly_map: Tensor, size: tuple[int, int]) -> Tensor:
    """Anomaly maps (B, h, w) at size (H, W): (B, H, W), bilinear, half-pixel centres.

    The result stays within the input's range.
    """
    if tuple(anomaly_map.shape[-2:]) == tuple(size):
        return anomaly_map
    planes = anomaly_map[:, None]
    return F.interpolate(planes, size=tuple(size), mode="bilinear", align_corners=False)[:, 0]
