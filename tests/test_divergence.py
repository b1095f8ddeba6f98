"""What is to blame when numbers stop being numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import timm_linop
from timm_linop.distill import Teacher
from timm_linop.divergence import blame, broken_parameter
from timm_linop.errors import CheckpointError
from timm_linop.expanded import factors_of

IMAGES = torch.randn(2, 3, 32, 32)


def model_of(expanded: bool = True) -> nn.Module:
    model = timm.create_model("test_resnet")
    return timm_linop.expand(model) if expanded else model


def test_a_factor_is_named_by_its_layer() -> None:
    model = model_of()
    assert broken_parameter(model) is None
    with torch.no_grad():
        factors_of(model.get_submodule("layer2.0.conv1"))[2].view(-1)[3] = torch.inf
    assert broken_parameter(model) == "layer2.0.conv1.parametrizations.weight.original2"
    assert blame(model, IMAGES) == "factor 2 of layer 'layer2.0.conv1' is not finite any more"


def test_statistics_are_looked_at_and_masks_are_not() -> None:
    model = model_of(expanded=False)
    model.register_buffer("mask", torch.full((3,), -torch.inf))
    assert broken_parameter(model) is None
    model.get_submodule("bn1").running_var[1] = torch.nan
    assert broken_parameter(model) == "bn1.running_var"


def test_large_numbers_are_numbers() -> None:
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.fill_(3e38)
    assert broken_parameter(layer) is None
    assert broken_parameter(nn.ReLU()) is None


def test_the_first_layer_that_overflows_is_named() -> None:
    model = model_of()
    with torch.no_grad():
        model.get_submodule("layer3.0.bn1").weight.fill_(3e38)  # finite, but not for long
    assert "layer 'layer3.0.bn1' (BatchNorm2d)" in blame(model.train(), IMAGES)


def test_images_teacher_and_loss_are_told_apart() -> None:
    model = model_of(expanded=False)
    broken = IMAGES.clone()
    broken[1, 0, 0, 0] = torch.nan
    assert blame(model, broken) == "the images hold numbers that are not finite"
    dense = model_of(expanded=False)
    teacher = Teacher(dense, (0.5,) * 3, (0.5,) * 3, (0.5,) * 3, (0.5,) * 3)
    assert "the loss itself is too large" in blame(model, IMAGES, teacher)
    with torch.no_grad():
        dense.get_submodule("layer1.0.conv1").weight.fill_(torch.inf)
    assert "layer 'model.layer1.0.conv1' (Conv2d) of the teacher" in blame(model, IMAGES, teacher)


def test_no_hook_is_left_behind() -> None:
    model = model_of()
    blame(model, IMAGES)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_broken_model_is_never_saved(tmp_path: Path) -> None:
    model = model_of(expanded=False)
    with torch.no_grad():
        model.get_submodule("fc").bias[0] = torch.nan
    with pytest.raises(CheckpointError, match=r"'fc\.bias' holds numbers that are not finite"):
        timm_linop.save(model, tmp_path / "slim")
    assert not (tmp_path / "slim").exists()
