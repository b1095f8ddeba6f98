"""Zero and masked channels, removed for good: against the outputs of the model that has them."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

import timm_linop
from tests.slims import images, lively, twin
from timm_linop.structure import Structure, without_zeros


def silenced(name: str, layer: str, norm: str | None, channels: list[int]) -> Any:
    """A model some of whose channels are zero from the filter to the norm behind it."""
    model = lively(name)
    with torch.no_grad():
        convolution: Any = model.get_submodule(layer)
        convolution.weight[channels] = 0
        if convolution.bias is not None:
            convolution.bias[channels] = 0
        if norm is not None:
            behind: Any = model.get_submodule(norm)
            behind.bias[channels] = 0
            behind.running_mean[channels] = 0
    return model


def test_filters_of_zeros_go_and_the_outputs_stay() -> None:
    model = silenced("test_resnet", "layer1.0.conv1", "layer1.0.bn1", [1, 4, 5])
    slim: Any = without_zeros(model)
    width = model.layer1[0].conv1.out_channels
    assert slim.layer1[0].conv1.out_channels == slim.layer1[0].conv2.in_channels == width - 3
    kept = [i for i in range(width) if i not in (1, 4, 5)]
    assert torch.equal(slim.layer1[0].conv1.weight, model.layer1[0].conv1.weight[kept])
    x = images("test_resnet")
    assert torch.allclose(slim(x), model(x), rtol=1e-5, atol=1e-6)
    structure = Structure.of(model)
    assert structure == Structure.of(slim)
    assert structure.shapes["layer1.0.conv1.weight"][0] == width - 3


def test_a_hidden_layer_of_a_transformer() -> None:
    model = silenced("test_vit", "blocks.1.mlp.fc1", None, [0, 7])
    slim: Any = without_zeros(model)
    assert slim.blocks[1].mlp.fc2.in_features == model.blocks[1].mlp.fc2.in_features - 2
    x = images("test_vit")
    assert torch.allclose(slim(x), model(x), rtol=1e-5, atol=1e-6)


def test_the_masks_of_torchs_own_pruning() -> None:
    model: Any = lively("test_vit")
    for block in model.blocks:
        torch_prune.ln_structured(block.mlp.fc1, "weight", amount=0.5, n=2, dim=0)
        with torch.no_grad():
            block.mlp.fc1.bias *= block.mlp.fc1.weight_mask[:, 0]
    expected, before = model(images("test_vit")), set(model.state_dict())
    slim = twin("test_vit", model)
    assert torch.allclose(slim(images("test_vit")), expected, rtol=1e-5, atol=1e-6)
    for block, wide in zip(slim.blocks, model.blocks, strict=True):
        assert 2 * block.mlp.fc1.out_features == wide.mlp.fc1.out_features
    assert set(model.state_dict()) == before  # the masks are still on it
    wide_twin = twin("test_vit", model, rate=2)
    assert torch.allclose(wide_twin(images("test_vit")), expected, rtol=1e-4, atol=1e-5)


def test_masks_without_a_zero_channel_only_come_off() -> None:
    model: Any = lively("test_resnet")
    torch_prune.l1_unstructured(model.layer1[0].conv1, "weight", amount=0.3)
    assert Structure.of(model).shapes == {}
    x = images("test_resnet")
    assert torch.equal(twin("test_resnet", model)(x), model(x))


def test_a_zero_filter_that_a_norm_shifts_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    model = lively("test_resnet")
    with torch.no_grad():
        model.get_submodule("layer1.0.conv1").weight[[1, 4]] = 0  # type: ignore[index,union-attr]
    with caplog.at_level(logging.WARNING):
        assert Structure.of(model).shapes == {}
    assert "filters of zeros are kept in 1 layers" in caplog.text
    assert "layer1.0.conv1" in caplog.text
    x = images("test_resnet")
    assert torch.equal(twin("test_resnet", model)(x), model(x))


def test_a_layer_that_begins_at_zero_is_no_pruned_one() -> None:
    model = lively("test_resnet")
    with torch.no_grad():
        model.get_submodule("layer1.0.conv2").weight.zero_()  # type: ignore[operator,union-attr]
    assert without_zeros(model) is model


def test_the_model_is_left_as_it_is() -> None:
    model = silenced("test_resnet", "layer1.0.conv1", "layer1.0.bn1", [2])
    before = copy.deepcopy(model.state_dict())
    without_zeros(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_pruned_models_of_timm() -> None:
    """timm's own slim architectures are architectures: nothing of theirs is left to remove."""
    import timm

    model = timm.create_model("ecaresnet26t", num_classes=3)
    assert isinstance(model, nn.Module)
    names = timm.list_models("*_pruned", exclude_filters="linop_*")
    assert {f"linop_{name}" for name in names} <= set(timm.list_models("linop_*_pruned"))
    small = timm.create_model("efficientnet_b1_pruned", num_classes=3).eval()
    again = timm.create_model("linop_efficientnet_b1_pruned", pruned=small, rate=0).eval()
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(again(x), small(x))
    assert Structure.of(small).shapes == {}
    timm_linop.contract(timm_linop.expand(again, 1, seed=0))
