"""The noise schedule of a diffusion model: how much signal is left at each timestep."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor

BETA_SCHEDULES = ("linear", "cosine", "sigmoid")
PREDICTION_TYPES = ("v_prediction", "epsilon", "sample")

Timesteps = int | Tensor
"""One timestep for all images of a batch, or int64 (B,), one for each."""


def make_betas(beta_schedule: str, num_train_timesteps: int) -> Tensor:
    """Variances of the forward process, float64 (T,), each in (0, 1).

    Args:
        beta_schedule: ``linear`` (Ho et al. 2020, scaled to T), ``cosine`` (Nichol & Dhariwal
            2021, eq. 17, betas capped at 0.999) or ``sigmoid`` (Jabri et al. 2022, start -3,
            end 3, tau 1; the one of the paper's published models).
        num_train_timesteps: T, the number of timesteps.

    Raises:
        ValueError: the name is unknown or T is not positive.
    """
    if num_train_timesteps < 1:
        raise ValueError(f"num_train_timesteps must be positive, not {num_train_timesteps}")
    if beta_schedule == "linear":
        scale = 1000 / num_train_timesteps
        return torch.linspace(
            scale * 1e-4, min(scale * 0.02, 0.999), num_train_timesteps, dtype=torch.float64
        )
    u = torch.linspace(0, 1, num_train_timesteps + 1, dtype=torch.float64)
    if beta_schedule == "cosine":
        alphas_cumprod = torch.cos((u + 0.008) / 1.008 * torch.pi / 2) ** 2
    elif beta_schedule == "sigmoid":
        low, high = torch.sigmoid(torch.tensor([-3.0, 3.0], dtype=torch.float64))
        alphas_cumprod = (high - torch.sigmoid(u * 6 - 3)) / (high - low)
    else:
        raise ValueError(
            f"unknown beta schedule '{beta_schedule}': choose one of {', '.join(BETA_SCHEDULES)}"
        )
    alphas_cumprod = alphas_cumprod / alphas_cumprod[0]
    return (1 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(0, 0.999)


class Schedule:
    """Betas, their cumulative products, and the conversions between x_0, noise and prediction.

    ``x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps`` with ``abar`` = ``alphas_cumprod``.
    Timesteps run from 0 (almost clean) to ``num_train_timesteps - 1`` (almost pure noise).

    Args:
        betas: float (T,), each in (0, 1).
        prediction_type: what the network was trained to output: ``v_prediction``
            (Salimans & Ho 2022: v = sqrt(abar) eps - sqrt(1 - abar) x_0), ``epsilon`` or
            ``sample`` (x_0).

    Example:
        >>> schedule = Schedule.named("cosine", 1000)
        >>> schedule.timestep_at(0.6)
        596
    """

    def __init__(self, betas: Tensor, prediction_type: str = "v_prediction") -> None:
        if prediction_type not in PREDICTION_TYPES:
            raise ValueError(
                f"unknown prediction type '{prediction_type}': "
                f"choose one of {', '.join(PREDICTION_TYPES)}"
            )
        self.betas = betas.to("cpu", torch.float64)
        self.alphas_cumprod = torch.cumprod(1 - self.betas, 0)
        self.prediction_type = prediction_type
        self._copies: dict[torch.device, Tensor] = {}

    @classmethod
    def named(
        cls,
        beta_schedule: str,
        num_train_timesteps: int = 1000,
        prediction_type: str = "v_prediction",
    ) -> Schedule:
        """A schedule of one of `BETA_SCHEDULES`; see `make_betas`."""
        return cls(make_betas(beta_schedule, num_train_timesteps), prediction_type)

    @classmethod
    def from_diffusers(cls, scheduler: Any) -> Schedule:
        """The schedule a diffusers scheduler object holds."""
        return cls(scheduler.betas, scheduler.config.prediction_type)

    def to_diffusers(self) -> DDPMScheduler:
        """The same schedule for diffusers, so that a saved model directory loads there as it is."""
        return DDPMScheduler(
            num_train_timesteps=self.num_train_timesteps,
            trained_betas=self.betas.tolist(),
            prediction_type=self.prediction_type,
            clip_sample=True,
        )

    @property
    def num_train_timesteps(self) -> int:
        """T, the number of timesteps the model was trained with."""
        return len(self.betas)

    def alpha_sigma(self, t: Timesteps, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """sqrt(abar_t) and sqrt(1 - abar_t), to multiply images ``like`` (B, C, H, W).

        Numbers for one timestep; (B, 1, 1, 1), like ``like``, for timesteps (B,). Where those are
        on the images' device already, nothing waits for it.
        """
        if isinstance(t, int):
            abar = float(self.alphas_cumprod[t])
            return abar**0.5, (1 - abar) ** 0.5
        abars = self._alphas_cumprod_on(like.device)[t.to(like.device)].reshape(-1, 1, 1, 1)
        return abars.sqrt().to(like), (1 - abars).sqrt().to(like)

    def _alphas_cumprod_on(self, device: torch.device) -> Tensor:
        if device not in self._copies:
            with torch.inference_mode(False):  # else no later call could differentiate
                self._copies[device] = self.alphas_cumprod.to(device)
        return self._copies[device]

    def noise_level(self, t: int) -> float:
        """sqrt(1 - abar_t): the standard deviation of the noise in x_t, in [0, 1]."""
        return float((1 - self.alphas_cumprod[t]).sqrt())

    def timestep_at(self, noise_fraction: float) -> int:
        """The timestep whose share of the diffusion *angle* is ``noise_fraction`` in [0, 1].

        The angle is atan2(sigma, alpha) / (pi / 2): 0 is the clean image, 1 pure noise, and equal
        differences are equally large steps of the probability-flow ODE whatever the schedule.
        """
        if not 0 <= noise_fraction <= 1:
            raise ValueError(f"noise fraction must lie in [0, 1], not {noise_fraction}")
        return int((self._noise_fractions - noise_fraction).abs().argmin())

    def noise_fraction(self, t: int) -> float:
        """The share of the diffusion angle of a timestep, in [0, 1]; see `timestep_at`."""
        return float(self._noise_fractions[t])

    @cached_property
    def _noise_fractions(self) -> Tensor:
        abar = self.alphas_cumprod
        return torch.atan2((1 - abar).sqrt(), abar.sqrt()) / (torch.pi / 2)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Timesteps) -> Tensor:
        """The forward process: x_t from x_0 and standard normal noise, all (B, C, H, W)."""
        alpha, sigma = self.alpha_sigma(t, x0)
        return alpha * x0 + sigma * noise

    def training_target(self, x0: Tensor, noise: Tensor, t: Timesteps) -> Tensor:
        """What the network should output for x_t under ``prediction_type``."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return x0
        alpha, sigma = self.alpha_sigma(t, x0)
        return alpha * noise - sigma * x0

    def predict_x0(self, x: Tensor, output: Tensor, t: int) -> Tensor:
        """x0_hat: the clean image the network's ``output`` at x_t stands for, not clipped."""
        if self.prediction_type == "sample":
            return output
        alpha, sigma = self.alpha_sigma(t, x)
        if self.prediction_type == "epsilon":
            return (x - sigma * output) / alpha
        return alpha * x - sigma * output

    def posterior(
        self, x0: Tensor, x: Tensor, t: int, t_next: int | None = None
    ) -> tuple[Tensor, float]:
        """Mean (B, C, H, W) and variance of q(x_t' | x_t, x_0); Ho et al. 2020, eqs. 6-7.

        Args:
            t_next: t', t - 1 by default. -1 is the clean image: mean x_0, variance 0.
        """
        t_next = t - 1 if t_next is None else t_next
        abar = float(self.alphas_cumprod[t])
        abar_next = float(self.alphas_cumprod[t_next]) if t_next >= 0 else 1.0
        kept = abar / abar_next
        mean = (
            abar_next**0.5 * (1 - kept) / (1 - abar) * x0
            + kept**0.5 * (1 - abar_next) / (1 - abar) * x
        )
        return mean, (1 - kept) * (1 - abar_next) / (1 - abar)
