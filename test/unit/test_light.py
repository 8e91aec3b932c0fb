"""Images in another light."""

import torch

from anomaly_detector_ros.imaging.light import vary_light


def images() -> torch.Tensor:
    return torch.rand(6, 3, 20, 30, generator=torch.Generator().manual_seed(1)) * 2 - 1


def varied(seed: int) -> torch.Tensor:
    return vary_light(images(), torch.Generator().manual_seed(seed))


def test_a_seed_gives_the_same_lights_and_pixels_stay_in_range() -> None:
    assert torch.equal(varied(3), varied(3))
    assert not torch.equal(varied(3), varied(4))
    assert varied(3).min() >= -1
    assert varied(3).max() <= 1
    assert varied(3).dtype == torch.float32


def test_every_image_has_a_light_of_its_own_and_keeps_its_content() -> None:
    grey = torch.linspace(-0.6, 0.6, 50).expand(4, 3, 1, 50)
    lit = vary_light(grey, torch.Generator().manual_seed(0))
    assert not torch.allclose(lit[0], lit[1], atol=0.02)
    assert (lit.diff(dim=3) >= 0).all()  # what is brighter stays brighter
    assert (lit[:, :, 0, 0] < lit[:, :, 0, -1]).all()
