"""K edits of every image, as a profile's sampler makes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, TypeVar, cast

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor

from anomaly_detector_ros.errors import one_line
from anomaly_detector_ros.runtime.parts import PartRegistry, check_names, read_settings
from anomaly_detector_ros.runtime.tensors import to_device
from anomaly_detector_ros.synthesis.denoisers.base import Denoiser
from anomaly_detector_ros.synthesis.denoisers.local import LocalDenoiser
from anomaly_detector_ros.synthesis.guidance import GUIDANCES
from anomaly_detector_ros.synthesis.samplers import SAMPLERS, Callback, Sampler
from anomaly_detector_ros.synthesis.similarity import SIMILARITIES
from anomaly_detector_ros.synthesis.spaces import space_of

# What a sampler may hold: the settings that name it, and its kind.
_INNER: dict[str, PartRegistry[Any]] = {"guidance": GUIDANCES, "similarity": SIMILARITIES}
_Kind = TypeVar("_Kind")
# Pixels over which a local edit fades into the input: two latents, and odd.
_FADE = 17


@dataclass(frozen=True)
class EditSettings:
    """A profile's ``sampler``.

    Attributes:
        sampler: what makes the edits.
        num_edits: K, edits of each image.
        seed: of the noise.
    """

    sampler: Sampler
    num_edits: Annotated[int, Ge(1)] = 1
    seed: Annotated[int, Ge(0)] = 0


def read_edit_settings(settings: Mapping[str, Any]) -> EditSettings:
    """What a profile's ``sampler`` part describes.

    All settings stand beside each other: ``name`` is the sampler's, ``guidance`` and
    ``similarity`` name those that it holds (its own defaults otherwise), and each of the three
    takes the settings that it has fields for.

    Raises:
        UserError: see `PartRegistry.get` and `read_settings`.

    Example:
        >>> settings = {"name": "few_step", "steps": 3, "guidance_scale": 1e4, "num_edits": 2}
        >>> read_edit_settings(settings).sampler.steps
        3
    """
    name = str(settings.get("name"))
    kind, where = SAMPLERS.get(name), f"sampler {one_line(name, 60)}"
    inner = {
        field.name: _INNER[field.name].get(settings[field.name])
        if field.name in settings
        else cast(type[Any], field.default_factory)
        for field in fields(kind)
        if field.name in _INNER
    }
    kinds = (kind, *inner.values(), EditSettings)
    known = {"name", *(field.name for each in kinds for field in fields(each))} - {"sampler"}
    check_names(settings, sorted(known), where)

    def read(kind: type[_Kind], **parts: object) -> _Kind:
        names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
        own = {name: settings[name] for name in names if name in settings}
        return read_settings(kind, {**own, **parts}, where)

    sampler = read(kind, **{key: read(part) for key, part in inner.items()})
    return read(EditSettings, sampler=sampler)


class Editor:
    """A sampler and the noise that it starts from: all that knows which space images are edited in.

    Every image gets the same noise: what stands still in a video is edited alike.

    Args:
        settings: the sampler, how many edits it makes, and the seed of their noise.
        size: H and W of the images.
        device: where they are.
    """

    def __init__(self, settings: EditSettings, size: tuple[int, int], device: torch.device) -> None:
        self.settings, self.size, self.device = settings, size, device
        self._noise: dict[torch.Size, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()  # not inference_mode: the exact Jacobian differentiates inside
    def edit(
        self,
        denoiser: Denoiser,
        inputs: Tensor,
        *,
        strength: Tensor | None = None,
        originals: bool = True,
        callback: Callback | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Originals (B, 3, H, W) and their edits (B, K, 3, H, W) of inputs (B, 3, H, W).

        All are in [-1, 1]. The originals are the inputs as the denoiser's space gives them back:
        they went through an autoencoder if the edits did, so that its own errors cancel when the
        two are compared. Of local edits they are the inputs.

        Args:
            strength: (B, h, w) of any h and w, in [0, 1]: from which noise level on each place is
                edited; see `LocalDenoiser`. What is not edited stays the input's own pixels, and
                the rest fades into it over `_FADE` pixels. None edits everything alike.
            originals: False where nobody looks at them, which saves decoding: they are the inputs.
            callback: the sampler's; what it sees is in the denoiser's space.

        Raises:
            RuntimeError: the denoiser returned values that are not finite.
            UserError: the space holds no images of this size.
        """
        space, sampler = space_of(denoiser), self.settings.sampler
        if not space.bounded:
            sampler = replace(sampler, clip=False)
        points = space.encode(inputs)
        noise, generator = self._initial_noise(points.shape[1:])
        x_input = points.repeat_interleave(len(noise), 0)
        local: LocalDenoiser | None = None
        if strength is not None:
            each = _at_size(strength, points.shape[-2:]).repeat_interleave(len(noise), 0)
            denoiser = local = LocalDenoiser(denoiser, x_input, each)
        watched = _Watched(denoiser, torch.isfinite(points).all())
        edits = sampler(
            watched,
            x_input,
            initial_noise=noise.repeat(len(inputs), 1, 1, 1),
            generator=generator,
            callback=callback,
        )
        if not (watched.finite & torch.isfinite(edits).all()):
            raise RuntimeError("the denoiser returned values that are not finite")
        images = space.decode(edits).clamp(-1, 1).unflatten(0, (-1, len(noise)))
        if local is not None:
            edited = _at_size(local.edited[:: len(noise), 0].to(inputs), inputs.shape[-2:])
            share = _blur(edited)[:, None]
            images = share * images + (1 - share) * inputs[:, None]
        elif originals:
            inputs = space.decode(points).clamp(-1, 1)
        return inputs, images

    def _initial_noise(self, shape: torch.Size) -> tuple[Tensor, torch.Generator]:
        """The noise (K, C, h, w), made once, and the generator of whatever follows it."""
        generator = torch.Generator().manual_seed(self.settings.seed)
        if shape not in self._noise:
            noise = torch.randn((self.settings.num_edits, *shape), generator=generator)
            self._noise[shape] = to_device(noise, self.device), generator.get_state()
        noise, state = self._noise[shape]
        generator.set_state(state)
        return noise, generator


def _at_size(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Maps (B, h, w) as (B, 1, *size), without values that were not there."""
    return F.interpolate(maps[:, None], tuple(size), mode="nearest-exact")


def _blur(maps: Tensor) -> Tensor:
    """Means of (B, 1, H, W) over squares of `_FADE` pixels, as far as they lie inside."""
    # Along one side after the other, which takes 34 sums a pixel in place of 289.
    for side in ((_FADE, 1), (1, _FADE)):
        padding = tuple(length // 2 for length in side)
        maps = F.avg_pool2d(maps, side, stride=1, padding=padding, count_include_pad=False)
    return maps


class _Watched:
    """A denoiser that notes whether all its values were finite: clipped, infinity looks like one.

    Attributes:
        finite: bool (), whether they and those before were; on the samples' device, where nothing
            has to wait for it.
    """

    def __init__(self, denoiser: Denoiser, finite: Tensor) -> None:
        self._denoiser, self.schedule, self.finite = denoiser, denoiser.schedule, finite

    def __call__(self, x: Tensor, t: int) -> Tensor:
        x0 = self._denoiser(x, t)
        self.finite = self.finite & torch.isfinite(x0.detach()).all()
        return x0
