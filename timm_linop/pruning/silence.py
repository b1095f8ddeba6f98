"""Silence channels before they are cut, so that the cut changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from ..channels.coupled import ChannelGroup


@torch.no_grad()
def silence(
    model: nn.Module, groups: Sequence[ChannelGroup], removed: Mapping[str, Iterable[int]]
) -> None:
    """Zero all that a unit gives: its filters, their biases, and its norm's weight and bias.

    A filter of zeros alone is not silent: the norm behind it adds its bias, and ``relu(beta)``
    would be missing once the channel is gone. What normalises over channels (LayerNorm) or makes
    something of nothing (a sigmoid) still notices a channel that goes.

    Args:
        model: Changed in place.
        groups: Coupled channels of the model.
        removed: Units to silence, by the layer that names the group.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
        >>> names = "0.weight", "0.bias", "1.weight", "1.bias"
        >>> group = ChannelGroup("0", 4, {(name, 0): torch.arange(4) for name in names})
        >>> silence(model, [group], {"0": [1, 3]})
        >>> model(torch.randn(8, 3, 2, 2)).amax((0, 2, 3)) > 0
        tensor([ True, False,  True, False])
    """
    for group in groups:
        gone = torch.zeros(group.size + 1, dtype=torch.bool)
        gone[list(removed.get(group.layer, ()))] = True  # the last one stands for -1
        outputs = group.filters(model) | group.biases(model) | group.scales(model)
        for name, units in outputs.items():
            parameter = model.get_parameter(name)
            parameter[gone[units].to(parameter.device)] = 0
