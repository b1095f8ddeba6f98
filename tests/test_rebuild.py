"""Slimming layer by layer: against layers cut by hand and against what a forward really gives."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.slims import FAMILIES, images, slim, twin
from timm_linop.errors import StructureError
from timm_linop.probing import settle_by_running
from timm_linop.rebuild import resize
from timm_linop.structure import Structure


class Layers(nn.Module):
    """A named module for each layer given; never run as a whole."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)


def slimmed(layer: nn.Module, shapes: dict[str, tuple[int | None, ...]], **attributes: int) -> Any:
    model = Layers(layer=layer)
    named = {f"layer.{key}": shape for key, shape in shapes.items()}
    resize(model, named, {"layer": attributes} if attributes else {})
    return model.layer


# --- one layer ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "kernel", "conv"),
    [(nn.Conv1d, (3,), F.conv1d), (nn.Conv2d, (3, 3), F.conv2d), (nn.Conv3d, (1, 3, 3), F.conv3d)],
)
def test_a_convolution(kind: Any, kernel: tuple[int, ...], conv: Any) -> None:
    dense = kind(8, 6, kernel)
    weight, bias = dense.weight.detach().clone(), dense.bias.detach().clone()
    layer = slimmed(dense, {"weight": (4, 5, *kernel), "bias": (4,)})
    x = torch.randn(2, 5, *[4] * len(kernel))
    assert torch.equal(layer(x), conv(x, weight[:4, :5], bias[:4]))
    assert (layer.in_channels, layer.out_channels, layer.groups) == (5, 4, 1)


@pytest.mark.parametrize("multiplier", [1, 2])
def test_a_depthwise_convolution_keeps_one_group_a_channel(multiplier: int) -> None:
    dense = nn.Conv2d(8, 8 * multiplier, 3, groups=8, bias=False)
    weight = dense.weight.detach().clone()
    layer = slimmed(dense, {"weight": (3 * multiplier, 1, 3, 3)})
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(layer(x), F.conv2d(x, weight[: 3 * multiplier], groups=3))
    assert (layer.in_channels, layer.out_channels, layer.groups) == (3, 3 * multiplier, 3)


def test_a_grouped_convolution_keeps_its_groups_unless_told() -> None:
    dense = nn.Conv2d(12, 12, 3, groups=3, bias=False)
    weight = dense.weight.detach().clone()
    narrower = slimmed(copy.deepcopy(dense), {"weight": (6, 2, 3, 3)})
    assert (narrower.in_channels, narrower.out_channels, narrower.groups) == (6, 6, 3)
    assert torch.equal(narrower.weight, weight[:6, :2])
    fewer = slimmed(dense, {"weight": (8, 4, 3, 3)}, groups=2)
    x = torch.randn(1, 8, 5, 5)
    assert torch.equal(fewer(x), F.conv2d(x, weight[:8], groups=2))
    assert (fewer.in_channels, fewer.out_channels, fewer.groups) == (8, 8, 2)


def test_a_depthwise_convolution_that_is_told_its_groups() -> None:
    layer = slimmed(nn.Conv2d(8, 8, 3, groups=8), {"weight": (4, 1, 3, 3), "bias": (4,)}, groups=2)
    assert (layer.in_channels, layer.out_channels, layer.groups) == (2, 4, 2)
    assert layer(torch.randn(1, 2, 3, 3)).shape == (1, 4, 1, 1)


def test_a_linear_layer() -> None:
    dense = nn.Linear(8, 6)
    weight, bias = dense.weight.detach().clone(), dense.bias.detach().clone()
    layer = slimmed(dense, {"weight": (None, 5)})
    x = torch.randn(2, 5)
    assert torch.equal(layer(x), F.linear(x, weight[:, :5], bias))
    assert (layer.in_features, layer.out_features) == (5, 6)


@pytest.mark.parametrize(
    ("layer", "attribute", "width"),
    [
        (nn.BatchNorm2d(8), "num_features", 5),
        (nn.LayerNorm(8), "normalized_shape", (5,)),
        (nn.RMSNorm(8), "normalized_shape", (5,)),
        (nn.GroupNorm(1, 8), "num_channels", 5),
        (nn.PReLU(8), "num_parameters", 5),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_norm_or_activation(layer: nn.Module, attribute: str, width: Any) -> None:
    shapes = {key: (5,) for key, tensor in layer.state_dict().items() if tensor.ndim}
    like = {"weight": (5,), "bias": (5,), "running_mean": (5,), "running_var": (5,)}
    assert shapes.items() <= like.items()
    other = slimmed(layer, shapes)
    assert getattr(other, attribute) == width
    last = isinstance(layer, nn.LayerNorm | nn.RMSNorm)
    x = torch.randn(2, 5) if last else torch.randn(2, 5, 3, 3)
    assert other.eval()(x).shape == x.shape


def test_an_embedding() -> None:
    layer = slimmed(nn.Embedding(8, 6), {"weight": (5, 4)})
    assert (layer.num_embeddings, layer.embedding_dim) == (5, 4)
    assert layer(torch.tensor([4])).shape == (1, 4)


def test_kind_and_trainability_of_a_tensor_are_kept() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen = nn.Parameter(torch.arange(6.0), requires_grad=False)
            self.free = nn.Parameter(torch.arange(6.0))
            self.register_buffer("kept", torch.arange(6.0))
            self.register_buffer("passing", torch.arange(6.0), persistent=False)

    layer = slimmed(Both(), {"frozen": (2,), "free": (3,), "kept": (4,), "passing": (5,)})
    sizes = {"frozen": 2, "free": 3, "kept": 4, "passing": 5}
    for name, size in sizes.items():
        assert torch.equal(getattr(layer, name).detach(), torch.arange(float(size)))
    assert [(name, p.requires_grad) for name, p in layer.named_parameters()] == [
        ("frozen", False),
        ("free", True),
    ]
    assert [name for name, _ in layer.named_buffers()] == ["kept", "passing"]
    assert set(layer.state_dict()) == {"frozen", "free", "kept"}
    # a copy, not a view that would keep the dense tensor alive
    assert layer.free.untyped_storage().nbytes() == 3 * 4


@pytest.mark.parametrize(
    ("layer", "shapes"),
    [
        (nn.Conv2d(8, 6, 1), {"bias": (1,)}),
        (nn.Linear(8, 6), {"weight": (5, 8)}),
        (nn.BatchNorm2d(8), {"weight": (5,), "bias": (5,)}),
        (nn.LayerNorm(8), {"weight": (5,)}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_layer_that_contradicts_itself_is_refused_by_name(
    layer: nn.Module, shapes: dict[str, tuple[int, ...]]
) -> None:
    with pytest.raises(StructureError, match=r"^layer: its shapes contradict each other"):
        slimmed(layer, shapes)


# --- a whole model ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_feature_widths_are_those_of_a_real_forward(name: str) -> None:
    model: Any = copy.deepcopy(slim(name))
    told = [info["num_chs"] for info in model.feature_info]
    model.num_features = model.head_hidden_size = 1
    for info in model.feature_info:
        info["num_chs"] = 1
    settle_by_running(model, {})

    seen: dict[str, Tensor] = {}
    modules = dict(model.named_modules())
    for info in model.feature_info:
        modules[info["module"]].register_forward_hook(
            lambda _module, _inputs, output, key=info["module"]: seen.update({key: output})
        )
    with torch.no_grad():
        features = model.forward_features(images(name))
        hidden = model.forward_head(features, pre_logits=True)
    axis = -1 if name == "test_vit" else 1
    assert model.num_features == features.shape[axis]
    assert model.head_hidden_size == hidden.shape[1] == model.get_classifier().in_features
    assert [i["num_chs"] for i in model.feature_info] == [
        seen[i["module"]].shape[axis] for i in model.feature_info
    ]
    assert [i["num_chs"] for i in model.feature_info] == told  # prune had settled them


@pytest.mark.parametrize("name", FAMILIES)
def test_a_new_classifier_fits_the_slim_width(name: str) -> None:
    model: Any = twin(name, slim(name))
    model.reset_classifier(3)
    assert model(images(name)).shape == (2, 3)
    model.reset_classifier(0)
    assert model(images(name)).shape == (2, model.head_hidden_size)


@pytest.mark.parametrize("training", [True, False])
def test_settling_changes_nothing_else(training: bool) -> None:
    model: Any = copy.deepcopy(slim("test_resnet")).train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    settle_by_running(model, {})
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training is training
    assert not any(module._forward_hooks for module in model.modules())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])  # BatchNorm statistics among them


@pytest.mark.parametrize(
    ("size", "says"),
    [
        ((3, 20_000, 20_000), r"over the 16,777,216 numbers"),
        ((3, -64, 64), r"no \(channels, height, width\)"),
        ((3, 64.5, 64), r"no \(channels, height, width\)"),
        ("abc", r"no \(channels, height, width\)"),
    ],
    ids=str,
)
def test_an_absurd_image_size_is_refused(size: Any, says: str) -> None:
    model: Any = copy.deepcopy(slim("test_resnet"))
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": size}
    model.in_chans = size[0]
    with pytest.raises(StructureError, match=says):
        settle_by_running(model, {})


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_a_headless_structure_lets_the_classifier_follow(name: str) -> None:
    headless = copy.deepcopy(slim(name))
    headless.reset_classifier(0)
    structure = Structure.of(headless)
    assert f"{headless.pretrained_cfg['classifier']}.weight" not in structure.shapes
    built = structure.build(timm.create_model(name, num_classes=4)).eval()
    assert built(images(name)).shape == (2, 4)
    assert built.get_classifier().in_features == slim(name).get_classifier().in_features


def test_shapes_that_do_not_fit_each_other_are_refused_before_any_use() -> None:
    dense = timm.create_model("test_resnet", num_classes=5)
    shapes = dict(Structure.of(slim("test_resnet")).shapes)
    right = Structure("test_resnet", shapes)
    right.build(copy.deepcopy(dense))
    for name in ("layer2.0.conv1.weight", "layer3.0.bn2.running_var"):
        wrong = Structure("test_resnet", {key: s for key, s in shapes.items() if key != name})
        with pytest.raises(StructureError, match="shapes contradict each other") as caught:
            wrong.build(copy.deepcopy(dense))
        assert re.search(r"prune it again\.$", str(caught.value))
