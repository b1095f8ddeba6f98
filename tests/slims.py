"""Slim models that the tests share: pruned once a process, with statistics that are not trivial."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from timm_linop.pruning import prune
from timm_linop.structure import Structure

CLASSES = 5

# Image size by architecture: plain, inverted-residual, attention, LayerNorm, depthwise, grouped.
FAMILIES = {
    "test_resnet": 64,
    "test_efficientnet": 64,
    "test_vit": 160,
    "test_convnext": 64,
    "mobilenetv2_035": 64,
    "regnetx_002": 64,
}
QUICK = [name for name in FAMILIES if name.startswith("test_")]
NORMED = ["test_resnet", "test_efficientnet", "mobilenetv2_035", "regnetx_002"]  # by BatchNorm


def lively(name: str, **args: Any) -> nn.Module:
    """A dense model in eval mode whose norms do something: none is left at its 0 or 1."""
    torch.manual_seed(0)
    model = timm.create_model(name, **{"num_classes": CLASSES, **args}).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
            if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                module.bias.normal_(0, 0.1)
    return model


@functools.cache
def dense_and_slim(name: str, **args: Any) -> tuple[nn.Module, nn.Module]:
    """A dense model in training mode, and half of its channels; not to be changed, as shared."""
    dense = lively(name, **args).train()
    return dense, prune(dense, None if args else images(name), ratio=0.5)


def slim(name: str, **args: Any) -> nn.Module:
    """Half of a model's channels; not to be changed, as the tests share it."""
    return dense_and_slim(name, **args)[1]


def images(name: str, channels: int = 3, batch: int = 2) -> Tensor:
    size = FAMILIES.get(name, 64)
    return torch.randn(
        batch, channels, size, size, generator=torch.Generator().manual_seed(size + channels)
    )


def twin(name: str, pruned: Any, **args: Any) -> Any:
    """The slim twin in eval mode, built through timm as a user builds it."""
    return timm.create_model(f"linop_{name}", pruned=pruned, **{"rate": 0, **args}).eval()


def write_folder(model: nn.Module, folder: Path) -> Path:
    """A slim folder in timm's own layout, written by timm's own writer."""
    structure = Structure.of(model)
    named = copy.copy(model)
    named.pretrained_cfg = {**model.pretrained_cfg, "architecture": f"linop_{structure.base}"}
    model_args = {"pruned": structure.to_dict(), "rate": 0}
    timm.models.save_for_hf(named, str(folder), model_args=model_args, safe_serialization=True)
    return folder
