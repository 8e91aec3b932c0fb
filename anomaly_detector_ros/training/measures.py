"""How good a model is: its error per noise level, pictures it makes up, and whether it repeats."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from anomaly_detector_ros.runtime.files import replace_file
from anomaly_detector_ros.runtime.tensors import to_pictures, to_tensor
from anomaly_detector_ros.synthesis.denoisers.base import Denoiser
from anomaly_detector_ros.synthesis.samplers.few_step import FewStep
from anomaly_detector_ros.synthesis.spaces import space_of
from anomaly_detector_ros.training.dataset import TrainingImages

VALIDATION_LEVELS = (0.2, 0.4, 0.6, 0.8)
"""Noise fractions (see `Schedule.timestep_at`) at which the validation loss is reported."""

_IMAGES = 32
_SAMPLING_STEPS = 25
_THUMBNAIL_WIDTH = 16
_MOST_HELD_OUT = 256
_COLUMNS = 8


@torch.no_grad()
def validation_losses(denoiser: Denoiser, images: TrainingImages, seed: int) -> dict[str, float]:
    """Mean squared error of v per noise level, by name, on the same noise for the same seed."""
    rng = np.random.default_rng(seed)
    pictures = np.stack([images.whole(i) for i in images.spread(_IMAGES)])
    x0 = space_of(denoiser).encode(to_tensor(pictures).contiguous())
    losses = {}
    for level in VALIDATION_LEVELS:
        t = denoiser.schedule.timestep_at(level)
        noise = torch.from_numpy(rng.standard_normal(x0.shape, dtype=np.float32))
        x = denoiser.schedule.add_noise(x0, noise, t)
        # v = (alpha x_t - x_0) / sigma
        error = (denoiser(x, t) - x0).square().mean()
        losses[f"validation_{level}"] = float(error) / denoiser.schedule.noise_level(t) ** 2
    return losses


@torch.no_grad()
def draw_samples(
    denoiser: Denoiser, count: int, size: tuple[int, int], seed: int, batch_size: int = 8
) -> np.ndarray:
    """Pictures from noise alone in a few deterministic steps, uint8 RGB (N, H, W, 3)."""
    generator, space = torch.Generator().manual_seed(seed), space_of(denoiser)
    # From the highest noise level nothing is left of the input.
    shape = space.encode(torch.zeros(1, 3, *size)).shape[1:]
    noise = torch.randn((count, *shape), generator=generator)
    sampler = FewStep(noise_level=1.0, steps=_SAMPLING_STEPS, clip=space.bounded)
    samples = [
        to_pictures(space.decode(sampler(denoiser, torch.zeros_like(part), initial_noise=part)))
        for part in noise.split(batch_size)
    ]
    return np.concatenate(samples)


def make_grid(pictures: np.ndarray, columns: int) -> np.ndarray:
    """Pictures (N, H, W, 3) side by side in rows of ``columns``, which must divide N."""
    count, height, width, channels = pictures.shape
    grid = pictures.reshape(count // columns, columns, height, width, channels)
    grid = grid.transpose(0, 2, 1, 3, 4).reshape(-1, columns * width, channels)
    return np.ascontiguousarray(grid)


@dataclass(frozen=True)
class Memorisation:
    """How near samples come to the training images.

    Distances are root mean square differences of thumbnails 16 pixels wide, in grey levels 0 to
    255, to the nearest training image, whole or cropped, or its mirror image.

    Attributes:
        samples: uint8 RGB (N, H, W, 3).
        nearest: uint8 RGB (N, H, W, 3), the nearest training image of each, cropped or mirrored
            where that is nearer.
        distances: float32 (N,), of the samples.
        ratio: median distance of samples over that of held-out images, cropped as in training;
            well below 1 the samples repeat training images. None without held-out images.
        memorised_ratio: the same for training images, cropped as in training: the ratio of a
            model that does nothing but repeat them.
    """

    samples: np.ndarray
    nearest: np.ndarray
    distances: np.ndarray
    ratio: float | None
    memorised_ratio: float | None

    def save_picture(self, file: Path) -> None:
        """Writes a PNG: the samples nearest to training images, and those images below them.

        Raises:
            OSError: the file cannot be written.
        """
        # Not pyplot, which would look for a display and keep every figure.
        from matplotlib.figure import Figure

        order = np.argsort(self.distances)[:_COLUMNS]
        height, width = self.samples.shape[1:3]
        figure = Figure(figsize=(2 * len(order), 4 * height / width + 0.4), layout="constrained")
        rows = figure.subplots(2, len(order), squeeze=False)
        for column, index in enumerate(order):
            rows[0, column].imshow(self.samples[index])
            rows[0, column].set_title(f"{self.distances[index]:.1f}", fontsize=9)
            rows[1, column].imshow(self.nearest[index])
        for axes in rows.flat:
            axes.set(xticks=[], yticks=[])
        rows[0, 0].set_ylabel("sample")
        rows[1, 0].set_ylabel("nearest")
        replace_file(file, lambda path: figure.savefig(path, format="png", dpi=120))


def compare(
    samples: np.ndarray,
    training: TrainingImages,
    held_out: TrainingImages | None = None,
    seed: int = 0,
) -> Memorisation:
    """Finds the nearest training image of each sample.

    Args:
        samples: uint8 RGB (N, H, W, 3) at the training size.
        training: the images the model was trained on.
        held_out: nominal images it was not trained on, for the ratio.
        seed: of the crops.
    """
    size, count = training.size, len(training)
    known = _thumbnails((view for i in range(count) for view in _views(training, i)), size)
    known = np.concatenate([known, known[:, :, ::-1]])
    distances, indices = _nearest(_thumbnails(samples, size), known)
    nearest = np.stack([_view(training, i) for i in indices])
    ratio = memorised = None
    if held_out:
        usual = _nearest(_crops(held_out, seed), known)[0]
        repeated = _nearest(_crops(training, seed), known)[0]
        # Copies of training images among the held-out ones could make it nothing.
        scale = max(float(np.median(usual)), 1e-6)
        ratio = float(np.median(distances)) / scale
        memorised = float(np.median(repeated)) / scale
    return Memorisation(samples, nearest, distances, ratio, memorised)


def _views(images: TrainingImages, index: int) -> list[np.ndarray]:
    """One image whole and as the crops of middling size at its middle and corners.

    Without them a crop of a training image, which a model may well repeat, would look new.
    """
    image = images.images[index]
    height, width = image.shape[:2]
    scale = (1 + images.min_crop) / 2
    rows, columns = round(height * scale), round(width * scale)
    down, right = height - rows, width - columns
    corners = [(0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2)]
    return [image, *(image[top : top + rows, left : left + columns] for top, left in corners)]


def _view(images: TrainingImages, index: int) -> np.ndarray:
    """The picture behind a thumbnail, at the training size: first all views, then mirrored."""
    views = len(_views(images, 0))
    mirrored, index = divmod(index, views * len(images))
    view = _views(images, index // views)[index % views]
    view = cv2.resize(view, images.size[::-1], interpolation=cv2.INTER_AREA)
    return view[:, ::-1] if mirrored else view


def _crops(images: TrainingImages, seed: int) -> np.ndarray:
    """Thumbnails of images as the network sees them, which is how its samples look."""
    rng = np.random.default_rng(seed)
    crops = (images.augmented(i, rng) for i in images.spread(_MOST_HELD_OUT))
    return _thumbnails(crops, images.size)


def _thumbnails(pictures: Iterable[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Pictures of the shape of ``size``, or nearly, at the width at which distances are taken.

    Returns:
        uint8 (N, h, w, 3).
    """
    height = max(1, round(size[0] * _THUMBNAIL_WIDTH / size[1]))
    small = (_THUMBNAIL_WIDTH, height)
    return np.stack([cv2.resize(of, small, interpolation=cv2.INTER_AREA) for of in pictures])


def _nearest(queries: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Root mean square distance to the nearest of ``known``, and its index: (N,) each."""
    a, b = (torch.from_numpy(of.reshape(len(of), -1)).float() for of in (queries, known))
    # The quick way by a matrix product is inexact near 0, where it counts.
    distances, indices = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").min(1)
    return distances.numpy() / a.shape[1] ** 0.5, indices.numpy()
