"""``linop_slim_X`` and ``linop_wide_X`` in timm's registry: X pruned by half, and expanded."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg, register_model
from torch import nn

from timm_linop.pruning import prune
from timm_linop.registry import build
from timm_linop.structure import Structure

# One architecture a family, small, and each with something that the others have not.
BASES = (
    "test_resnet",
    "test_efficientnet",
    "test_vit",
    "test_convnext",
    "test_byobnet",
    "mobilenetv2_035",
    "mobilenetv3_small_050",
    "regnetx_002",
    "resnetv2_18",
    "densenet121",
    "deit_tiny_patch16_224",
    "repvgg_a0",
    "hgnetv2_b0",
    "ghostnet_050",
    "starnet_s050",
    "dla46_c",
    "ese_vovnet19b_dw",
    "repvit_m0_9",
    "inception_next_atto",
    "test_nfnet",
    "test_mambaout",
    "edgenext_xx_small",
    "mixer_s32_224",
    "levit_128s",
)
RATES = {"slim": 0, "wide": 2}

# timm reads these two off the module of an entrypoint when it is registered.
__all__ = ["BASES", "RATES", "names_of", "register", "slim"]
default_cfgs: dict[str, Any] = {}


def names_of(base: str) -> list[str]:
    """The names that stand for a base in timm's tests.

    Example:
        >>> names_of("test_vit")
        ['linop_slim_test_vit', 'linop_wide_test_vit']
    """
    return [f"linop_{kind}_{base}" for kind in RATES]


def register() -> None:
    """Register the twins of `BASES`; nothing is pruned before the first one is built."""
    for base in BASES:
        for name, rate in zip(names_of(base), RATES.values(), strict=True):
            cfg = get_pretrained_cfg(base).to_dict()
            default_cfgs[name] = {k: v for k, v in cfg.items() if k not in _OF_ITS_WEIGHTS}
            register_model(_entrypoint(name, base, rate))


_OF_ITS_WEIGHTS = {"url", "file", "hf_hub_id", "hf_hub_filename", "source", "architecture", "tag"}


def _entrypoint(name: str, base: str, rate: float) -> Callable[..., nn.Module]:
    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        model, structure = slim(base)
        return build(base, pruned=model if pretrained else structure, rate=rate, **kwargs)

    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__module__ = __name__
    return entrypoint


@functools.cache
def slim(base: str) -> tuple[nn.Module, Structure]:
    """Half of a base's channels, removed once a process, and its structure."""
    with torch.device("cpu"):  # timm's tests build on the meta device, where nothing is largest
        model = prune(timm.create_model(base), ratio=0.5)
        return model, Structure.of(model)
