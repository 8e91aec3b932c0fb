"""Distance between the pictures themselves, without a network: structure."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from anomaly_detector_ros.errors import UserError

_WINDOW = 11  # pixels a side that the Gaussian window of deviation 1.5 takes up


def ssim_distance(original: Tensor, edits: Tensor) -> Tensor:
    """(1 - SSIM) / 2 between an image and its edits, pixel by pixel.

    SSIM with the Gaussian window of Wang et al., "Image Quality Assessment: From Error Visibility
    to Structural Similarity", 2004, mean over the colours: scikit-image's, run on the CPU.

    Args:
        original: (1, 3, h, w) float in [-1, 1]; both sides at least 11 pixels.
        edits: (K, 3, h, w) float in [-1, 1].

    Returns:
        (K, h, w) float32 in [0, 1], on the device of the edits: 0 where they are the same, 0.5
        where they are unrelated, 1 where one is the other's inverse.

    Raises:
        UserError: the images are too small.
    """
    from skimage.metrics import structural_similarity  # slow to import

    if min(original.shape[-2:]) < _WINDOW:
        raise UserError(f"SSIM needs images of at least {_WINDOW} x {_WINDOW} pixels")
    # SSIM compares mean luminances, which must not be negative.
    reference = (original[0].float().cpu().numpy() + 1) / 2
    distances = []
    for edit in (edits.float().cpu().numpy() + 1) / 2:
        _, similarity = structural_similarity(
            reference,
            edit,
            channel_axis=0,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            full=True,
        )
        distances.append(np.clip((1.0 - similarity.mean(axis=0)) / 2.0, 0.0, 1.0))
    return torch.from_numpy(np.stack(distances)).float().to(edits.device)
