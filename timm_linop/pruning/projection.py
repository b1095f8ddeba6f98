"""The projection of ADMM: the nearest filters of which only so many are not zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Projection(NamedTuple):
    """The nearest filters of which only so many units are not zero.

    Attributes:
        tensors: Of the same shapes as before.
        kept: For each unit, whether it stays; ``size`` booleans on the CPU.
    """

    tensors: list[Tensor]
    kept: Tensor


def project(tied: Sequence[Tensor], units: Sequence[Tensor], keep: int, size: int) -> Projection:
    """Project tied filters onto {at most ``keep`` units are not zero}, exactly.

    The distance is the sum of the squares of what is zeroed, so units of the largest Frobenius
    norm stay; of equal ones, those of lowest index.

    Args:
        tied: Filters, each ``rows x ...``.
        units: The unit of each row of each tensor; rows of unit -1 stay as they are.
        keep: Units that stay, at most.
        size: Number of units.

    Returns:
        New tensors, and which units they keep.

    Example:
        >>> stem, block = torch.tensor([[3.0], [1.0], [2.0]]), torch.tensor([[0.0], [4.0], [1.0]])
        >>> both = project([stem, block], [torch.arange(3), torch.arange(3)], keep=2, size=3)
        >>> both.kept
        tensor([ True,  True, False])
        >>> both.tensors[0].flatten()
        tensor([3., 1., 0.])
    """
    squares = torch.zeros(size + 1, dtype=torch.float64)  # the last one gathers rows of -1
    for tensor, unit in zip(tied, units, strict=True):
        # Summed up on the CPU: there the order is always the same, so ties stay ties.
        rows = tensor.detach().flatten(1).square().sum(1).cpu().double()
        squares.index_put_((unit,), rows, accumulate=True)
    kept = torch.zeros(size, dtype=torch.bool)
    kept[squares[:size].argsort(descending=True, stable=True)[:keep]] = True
    pairs = zip(tied, units, strict=True)
    return Projection([zeroed(tensor, unit, kept) for tensor, unit in pairs], kept)


def zeroed(tensor: Tensor, units: Tensor, kept: Tensor) -> Tensor:
    """Copy a tensor, with zeros in the rows of units that are not kept.

    Args:
        tensor: ``rows x ...``.
        units: The unit of each row; rows of unit -1 stay as they are.
        kept: For each unit, whether it stays.

    Example:
        >>> zeroed(torch.ones(3), torch.tensor([0, 1, -1]), torch.tensor([True, False]))
        tensor([1., 0., 1.])
    """
    gone = torch.cat([~kept, kept.new_zeros(1)])[units]  # the last one stands for -1
    return tensor.masked_fill(gone.to(tensor.device).view(-1, *[1] * (tensor.ndim - 1)), 0)
