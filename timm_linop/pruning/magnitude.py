"""Prune by weight magnitude: the channels of the smallest L2 norm go first."""

from __future__ import annotations

from functools import partial

import torch_pruning as tp
from torch import Tensor, nn

from ..channels.groups import Proposal, least, propose


def cuts_by_magnitude(
    model: nn.Module, example: Tensor, ratio: float, round_to: int | None
) -> Proposal:
    """Propose to remove the channels of smallest L2 norm in each coupled group.

    A channel's norm is the mean over everything tied to it (its filter, the next layers' inputs,
    its BatchNorm scale), as torch-pruning's dependency graph finds it.

    Args:
        model: A dense timm model in eval mode, in float64; it is spoilt.
        example: One batch of images, ``b x c x h x w``.
        ratio: Fraction of each group's channels to remove.
        round_to: Keep a multiple of this many channels; None keeps any number.

    Returns:
        One cut a group, and what could not be followed.
    """
    choose = partial(least, ratio=ratio, round_to=round_to)
    return propose(model, example, tp.importance.GroupMagnitudeImportance(p=2), choose)
