"""What a frame costs, counted rather than timed, and how long a machine should take for it.

The model is the roofline of Williams et al. 2009, operation by operation: each takes as long as its
products at a share of the machine's best rate, or as its inputs and outputs on their way from and
to memory, whichever is longer; and starting it takes a time of its own, which is what limits a GPU
that works on single frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from anomaly_detector_ros.benchmarking.rate import fastest, peak_rate
from anomaly_detector_ros.detector import Detector
from anomaly_detector_ros.runtime.tensors import to_tensor

SHARE = 0.7
"""Share of `peak_rate` at which products and convolutions of common sizes run."""
_aten = torch.ops.aten
_FLOPS = {
    **flop_registry,
    # torch has no count of it, though it has of the other fused attentions.
    _aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        _aten._scaled_dot_product_flash_attention
    ],
}
# As large as a feature map or two: what is that small stays in a processor's cache.
_MEGABYTES = 4


@dataclass(frozen=True)
class Operation:
    """One call of a kernel.

    Attributes:
        flops: operations of products and convolutions, two to a multiply-add.
        bytes: of the tensors that it reads and writes.
    """

    flops: int
    bytes: int


@dataclass(frozen=True)
class Machine:
    """What the model knows of a machine.

    Attributes:
        flops_per_second: of large products, in the precision that is used.
        bytes_per_second: of memory, read and written.
        seconds_per_call: to start an operation.
    """

    flops_per_second: float
    bytes_per_second: float
    seconds_per_call: float

    @classmethod
    def measured(cls, device: torch.device, dtype: torch.dtype) -> Machine:
        """This machine."""
        a = torch.ones(_MEGABYTES * 2**18, device=device)
        b, small = a.clone(), torch.ones(1, device=device)

        def many() -> Tensor:
            for _ in range(100):
                small.add_(1)
            return small

        added = fastest(lambda: torch.add(a, b, out=b), device, 10)
        return cls(peak_rate(device, dtype), 3 * a.nbytes / added, fastest(many, device, 10) / 100)

    def seconds(self, operations: Sequence[Operation], share: float = SHARE) -> float:
        """How long it should take for operations one after the other.

        Args:
            share: of the best rate that products reach.
        """
        return sum(
            max(each.flops / (share * self.flops_per_second), each.bytes / self.bytes_per_second)
            + self.seconds_per_call
            for each in operations
        )


def stage_costs(detector: Detector, image: np.ndarray) -> dict[str, list[Operation]]:
    """What torch computes of one image, uint8 RGB (H, W, 3), by stages as `Detection.timings` has.

    Superpixels, decoding and drawing are not torch's, and not counted.
    """
    pixels = to_tensor(image[None], detector.device)
    with count_operations() as look:
        detector.features.extract(pixels)
    with count_operations() as synthesis:
        originals, edits = detector.synthesize([image])
    guided = detector.profile.parts.distance.guides_edits
    with count_operations() as features:
        raw = detector.compare(image, originals, edits[0])
    with count_operations() as segmentation:
        detector.segment(image, raw)
    return {
        "features": features,
        # The look at the image that says where to edit is one of the features' own.
        "synthesis": synthesis[len(look) if guided else 0 :],
        "segmentation": segmentation,
    }


@contextmanager
def count_operations() -> Iterator[list[Operation]]:
    """A list of what torch computes meanwhile, in its order."""
    with _Counter() as counter:
        yield counter.found


class _Counter(TorchDispatchMode):
    """Lists the operations that run meanwhile, as ``found``."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Operation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._overloadpacket not in _FLOPS:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        returned = [each.alias_info for each in func._schema.returns]
        if returned and all(each and not each.is_write for each in returned):
            return out  # another view of the same numbers
        count = _FLOPS.get(func._overloadpacket)
        flops = int(count(*args, **kwargs, out_val=out)) if count else 0
        tensors = [each for each in tree_leaves((args, kwargs, out)) if isinstance(each, Tensor)]
        self.found.append(Operation(flops, sum(each.nbytes for each in tensors)))
        return out
