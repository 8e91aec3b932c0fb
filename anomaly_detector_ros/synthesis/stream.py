"""Edits of consecutive images, each a step further than the next, in one network pass a step.

As in StreamDiffusion (Kodaira et al. 2023): the network sees the newest image at the first
timestep, the one before it at the second, and so on. Each pass finishes one image, so that as many
images leave as come in at the cost of one pass of a larger batch instead of one pass after the
other, where the device does the larger batch in less time. The price is latency: an edit comes as
many images later as there are steps but one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.synthesis.denoisers.base import Denoiser
from anomaly_detector_ros.synthesis.editing import checked, make_sampler
from anomaly_detector_ros.synthesis.guidance import Jacobian
from anomaly_detector_ros.synthesis.samplers import (
    Matching,
    few_step,
    few_step_timesteps,
    few_step_update,
)
from anomaly_detector_ros.synthesis.similarity import Similarity


@dataclass
class _Frame:
    """An image on its way: what it is held to, x_t, and how many steps it has done."""

    x_input: Tensor
    x: Tensor
    steps: int = 0


class StreamEditor:
    """`samplers.few_step` for a stream of images; each gets the edits it would get alone.

    Args:
        denoiser, similarity, guidance, jacobian, noise_level, steps, data_std, clip: see
            `samplers.few_step`.
        noise: (K, C, H, W), what every image is noised with for its K edits.

    Raises:
        UserError: the exact Jacobian, whose backward passes are not batched here.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        similarity: Similarity,
        noise: Tensor,
        *,
        guidance: Matching = "reverse",
        jacobian: Jacobian = "identity",
        noise_level: float = 0.6,
        steps: int = 8,
        data_std: float = 0.5,
        clip: bool = True,
    ) -> None:
        if guidance == "reverse" and jacobian == "exact":
            raise UserError(
                "a stream has no exact Jacobian: set the sampler's 'jacobian: identity'"
            )
        self.denoiser, self.noise, self.clip = denoiser, noise, clip
        self.timesteps = few_step_timesteps(denoiser.schedule, noise_level, steps)
        on_device = torch.tensor(self.timesteps, device=noise.device)
        self._per_image = on_device[:, None].expand(-1, len(noise))
        self._update = partial(
            few_step_update, denoiser.schedule, similarity, guidance=guidance, data_std=data_std
        )
        self._frames: deque[_Frame] = deque()  # the oldest first

    @classmethod
    def from_settings(
        cls, denoiser: Denoiser, settings: Mapping[str, Any], noise: Tensor
    ) -> StreamEditor:
        """With the settings of a profile's sampler; see `editing.make_sampler`.

        Raises:
            UserError: another sampler than ``few_step``, the exact Jacobian, or a bad setting.
        """
        sampler = make_sampler(settings)
        if not isinstance(sampler, partial) or sampler.func is not few_step:
            raise UserError(f"a stream has no sampler '{settings['name']}': set 'name: few_step'")
        return cls(denoiser, noise=noise, **sampler.keywords)

    @property
    def delay(self) -> int:
        """How many images after its own an image's edits come."""
        return len(self.timesteps) - 1

    def step(self, x_input: Tensor) -> Tensor | None:
        """Takes an image in and all images on their way a step further.

        Args:
            x_input: (1, C, H, W) in [-1, 1], on the device of the noise.

        Returns:
            (K, C, H, W) in [-1, 1], the edits of the image of `delay` calls ago; None in the
            first calls.

        Raises:
            RuntimeError: the denoiser returned values that are not finite.
        """
        repeated = x_input.expand_as(self.noise)
        x = self.denoiser.schedule.add_noise(repeated, self.noise, self.timesteps[0])
        self._frames.append(_Frame(repeated, x))
        return self._advance()

    def flush(self) -> list[Tensor]:
        """Finishes the images on their way: their edits, each (K, C, H, W), the oldest first."""
        edits = []
        while self._frames:
            edit = self._advance()
            if edit is not None:
                edits.append(edit)
        return edits

    @torch.no_grad()
    def _advance(self) -> Tensor | None:
        """One step of every image; the oldest one's edits if that was its last."""
        x = torch.cat([frame.x for frame in self._frames])
        t = torch.cat([self._per_image[frame.steps] for frame in self._frames])
        x0 = self.denoiser(x, t)
        x0 = x0.clamp(-1, 1) if self.clip else x0
        for frame, frame_x0 in zip(self._frames, x0.split(len(self.noise)), strict=True):
            t_now, t_next = [*self.timesteps, -1][frame.steps : frame.steps + 2]
            frame.x, _ = self._update(frame.x, frame_x0, frame.x_input, t_now, t_next)
            frame.steps += 1
        if self._frames[0].steps < len(self.timesteps):
            return None
        return checked(self._frames.popleft().x)
