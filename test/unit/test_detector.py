import numpy as np
import pytest
import torch
import torch.nn.functional as F

from anomaly_detector_ros.building import Parts
from anomaly_detector_ros.detector import Detector
from anomaly_detector_ros.distances.novelty import NoveltyDistance
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.features.featup import FeatUpUpsampler, JbuStack
from anomaly_detector_ros.features.preprocessing import resize
from anomaly_detector_ros.profiles import load_profile
from anomaly_detector_ros.runtime.tensors import to_tensor


@pytest.fixture(scope="module")
def detector(light_profile):
    return Detector.from_profile(light_profile, device="cpu", offline=True)


def picture(height=60, width=90, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_every_array_has_the_size_of_the_input(detector):
    detection = detector.detect(picture(61, 93))
    assert detection.heatmap.shape == (61, 93)
    assert detection.heatmap.dtype == np.float32
    assert detection.mask.shape == (61, 93)
    assert detection.mask.dtype == bool
    assert detection.segments.shape == (61, 93)
    assert detection.segments.dtype == np.int32
    assert detection.edited.shape == (61, 93, 3)
    assert detection.edited.dtype == np.uint8
    assert 0 <= detection.heatmap.min() <= detection.heatmap.max() <= 1
    assert 0 <= detection.score <= 1
    stages = {"synthesis", "features", "upsampling", "segmentation", "scoring", "total"}
    assert set(detection.timings) == stages


def test_seeded_runs_are_bit_identical(detector):
    first, second = detector.detect(picture()), detector.detect(picture())
    assert np.array_equal(first.heatmap, second.heatmap)
    assert np.array_equal(first.edited, second.edited)


def test_a_batch_gives_what_single_images_give(detector):
    images = [picture(60, 90, 0), picture(40, 50, 1)]
    batch = detector.detect_batch(images)
    for image, detection in zip(images, batch, strict=True):
        single = detector.detect(image)
        np.testing.assert_allclose(detection.heatmap, single.heatmap, atol=1e-4)
    assert detector.detect_batch([]) == []


def test_the_mask_follows_the_threshold(detector):
    image = picture()
    detector.threshold = 0.0
    assert detector.detect(image).mask.all()
    detector.threshold = 0.05
    detection = detector.detect(image)
    assert np.array_equal(detection.mask, detection.heatmap >= 0.05)


def test_num_edits_are_averaged(light_profile):
    def heatmap(count, seed=0):
        overrides = {"sampler": {"num_edits": count, "seed": seed}}
        detector = Detector.from_profile(light_profile, offline=True, overrides=overrides)
        return detector.detect(picture()).heatmap

    assert not np.array_equal(heatmap(1), heatmap(1, seed=1))
    assert not np.array_equal(heatmap(1), heatmap(3))


def test_algorithm1_runs_by_name(light_profile):
    overrides = {"sampler": {"name": "algorithm1", "guidance_scale": 100.0, "jacobian": "exact"}}
    detector = Detector.from_profile(light_profile, offline=True, overrides=overrides)
    schedule = detector.denoiser.schedule
    detector.denoiser.schedule = type(schedule).named("cosine", 5)
    assert detector.detect(picture(16, 24)).heatmap.shape == (16, 24)


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((0, 10, 3), np.uint8),
        np.zeros((10, 10), np.uint8),
        np.zeros((10, 10, 4), np.uint8),
        np.zeros((10, 10, 3), np.float32),
        "image.png",
    ],
)
def test_other_arrays_are_refused(detector, bad):
    with pytest.raises(UserError, match=r"uint8 RGB array \(H, W, 3\)"):
        detector.detect(bad)


def test_values_that_are_not_finite_never_leave(light_profile):
    detector = Detector.from_profile(light_profile, offline=True)
    with torch.no_grad():
        next(iter(detector.denoiser.unet.parameters())).fill_(float("nan"))
    with pytest.raises(RuntimeError, match="not finite"):
        detector.detect(picture())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": {"name": "magic"}}, "unknown sampler 'magic'"),
        ({"upsampler": {"name": "magic"}}, "unknown upsampler 'magic'"),
        ({"sampler": {"step": 4}}, "sampler few_step has no setting 'step'"),
        ({"features": {"name": "magic"}}, "magic"),
        ({"segmenter": {"name": "magic"}}, "magic"),
        ({"denoiser": {"model": "no_such_model"}}, "no_such_model"),
        ({"denoiser": {"dtype": "int4"}}, "dtype is 'int4': it must be 'auto'"),
        ({"denoiser": {"dtyp": "float32"}}, "denoiser has no setting 'dtyp' .*'dtype'"),
        ({"denoiser": {"size": [16]}}, "denoiser lacks the setting 'size.1'"),
        ({"denoiser": {"size": [0, 24]}}, "denoiser: size.0 is 0: it must be greater than 0"),
    ],
)
def test_unknown_names_are_refused(light_profile, settings, message):
    with pytest.raises(UserError, match=message):
        Detector.from_profile(light_profile, offline=True, overrides=settings)


@pytest.mark.parametrize("device", ["tpu", "cuda:99", "mps"])
def test_unknown_and_absent_devices_are_refused(light_profile, device):
    with pytest.raises(UserError, match=f"device '{device}'"):
        Detector.from_profile(light_profile, device=device, offline=True)


def test_a_folder_that_is_no_model_is_refused(light_profile, tmp_path):
    overrides = {"denoiser": {"model": str(tmp_path)}}
    with pytest.raises(UserError, match="cannot load denoiser"):
        Detector.from_profile(light_profile, offline=True, overrides=overrides)


def test_memory_is_measured(detector):
    assert detector.memory_bytes() > 50e6


def test_features_of_a_batch_come_of_few_calls(light_profile):
    overrides = {"sampler": {"num_edits": 3}}
    detector = Detector.from_profile(light_profile, offline=True, overrides=overrides)
    sizes, extract = [], detector.features.extract
    detector.features.extract = lambda images: sizes.append(len(images)) or extract(images)
    detections = detector.detect_batch([picture(seed=seed) for seed in range(6)])
    assert sizes == [16, 8], "four images with their three edits, then two"
    assert all(detection.timings["features"] > 0 for detection in detections)


@pytest.mark.parametrize("compared_with", ["image", "model_input"])
def test_squares_are_upsampled_and_compared_each_by_itself(light_profile, tmp_path, compared_with):
    torch.manual_seed(0)
    stack = JbuStack(3).eval().requires_grad_(False)
    state = {f"upsampler.{name}": value for name, value in stack.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "jbu.ckpt")
    overrides = {
        "features": {"name": "rgb", "mode": "squares", "tile_size": 16, "input_size": [16, 24]},
        "upsampler": {"name": "featup", "weights": str(tmp_path / "jbu.ckpt")},
        "distance": {"name": "cosine", "compared_with": compared_with},
    }
    detector = Detector.from_profile(light_profile, offline=True, overrides=overrides)
    detector.features.extract = lambda images: F.avg_pool2d(images, 4)
    image = picture(40, 60)
    original, edits = torch.rand(1, 3, 20, 30) * 2 - 1, torch.rand(1, 3, 20, 30) * 2 - 1
    given = to_tensor(image[None]) if compared_with == "image" else original
    left_and_right = []
    for x in (0, 8):
        views = [resize(each, (16, 24))[..., x : x + 16] for each in (given, edits)]
        features = [F.avg_pool2d(view, 4) for view in views]
        left_and_right.append(FeatUpUpsampler(stack).distance(*features, *views, (16, 16)))
    canvas = torch.zeros(1, 16, 24)
    canvas[..., :8], canvas[..., 16:] = left_and_right[0][..., :8], left_and_right[1][..., 8:]
    canvas[..., 8:16] = (left_and_right[0][..., 8:] + left_and_right[1][..., :8]) / 2
    expected = resize(canvas[:, None], (40, 60))[0, 0]
    found = detector.compare(image, original, edits)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert detector.detect(image).heatmap.shape == (40, 60)


def test_an_edit_that_changes_nothing_keeps_a_distance_to_the_camera_image_alone(light_profile):
    def score(compared_with):
        overrides = {"distance": {"name": "l2", "compared_with": compared_with}}
        detector = Detector.from_profile(light_profile, offline=True, overrides=overrides)
        image = picture(40, 60)
        small = resize(to_tensor(image[None]), (16, 24))
        return detector.compare(image, small, small).mean()

    assert score("model_input") == 0
    assert score("image") > 0.1


def test_a_profile_says_how_the_denoiser_is_called(light_profile, caplog):
    def heatmap(mode):
        overrides = {"denoiser": {"compile": mode}}
        detector = Detector.from_profile(light_profile, offline=True, overrides=overrides)
        return detector.detect(picture()).heatmap

    expected = heatmap("none")
    assert np.array_equal(heatmap("auto"), expected)
    assert not caplog.records
    np.testing.assert_allclose(heatmap("graph"), expected, atol=1e-3)
    if not torch.cuda.is_available():
        assert "compile: graph needs a CUDA device" in caplog.text
    with pytest.raises(UserError, match="compile is 'warp': it must be 'auto'"):
        heatmap("warp")


def test_an_edit_changes_only_what_is_new_to_the_memory(light_profile):
    overrides = {"distance": {"name": "novelty", "edit_from": 0.001, "edit_to": 0.01}}
    profile = load_profile(light_profile, overrides=overrides)
    grass, paint = (60, 120, 40), (220, 30, 200)
    distance = NoveltyDistance(torch.tensor([grass]) / 127.5 - 1, profile.parts.distance)
    detector = Detector.from_parts(
        profile, Parts(torch.device("cpu")), distance=distance, calibrated=False
    )
    height, width = profile.parts.denoiser.size
    image = np.full((height, width, 3), grass, np.uint8)
    assert np.array_equal(detector.detect(image).edited, image)
    image[:, : width // 4] = paint
    edited = detector.detect(image).edited
    assert np.array_equal(edited[:, width * 3 // 4 :], image[:, width * 3 // 4 :])
    assert np.abs(edited[:, : width // 8].astype(int) - paint).mean() > 20
