"""Converted checkpoints against the package that trained them: the same weights, the same numbers.

The package as installed writes group norms no more; its versions 1.x differ from it in the norm of
the blocks alone, and 1.8 in having no learned keys, so both are built from it here.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from anomaly_detector_ros.synthesis.denoisers.loading import load_denoiser
from anomaly_detector_ros.synthesis.denoisers.lucidrains import LucidrainsUnet
from anomaly_detector_ros.synthesis.denoisers.lucidrains_checkpoint import (
    infer_config,
    read_checkpoint,
    save_converted,
)
from anomaly_detector_ros.synthesis.denoisers.unet import UnetDenoiser
from anomaly_detector_ros.synthesis.guidance.noisy import Mismatched
from anomaly_detector_ros.synthesis.samplers import evenly_spaced
from anomaly_detector_ros.synthesis.samplers.algorithm1 import Algorithm1
from anomaly_detector_ros.synthesis.samplers.ddim import Ddim

ddpm = pytest.importorskip(
    "denoising_diffusion_pytorch.denoising_diffusion_pytorch",
    reason="denoising-diffusion-pytorch is not installed",
)
SIZE = (16, 24)


def package_unet(version: str = "1.9", dim: int = 16, **settings) -> nn.Module:
    """The package's `Unet` of a version, with random weights that make every part matter."""
    torch.manual_seed(0)
    settings = {"dim_mults": (1, 2, 4), "flash_attn": True, **settings}
    unet = ddpm.Unet(dim, **settings)
    for module in unet.modules():
        if isinstance(module, ddpm.Block) and version != "2":
            module.norm = nn.GroupNorm(8, module.proj.out_channels)
        if isinstance(module, (ddpm.Attention, ddpm.LinearAttention)) and version == "1.8":
            drop = (slice(None),) * (3 if isinstance(module, ddpm.LinearAttention) else 2)
            module.mem_kv = nn.Parameter(module.mem_kv.data[(*drop, slice(0))])
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.mul_(1 + 0.3 * torch.randn_like(parameter))
    return unet.eval()


def weights(module: nn.Module) -> dict[str, Tensor]:
    """The state dict, without the learned keys where there are none."""
    return {key: tensor for key, tensor in module.state_dict().items() if tensor.numel()}


def package_diffusion(unet: nn.Module, size=SIZE, timesteps: int = 30, **settings) -> nn.Module:
    return ddpm.GaussianDiffusion(unet, image_size=size, timesteps=timesteps, **settings)


def converted(diffusion: nn.Module, folder: Path, **settings) -> UnetDenoiser:
    """Through a file, the conversion and the loader, as a user goes."""
    torch.save(weights(diffusion), folder / "model.pt")
    model = read_checkpoint(folder / "model.pt", **settings)
    save_converted(model, folder / "converted", source=folder / "model.pt")
    return load_denoiser(folder / "converted")


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("version", "settings"),
    [
        ("1.8", {}),
        ("1.9", {}),
        ("2", {}),
        ("2", {"full_attn": (False, True, True), "attn_heads": (4, 2, 8), "init_dim": 24}),
        ("1.9", {"attn_dim_head": (16, 8, 64), "flash_attn": False}),
    ],
)
@torch.no_grad()
def test_network_output(version: str, settings: dict) -> None:
    theirs = package_unet(version, **settings)
    ours = LucidrainsUnet(infer_config(weights(theirs)))
    ours.load_state_dict(weights(theirs))
    x, t = noise(3, 3, *SIZE), torch.tensor([0, 123, 999])
    torch.testing.assert_close(ours(x, t).sample, theirs(x, t), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_papers_network() -> None:
    theirs = package_unet(dim=64, dim_mults=(1, 2, 4, 8))
    config = infer_config(weights(theirs))
    assert (config.dim, config.dim_mults, config.num_mem_kv) == (64, (1, 2, 4, 8), 4)
    assert (config.block_norm, config.full_attn) == ("group", (False, False, False, True))
    ours = LucidrainsUnet(config)
    ours.load_state_dict(weights(theirs))
    x, t = noise(1, 3, *SIZE), torch.tensor([500])
    torch.testing.assert_close(ours(x, t).sample, theirs(x, t), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("min_snr", [False, True])
@pytest.mark.parametrize(
    ("objective", "beta_schedule", "prediction_type"),
    [
        ("pred_v", "sigmoid", "v_prediction"),
        ("pred_noise", "cosine", "epsilon"),
        ("pred_x0", "linear", "sample"),
    ],
)
@torch.no_grad()
def test_reverse_steps(
    tmp_path: Path, objective: str, beta_schedule: str, prediction_type: str, min_snr: bool
) -> None:
    theirs = package_diffusion(
        package_unet(),
        timesteps=1000,
        objective=objective,
        beta_schedule=beta_schedule,
        min_snr_loss_weight=min_snr,
    )
    denoiser = converted(theirs, tmp_path)
    schedule = denoiser.schedule
    assert schedule.prediction_type == prediction_type
    x = noise(2, 3, *SIZE)
    for t in (0, 1, 10, 500, 990, 999):
        times = torch.full((2,), t)
        mean, variance, _, _ = theirs.p_mean_variance(x, times)
        our_mean, our_variance = schedule.posterior(denoiser(x, t).clamp(-1, 1), x, t)
        torch.testing.assert_close(our_mean, mean, atol=1e-4, rtol=0)
        assert our_variance == pytest.approx(float(variance[0]), rel=1e-5)


def ancestral(denoiser: UnetDenoiser, shape: tuple[int, ...]) -> Tensor:
    """Algorithm 1 without guidance: its noise comes from torch's own generator."""
    return Algorithm1(guidance=Mismatched())(denoiser, torch.zeros(shape))


@pytest.mark.parametrize(
    ("version", "objective", "beta_schedule"),
    [
        ("1.9", "pred_v", "sigmoid"),
        ("1.8", "pred_noise", "cosine"),
        ("2", "pred_x0", "linear"),
    ],
)
def test_ancestral_samples(
    tmp_path: Path, version: str, objective: str, beta_schedule: str
) -> None:
    theirs = package_diffusion(
        package_unet(version), objective=objective, beta_schedule=beta_schedule
    )
    denoiser = converted(theirs, tmp_path)
    torch.manual_seed(3)
    expected = theirs.sample(2) * 2 - 1
    torch.manual_seed(3)
    found = ancestral(denoiser, (2, 3, *SIZE))
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_all_of_a_thousand_steps(tmp_path: Path) -> None:
    unet = package_unet(dim=8, dim_mults=(1,), attn_heads=1)
    theirs = package_diffusion(unet, size=(8, 8), timesteps=1000)
    denoiser = converted(theirs, tmp_path)
    torch.manual_seed(3)
    expected = theirs.sample(2) * 2 - 1
    torch.manual_seed(3)
    torch.testing.assert_close(ancestral(denoiser, (2, 3, 8, 8)), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("objective", ["pred_v", "pred_noise", "pred_x0"])
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_ddim_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str, eta: float
) -> None:
    theirs = package_diffusion(
        package_unet(),
        timesteps=1000,
        sampling_timesteps=10,
        objective=objective,
        ddim_sampling_eta=eta,
    )
    denoiser = converted(theirs, tmp_path)
    # The package starts from the last timestep.
    monkeypatch.setattr(Ddim, "starts", lambda self, schedule: evenly_spaced(999, self.timesteps))
    torch.manual_seed(3)
    expected = theirs.sample(2) * 2 - 1
    torch.manual_seed(3)
    found = Ddim(Mismatched(), timesteps=10, eta=eta)(denoiser, torch.zeros(2, 3, *SIZE))
    torch.testing.assert_close(found, expected, atol=5e-4, rtol=0)


@pytest.mark.parametrize("kind", ["ema", "online"])
def test_file_of_the_trainer(tmp_path: Path, kind: str) -> None:
    theirs = package_diffusion(package_unet("2", dim=8, dim_mults=(1, 2)))
    ema = pytest.importorskip("ema_pytorch").EMA(theirs)
    with torch.no_grad():
        ema.ema_model.model.final_conv.bias += 1
    optimizer = torch.optim.Adam(theirs.parameters())
    content = {
        "step": 1,
        "model": theirs.state_dict(),
        "opt": optimizer.state_dict(),
        "ema": ema.state_dict(),
        "scaler": None,
        "version": "2.0.0",
    }
    torch.save(content, tmp_path / "model-1.pt")
    expected = (ema.ema_model if kind == "ema" else theirs).model.final_conv.bias
    wanted = None if kind == "ema" else kind
    model = read_checkpoint(tmp_path / "model-1.pt", weights=wanted)
    assert model.weights == kind
    torch.testing.assert_close(model.unet.final_conv.bias, expected)
    torch.save(content["ema"], tmp_path / "ema.pt")
    model = read_checkpoint(tmp_path / "ema.pt", weights=wanted)
    torch.testing.assert_close(model.unet.final_conv.bias, expected)


def test_bfloat16_stays_near(tmp_path: Path) -> None:
    denoiser = converted(package_diffusion(package_unet()), tmp_path)
    rough = load_denoiser(tmp_path / "converted", dtype=torch.bfloat16)
    x = noise(1, 3, *SIZE)
    torch.testing.assert_close(rough(x, 15), denoiser(x, 15), atol=0.1, rtol=0.1)
