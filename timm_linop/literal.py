"""The literal chain of real layers, as the paper draws it: to inspect, compare, test against."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from .errors import ExpansionError
from .expanded import chain_of, contract_layer, factors_of


def as_layers(module: Any) -> nn.Sequential:
    """Write an expanded layer out as the literal chain the paper draws, to inspect or compare.

    Args:
        module: An expanded convolution or linear layer.

    Returns:
        ``1x1 -> kxk -> 1x1`` convolutions, or two linear layers, holding copies of the factors and
        of the bias; the same function of the input as ``module``.

    Raises:
        ExpansionError: If the module is not expanded, or changes its weight before using it (weight
            standardisation), which no chain of plain layers does.

    Example:
        >>> from timm_linop.expand import expand
        >>> layer = expand(nn.Conv2d(2, 4, 3, stride=2, padding=1), rate=2)
        >>> layers = as_layers(layer)
        >>> x = torch.randn(1, 2, 8, 8)
        >>> len(layers), torch.allclose(layers(x), layer(x), atol=1e-5)
        (3, True)
    """
    if chain_of(module) is None:
        raise ExpansionError(
            f"{type(module).__name__} is not expanded, so it has no layers to write out; "
            "call timm_linop.expand(model) first."
        )
    if "Std" in type(module).__name__:
        raise ExpansionError(
            f"{type(module).__name__} standardises its weight before using it, so no chain of "
            "plain layers equals it; compare on its .weight instead."
        )
    layers: list[Any] = (
        _conv_layers(module) if hasattr(module, "kernel_size") else _dense_layers(module)
    )
    for layer, factor in zip(layers, factors_of(module), strict=True):
        layer.weight = nn.Parameter(factor.detach().clone().view(layer.weight.shape))
    if module.bias is not None:
        layers[-1].bias = nn.Parameter(module.bias.detach().clone())
    return nn.Sequential(*layers).to(factors_of(module)[0].device)


def _conv_layers(module: Any) -> list[nn.Module]:
    a, c, _ = factors_of(module)
    groups = module.groups
    plain = next(kind for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d) if isinstance(module, kind))
    first = plain(module.in_channels, a.shape[0], 1, groups=groups, bias=False, dtype=a.dtype)
    last = plain(c.shape[0], module.out_channels, 1, groups=groups, bias=False, dtype=a.dtype)
    # A copy keeps the class (Conv2dSame pads by the input's size), stride, padding and dilation.
    middle = copy.deepcopy(module)
    contract_layer(middle)
    middle.in_channels, middle.out_channels, middle.bias = a.shape[0], c.shape[0], None
    middle.weight = nn.Parameter(torch.empty_like(c))
    return [first, middle, last]


def _dense_layers(module: nn.Module) -> list[nn.Module]:
    a, b = factors_of(module)
    return [
        nn.Linear(a.shape[1], a.shape[0], bias=False, dtype=a.dtype),
        nn.Linear(b.shape[1], b.shape[0], bias=False, dtype=a.dtype),
    ]
