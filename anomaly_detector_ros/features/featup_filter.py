"""The filter of joint bilateral upsampling: a 7x7 kernel of its own for every pixel.

FeatUp doubles a feature map with bicubic interpolation and filters the result. Both are linear, so
the interpolation goes into the kernels: 7x7 pixels of the doubled map depend on 7x7 cells of the
small map. The doubled map need not exist, and the four pixels over a cell share its cells.
"""

from __future__ import annotations

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

RADIUS = 3
DIAMETER = 2 * RADIUS + 1
# Cells along the side of a block that is filtered in one matrix product. Larger blocks multiply
# more zeros, smaller ones copy more neighbours.
_BLOCK = 4


def bicubic_taps(cells: int) -> Tensor:
    """Bicubic doubling of a row of ``cells``, reflected at the borders: (2 * cells, 7, 7).

    ``taps[x, u, p]`` is the weight of cell ``x // 2 - 3 + p`` in pixel ``x - 3 + u`` of the
    doubled row; cells outside the row have weight 0. ``cells`` must be at least 2.
    """
    impulses = torch.eye(cells)[None, :, :, None]
    doubled = F.interpolate(impulses, size=(2 * cells, 1), mode="bicubic")[0, :, :, 0]
    reflected = F.pad(doubled, (RADIUS, RADIUS), mode="reflect")
    table = F.pad(reflected.T, (RADIUS, RADIUS))
    pixel = torch.arange(2 * cells)[:, None, None]
    offset = torch.arange(DIAMETER)
    return table[pixel + offset[:, None], pixel // 2 + offset]


def fold_bicubic(kernels: Tensor, row_taps: Tensor, column_taps: Tensor) -> Tensor:
    """Kernels over doubled pixels as kernels over cells.

    Args:
        kernels: (H, W, 7, 7), for pixels y - 3 + u, x - 3 + v of the doubled map.
        row_taps: (H, 7, 7), those rows of ``bicubic_taps``.
        column_taps: (W, 7, 7), likewise.

    Returns:
        (H, W, 7, 7), for cells y // 2 - 3 + p, x // 2 - 3 + q.
    """
    return torch.einsum("yxuv,yup,xvq->yxpq", kernels, row_taps, column_taps)


def filter_cells(cells: Tensor, kernels: Tensor) -> Tensor:
    """Four weighted sums of the 7x7 cells around each cell.

    result[y, x] = sum over p, q of kernels[y, x, p, q] * cells[y // 2 + p, x // 2 + q]

    Args:
        cells: (h + 6, w + 6, C), with a border of 3 cells.
        kernels: (2h, 2w, 7, 7).

    Returns:
        (2h, 2w, C).
    """
    height, width = kernels.shape[:2]
    below, right = -(height // 2) % _BLOCK, -(width // 2) % _BLOCK
    cells = F.pad(cells, (0, 0, 0, right, 0, below))
    kernels = F.pad(kernels, (0, 0, 0, 0, 0, 2 * right, 0, 2 * below))

    # A matrix for each block: its pixels by the cells they depend on, mostly zeros off a band.
    reach = _BLOCK + 2 * RADIUS
    patches = cells.unfold(0, reach, _BLOCK).unfold(1, reach, _BLOCK).permute(0, 1, 3, 4, 2)
    rows, columns = patches.shape[:2]
    kernels = kernels.view(rows, _BLOCK, 2, columns, _BLOCK, 2, DIAMETER, DIAMETER)
    weights = kernels.new_zeros(rows, columns, _BLOCK, 2, _BLOCK, 2, reach, reach)
    for y, x in product(range(_BLOCK), repeat=2):
        window = weights[:, :, y, :, x, :, y : y + DIAMETER, x : x + DIAMETER]
        window.copy_(kernels[:, y, :, :, x].transpose(1, 2))

    count = rows * columns
    sums = torch.bmm(weights.view(count, -1, reach**2), patches.reshape(count, reach**2, -1))
    blocks = sums.view(rows, columns, 2 * _BLOCK, 2 * _BLOCK, -1).transpose(1, 2)
    return blocks.reshape(2 * _BLOCK * rows, 2 * _BLOCK * columns, -1)[:height, :width]
