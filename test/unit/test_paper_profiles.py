"""The profiles of the published method, whole, with random weights of the real classes."""

import numpy as np
import pytest
import torch

from anomaly_detector_ros.detector import Detector
from anomaly_detector_ros.evaluation.table.methods import ROWS, with_overrides
from anomaly_detector_ros.features.featup import FeatUp
from anomaly_detector_ros.profiles import load_profile
from anomaly_detector_ros.synthesis.denoisers.lucidrains import LucidrainsConfig, LucidrainsUnet
from anomaly_detector_ros.synthesis.denoisers.lucidrains_checkpoint import (
    read_checkpoint,
    save_converted,
)
from anomaly_detector_ros.synthesis.schedule import make_betas
from anomaly_detector_ros.weights.registry import Registry


@pytest.mark.parametrize(
    ("name", "size"), [("paper_rugd", (176, 216)), ("paper_rellis", (152, 240))]
)
def test_settings_are_those_of_the_published_code(name, size):
    profile = load_profile(name)
    assert tuple(profile.denoiser["size"]) == size
    assert profile.sampler["name"] == "algorithm1"
    assert profile.sampler["guidance"] == "reverse"
    assert profile.sampler["jacobian"] == "identity"
    assert float(profile.sampler["guidance_scale"]) == 1e4
    assert profile.features["name"] == "maskclip"
    assert profile.features["mode"] == "squares"
    assert profile.features["tile_size"] == 224
    assert profile.features["as_in_featup"] is True
    assert profile.upsampler["name"] == "featup"
    assert profile.distance == {"name": "cosine", "compared_with": "image"}
    segmenter = profile.segmenter
    assert (segmenter["model"], segmenter["mode"]) == ("vit_h", "automatic")
    assert segmenter["min_mask_region_area"] == 200
    assert segmenter["mask_rule"] == "larger_first"
    assert segmenter["min_area_fraction"] == 0.001
    assert segmenter["uncovered"] == "zero"
    assert profile.model_names() == [name, "featup_maskclip_jbu", "sam_vit_h"]


@pytest.mark.parametrize(
    ("row", "upsampler"),
    [
        ("dino", "featup_dino16_jbu"),
        ("dinov2", "featup_dinov2_jbu"),
        ("clip", "featup_clip_jbu"),
        ("vit", "featup_vit_jbu"),
        ("resnet", "featup_resnet50_jbu"),
        ("forward", "featup_maskclip_jbu"),
    ],
)
def test_each_network_of_the_ablation_has_the_upsampler_trained_for_it(row, upsampler):
    changed = with_overrides(load_profile("paper_rugd"), ROWS[row].overrides)
    assert changed.parts.upsampler == FeatUp(weights=upsampler)
    assert changed.parts.features.as_in_featup
    assert changed.parts.features.mode == "squares"
    assert changed.parts.distance.compared_with == "image"
    assert upsampler in Registry.default().names()


def test_without_featups_settings_its_projection_for_another_network_is_left_out():
    overrides = {"features": {"as_in_featup": False}}
    changed = with_overrides(load_profile("paper_rugd", overrides=overrides), ROWS["vit"].overrides)
    assert changed.parts.upsampler == FeatUp(fixup=False)


def test_the_published_method_end_to_end(tmp_path, shared_models):
    """MaskCLIP and FeatUp as published; a small denoiser of five timesteps, and superpixels."""
    torch.manual_seed(0)
    unet = LucidrainsUnet(LucidrainsConfig(8, 8, (1, 2), (False, True), (4, 2), (32, 16)))
    betas = make_betas("sigmoid", 5)
    state = {f"model.{key}": tensor for key, tensor in unet.state_dict().items()}
    state |= {"betas": betas.float(), "loss_weight": torch.cumprod(1 - betas, 0).float()}
    torch.save({"model": state}, tmp_path / "model.pt")
    source = tmp_path / "model.pt"
    save_converted(read_checkpoint(source), tmp_path / "converted", source=source)
    detector = Detector.from_profile(
        "paper_rugd",
        device="cpu",
        offline=True,
        overrides={
            "denoiser": {"model": str(tmp_path / "converted"), "size": [32, 40]},
            "features": {"weights": "random", "input_size": 224},
            "upsampler": {"weights": str(shared_models / "featup_maskclip_jbu.ckpt")},
            "segmenter": {"name": "superpixels", "count": 20, "uncovered": "zero"},
        },
    )
    image = np.random.default_rng(0).integers(0, 256, (110, 138, 3), np.uint8)
    detection = detector.detect(image)
    assert detection.heatmap.shape == (110, 138)
    assert detection.heatmap.max() > 0
    assert np.array_equal(detector.detect(image).heatmap, detection.heatmap)
