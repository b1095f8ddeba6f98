"""How an attribute of a slim module follows from its own layers and from what reaches it.

Each function makes a rule: ``rule(module, x)`` with the module and its first input gives the value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

Rule = Callable[[Any, Tensor], Any]


def rows(layer: str, parts: int = 1) -> Rule:
    """Outputs of a layer inside the module, shared between so many parts."""
    return lambda module, _: module.get_submodule(layer).weight.shape[0] // parts


def columns(layer: str) -> Rule:
    """Inputs of a layer inside the module."""
    return lambda module, _: module.get_submodule(layer).weight.shape[1]


def channels(_module: Any, x: Tensor) -> int:
    """What reaches the module, ``b x c x h x w``."""
    return x.shape[1]


def attention(width: Rule, heads: str = "num_heads") -> dict[str, Rule | None]:
    """The row of an attention that is so wide over all its heads.

    Scaled dot products divide by the root of a head's channels.
    """

    def head(module: Any, x: Tensor) -> int:
        return width(module, x) // getattr(module, heads)

    def scale(module: Any, x: Tensor) -> float:
        return head(module, x) ** -0.5

    return {
        heads: None,
        **dict.fromkeys(("head_dim", "dim_head"), head),
        **dict.fromkeys(("attn_dim", "dim_out"), width),
        "scale": scale,
    }


def inputs_of_each(layers: str | None = None) -> Rule:
    """Inputs of each layer of a list (the module itself, or one inside it)."""
    return lambda module, _: [layer.in_channels for layer in _list(module, layers)]


def outputs_of_each(layers: str | None = None) -> Rule:
    """Outputs of each layer of a list."""
    return lambda module, _: [layer.out_channels for layer in _list(module, layers)]


def _list(module: Any, layers: str | None) -> list[Any]:
    return list(module.get_submodule(layers).children() if layers else module.children())


def share_of_rows(layer: str, parts: str) -> Rule:
    """Outputs of a layer, shared between as many parts as an attribute says."""
    return lambda module, _: getattr(module, layer).out_channels // getattr(module, parts)


def rest_of(layer: str) -> Rule:
    """Channels that reach the module and not its inner layer."""
    return lambda module, x: x.shape[1] - columns(layer)(module, x)


def shvit_keys(module: Any, _: Tensor) -> int:
    """Queries and keys share what the values leave of the fused layer."""
    layer = module.qkv.c
    return (layer.out_channels - layer.in_channels) // 2


def focal_splits(module: Any, _: Tensor) -> list[int]:
    """Queries, context, and one gate a focal level."""
    gates = module.focal_level + 1
    return [(module.f.out_channels - gates) // 2] * 2 + [gates]


def inception_splits(module: Any, x: Tensor) -> tuple[int, ...]:
    """Three depthwise branches; the rest passes by."""
    branch = module.dwconv_hw.out_channels
    return x.shape[1] - 3 * branch, branch, branch, branch


def gated_splits(module: Any, _: Tensor) -> tuple[int, ...]:
    """A gate as wide as what it gates, of which a part is convolved."""
    gate, convolved = module.fc1.out_features // 2, module.conv.out_channels
    return gate, gate - convolved, convolved


def broadcast_shape(module: Any, _: Tensor) -> tuple[int, ...]:
    """The shape in which metaformer's ``Scale`` lays its numbers over an image or tokens."""
    return tuple(module.scale.numel() if size > 1 else 1 for size in module.shape)
