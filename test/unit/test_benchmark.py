"""Measuring detectors: times, passes, operations, energy counters, and the command."""

from __future__ import annotations

import json
import mmap
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from anomaly_detector_ros.benchmarking import rate
from anomaly_detector_ros.benchmarking.energy import RaplMeter, find_meters
from anomaly_detector_ros.benchmarking.machine import facts, peak_memory
from anomaly_detector_ros.benchmarking.random_weights import write_random
from anomaly_detector_ros.benchmarking.rate import pass_flops, peak_rate, synthesis_rate
from anomaly_detector_ros.benchmarking.timing import (
    Case,
    Passes,
    counting,
    measure,
    paired_ratio,
    summarise,
)
from anomaly_detector_ros.cli.main import app
from anomaly_detector_ros.detector import Detector
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.profiles import load_profile
from anomaly_detector_ros.runtime.devices import memory_bytes
from anomaly_detector_ros.runtime.resources import share_dir
from anomaly_detector_ros.synthesis.denoisers.loading import load_denoiser
from anomaly_detector_ros.synthesis.denoisers.lucidrains import LucidrainsConfig, LucidrainsUnet
from anomaly_detector_ros.synthesis.denoisers.onnx_export import export_denoiser
from anomaly_detector_ros.synthesis.denoisers.unet import UnetDenoiser
from anomaly_detector_ros.synthesis.schedule import Schedule
from anomaly_detector_ros.weights.registry import Registry

CPU = torch.device("cpu")
PICTURE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    cv2.imwrite(str(tmp_path / "p.png"), PICTURE)
    return tmp_path / "p.png"


def detector(profile: str, **sampler) -> Detector:
    return Detector.from_profile(profile, device="cpu", overrides={"sampler": sampler})


def passes(of: Detector, images: int = 1) -> Passes:
    with counting(of) as found:
        of.detect_batch([PICTURE] * images)
    return found


def run(*arguments: object) -> dict[str, object]:
    result = CliRunner().invoke(app, ["benchmark", *map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_few_step_passes(light_profile: str) -> None:
    assert passes(detector(light_profile, steps=3, num_edits=2), images=2) == Passes(12, 0)
    exact = detector(light_profile, steps=3, jacobian="exact", guidance_scale=1.0)
    assert passes(exact) == Passes(3, 3)


@pytest.mark.parametrize("jacobian", ["identity", "exact"])
def test_algorithm1_passes(light_profile: str, jacobian: str) -> None:
    sampler = {"name": "algorithm1", "guidance_scale": 1.0, "jacobian": jacobian}
    of = detector(light_profile, **sampler)
    of.denoiser.schedule = Schedule.named("cosine", 10)
    # A pass for the mean in each step and one for the guidance in all but the last.
    assert passes(of) == Passes(19, 9 if jacobian == "exact" else 0)


def test_counting_leaves_the_detector_as_it_was(light_profile: str) -> None:
    of = detector(light_profile)
    before = of.denoiser
    with pytest.raises(UserError), counting(of):
        of.detect(PICTURE[..., 0])
    assert of.denoiser is before


def test_passes_of_local_edits_count_too(light_profile: str) -> None:
    of = detector(light_profile)
    with counting(of) as passes:
        strength = torch.ones(1, 2, 3)
        of._editor.edit(of.denoiser, torch.zeros(1, 3, *of._editor.size), strength=strength)
    steps = of.profile.parts.sampler.sampler.steps
    assert passes == Passes(forward=steps * of.profile.parts.sampler.num_edits)


def test_operations_of_a_pass_whose_input_needs_no_conversion() -> None:
    """The encoder of latents gives the layout that the network takes."""

    class Latents:
        bounded = False

        def encode(self, images: torch.Tensor) -> torch.Tensor:
            return images.contiguous(memory_format=torch.channels_last)

    levels = {"full_attn": (False,), "attn_heads": (1,), "attn_dim_head": (4,)}
    unet = LucidrainsUnet(LucidrainsConfig(8, 8, (1,), **levels)).eval()
    schedule = Schedule.named("cosine", 10)
    plain = UnetDenoiser(unet.requires_grad_(False), schedule)
    latent = UnetDenoiser(unet, schedule, space=Latents())
    assert pass_flops(latent, (4, 6)) == pass_flops(plain, (4, 6))


def test_operations_of_a_pass() -> None:
    """All convolutions and products of a network small enough to add up by hand."""
    levels = {"full_attn": (False,), "attn_heads": (1,), "attn_dim_head": (4,)}
    unet = LucidrainsUnet(LucidrainsConfig(8, 8, (1,), **levels, num_mem_kv=0)).eval()
    denoiser = UnetDenoiser(unet.requires_grad_(False), Schedule.named("cosine", 10))
    forward, backward = pass_flops(denoiser, (4, 6))
    pixels = 24
    time_mlp = 8 * 32 + 32 * 32
    resnets = 7 * (32 * 16 + pixels * 2 * 9 * 8 * 8)  # time, then two convolutions; plus
    resnets += 3 * pixels * 9 * 8 * 8 + 3 * pixels * 16 * 8  # inputs twice as wide, shortcuts
    linear = 2 * (pixels * (8 * 12 + 4 * 8) + 2 * pixels * 4 * 4)
    full = pixels * (8 * 12 + 4 * 8) + 2 * pixels * pixels * 4
    others = pixels * (3 * 49 * 8 + 2 * 9 * 8 * 8 + 8 * 3)
    assert forward == 2 * (time_mlp + resnets + linear + full + others)
    assert forward / 2 < backward < 2 * forward


def test_rate_of_a_synthesis(tiny_model: Path, tmp_path: Path) -> None:
    denoiser = load_denoiser(tiny_model)
    forward, backward = pass_flops(denoiser, (16, 24))
    found = synthesis_rate(denoiser, (16, 24), Passes(6, 2), seconds=0.5)
    assert found["flops_per_second"] == pytest.approx((6 * forward + 2 * backward) / 0.5)
    share = found["flops_per_second"] / found["peak_flops_per_second"]
    assert found["share_of_peak"] == pytest.approx(share)
    assert found["dtype"] == "float32"
    export_denoiser(tiny_model, tmp_path, size=(16, 24))
    assert synthesis_rate(load_denoiser(tmp_path), (16, 24), Passes(6), 0.5) is None


def test_rate_of_a_large_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """The better of a matrix product and a convolution, whose operations are added up by hand."""
    seconds = iter((0.5, 2.0))
    monkeypatch.setattr(rate, "fastest", lambda *_: next(seconds))
    matrix, convolution = 2 * 1024**3, 2 * 9 * 128 * 128 * 80 * 80
    assert peak_rate.__wrapped__(CPU, torch.float32) == max(matrix / 0.5, convolution / 2.0)


def test_cases_take_turns(light_profile: str) -> None:
    of, done, order = detector(light_profile), [], []
    cases = [Case(name, of, batch) for name, batch in (("one", 1), ("three", 3))]
    detect_batch = of.detect_batch
    of.detect_batch = lambda images: order.append(len(images)) or detect_batch(images)
    measure(cases, PICTURE, repeats=3, warmup=1, meters={}, advance=done.append)
    assert order == [3, 1, 1, 3, 3, 1, 1, 3]
    assert done == [2, 4, 6, 8]
    for case in cases:
        assert len(case.runs) == 3
        assert case.passes.forward == 2 * case.batch
        for each in case.runs:
            stages = sum(seconds for name, seconds in each.items() if name != "end to end")
            assert 0 < stages <= each["end to end"]


def test_summary_of_runs() -> None:
    found = summarise([{"a": 0.1, "end to end": s} for s in (4.0, 1.0, 3.0, 2.0)])
    assert found["stages"]["end to end"] == {"median": 2.5, "p95": pytest.approx(3.85)}
    assert found["images_per_second"] == pytest.approx(0.4)


def test_ratio_of_pairs_is_blind_to_what_slows_both() -> None:
    rng = np.random.default_rng(1)
    slowdown = np.exp(rng.normal(0, 1, 40))
    noise = np.exp(rng.normal(0, 0.05, (2, 40)))
    found = paired_ratio(1.3 * slowdown * noise[0], slowdown * noise[1])
    assert 1.2 < found["low"] < 1.3 < found["high"] < 1.4
    assert found["low"] <= found["median"] <= found["high"]
    assert found == paired_ratio(1.3 * slowdown * noise[0], slowdown * noise[1])


def write_zone(folder: Path, number: str, name: str, used: int) -> Path:
    zone = folder / f"intel-rapl:{number}"
    zone.mkdir(exist_ok=True)
    (zone / "name").write_text(f"{name}\n")
    (zone / "energy_uj").write_text(f"{used}\n")
    (zone / "max_energy_range_uj").write_text("10000000\n")
    return zone


def test_energy_of_all_packages_over_a_restart_of_the_counter(tmp_path: Path) -> None:
    write_zone(tmp_path, "0", "package-0", 9_000_000)
    write_zone(tmp_path, "1", "package-1", 1_000_000)
    write_zone(tmp_path, "0:0", "core", 0)
    write_zone(tmp_path, "2", "psys", 0)
    meter = find_meters(CPU, tmp_path)["cpu package"]
    assert meter.joules() == 0
    write_zone(tmp_path, "0", "package-0", 500_000)
    write_zone(tmp_path, "1", "package-1", 3_000_000)
    write_zone(tmp_path, "0:0", "core", 7_000_000)
    write_zone(tmp_path, "2", "psys", 7_000_000)
    assert meter.joules() == pytest.approx(1.5 + 2)
    assert meter.joules() == pytest.approx(1.5 + 2)


def test_no_energy_without_readable_counters(tmp_path: Path) -> None:
    assert find_meters(CPU, tmp_path / "none") == {}
    (write_zone(tmp_path, "0", "package-0", 0) / "energy_uj").unlink()
    assert find_meters(CPU, tmp_path) == {}


def test_energy_of_the_measured_runs_alone(light_profile: str, tmp_path: Path) -> None:
    of = detector(light_profile)
    zone, used = write_zone(tmp_path, "0", "package-0", 0), [0]
    detect_batch = of.detect_batch

    def burn(images):
        used[0] += 1_000_000
        (zone / "energy_uj").write_text(str(used[0]))
        return detect_batch(images)

    of.detect_batch = burn
    case = Case("one", of, 1)
    meters = {"m": RaplMeter([zone])}
    measure([case], PICTURE, repeats=3, warmup=2, meters=meters, advance=lambda done: None)
    assert case.joules == {"m": pytest.approx(3.0)}


def test_machine() -> None:
    found = facts(CPU)
    assert found["cpu"]
    assert found["cores"] >= 1
    assert found["threads"] == torch.get_num_threads()
    before = peak_memory(CPU)["process"]
    more = 2**26
    # Straight from the system: malloc may hand out pages that are resident already.
    with mmap.mmap(-1, before - memory_bytes(CPU) + more) as held:
        held.write(bytes(len(held)))
    assert peak_memory(CPU)["process"] > before + more // 2


def test_random_weights_for_what_is_not_here(light_profile: str, tmp_path: Path) -> None:
    lacking = {
        "denoiser": {"model": "paper_rugd", "compile": "none"},
        "features": {"name": "dino", "block": 1, "input_size": [32, 48]},
        "calibration": {"file": str(tmp_path / "none.npz")},
    }
    profile = load_profile(light_profile, overrides=lacking)
    registry = Registry.from_file(share_dir("models") / "registry.yaml", tmp_path / "empty")
    file = write_random(profile, tmp_path, registry, preset="small")
    of = Detector.from_profile(str(file), device="cpu", offline=True)
    assert sum(p.numel() for p in of.denoiser.unet.parameters()) == pytest.approx(7.1e6, rel=0.01)
    assert of.features.channels == 384
    assert of.detect(PICTURE).heatmap.shape == PICTURE.shape[:2]


def test_random_weights_keep_a_denoiser_that_is_here(
    light_profile: str, tiny_model: Path, tmp_path: Path
) -> None:
    profile = load_profile(light_profile, overrides={"segmenter": {"name": "sam"}})
    written = load_profile(str(write_random(profile, tmp_path, Registry.default())))
    assert written.denoiser == profile.denoiser
    assert written.segmenter == {"name": "sam", "weights": "random"}
    assert written.features == profile.features, "colours have no weights"


def test_command_with_random_weights(image: Path, light_profile: str) -> None:
    arguments = ["--image", image, "--profile", light_profile, "--repeats", 2, "--warmup", 0]
    assert run(*arguments, "--random-weights")["weights"] == "random"


def test_command(image: Path, light_profile: str, tmp_path: Path) -> None:
    arguments = ["--image", image, "--repeats", 2, "--warmup", 1, "--profile", light_profile]
    found = run(*arguments, "--batch", 3, "--output", tmp_path / "result.json")
    assert found == json.loads((tmp_path / "result.json").read_text())
    assert found["image"] == "60x40"
    assert found["machine"]["torch"] == torch.__version__
    assert [each["batch"] for each in found["profiles"]] == [1, 3]
    for each in found["profiles"]:
        assert {"synthesis", "features", "end to end"} <= set(each["stages"])
        for stage in each["stages"].values():
            assert 0 < stage["median"] <= stage["p95"]
        assert each["synthesis"]["forward_passes_per_image"] == 2
        assert 0 < each["synthesis"]["rate"]["share_of_peak"] < 1
    assert "ratios" not in found


def test_command_compares_with_an_export(
    image: Path, light_profile: str, tiny_model: Path, tmp_path: Path
) -> None:
    export_denoiser(tiny_model, tmp_path / "export", size=(16, 24))
    profile = Path(light_profile).read_text().replace(str(tiny_model), str(tmp_path / "export"))
    (tmp_path / "exported.yaml").write_text(profile)
    both = [light_profile, tmp_path / "exported.yaml"]
    found = run("--image", image, "--repeats", 3, "--warmup", 1, "--compare", *both)
    (ratio,) = found["ratios"]
    assert ratio["batch"] == 1
    assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"]
    first, second = (each["synthesis"] for each in found["profiles"])
    assert first["rate"]["flops_per_second"] > 0
    assert second == {
        "forward_passes_per_image": 2, "backward_passes_per_image": 0, "rate": None,
    }  # fmt: skip


def test_command_for_people(image: Path, light_profile: str) -> None:
    arguments = ["--image", image, "--repeats", 2, "--compare", light_profile, light_profile]
    result = CliRunner().invoke(app, ["benchmark", *map(str, arguments), "--batch", "2"])
    shown = " ".join(result.stdout.split())
    assert shown.count("times as long as") == 2
    assert "denoiser: 2 forward passes an image of 0.0 GFLOP" in shown
    assert "of the rate of a large product in float32" in shown
