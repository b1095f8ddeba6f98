"""Coupled channel groups, over torch-pruning's dependency graph: what must be removed together."""

from __future__ import annotations

import warnings
from typing import Any

import torch_pruning as tp
from timm.layers import Attention
from torch import Tensor, nn


def outputs_to_keep(model: Any) -> list[nn.Module]:
    """Return the classifier layers, whose outputs are the classes.

    Args:
        model: A timm model.

    Returns:
        The modules that ``pretrained_cfg["classifier"]`` names, as far as they are there.

    Example:
        >>> import timm
        >>> outputs_to_keep(timm.create_model("test_resnet", num_classes=3))
        [Linear(in_features=96, out_features=3, bias=True)]
    """
    names = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    names = (names,) if isinstance(names, str) else names
    modules = dict(model.named_modules())
    return [modules[name] for name in names if name in modules]


def attention_heads(model: nn.Module) -> dict[nn.Module, int]:
    """Tell torch-pruning how many heads each fused qkv layer holds.

    Returns:
        A fresh dict, as torch-pruning changes it.
    """
    return {m.qkv: m.num_heads for m in model.modules() if isinstance(m, Attention)}


def remove(
    model: nn.Module,
    example: Tensor,
    importance: tp.importance.Importance,
    ratio: float,
    round_to: int | None,
) -> None:
    """Remove the least important channel groups, in place.

    Args:
        model: A dense timm model in eval mode.
        example: One batch of images, ``b x c x h x w``.
        importance: torch-pruning's score of a group.
        ratio: Fraction of each layer's channels to remove.
        round_to: Keep a multiple of this many channels; None keeps any number.
    """
    with warnings.catch_warnings():
        # It cuts parameters outside layers (tokens, layer scales) along their last axis, rightly.
        warnings.filterwarnings("ignore", "Unwrapped parameters detected")
        pruner = tp.pruner.BasePruner(
            model,
            example,
            importance=importance,
            pruning_ratio=ratio,
            round_to=round_to,
            ignored_layers=outputs_to_keep(model),
            num_heads=attention_heads(model),
            # Fresh dicts: torch-pruning's mutable defaults would keep earlier models alive.
            channel_groups={},
            in_channel_groups={},
            out_channel_groups={},
        )
        pruner.step()
    _settle_attention(model, pruner.num_heads)


def _settle_attention(model: nn.Module, heads: dict[nn.Module, int]) -> None:
    for module in model.modules():
        if isinstance(module, Attention):
            module.num_heads = heads[module.qkv]
            module.head_dim = module.qkv.out_features // (3 * module.num_heads)
            module.attn_dim = module.num_heads * module.head_dim
            module.scale = module.head_dim**-0.5
