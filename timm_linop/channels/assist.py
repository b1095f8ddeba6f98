"""What torch-pruning cannot see in timm's modules and must be told."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

LAYERS = (nn.modules.conv._ConvNd, nn.Linear)

# Layers of an attention whose outputs are shared out between its heads.
_BY_HEAD = ("qkv", "qk", "kv", "q", "k", "v", "wq", "wk", "wv")

# Layers whose outputs are split into equal parts, by class: the attribute that counts the parts;
# where there is none, two halves.
_BY_PART: dict[str, tuple[str, str]] = {
    "Bottle2neck": ("conv1", "scale"),
    "DlaBottle2neck": ("conv1", "scale"),
    "CrossStage": ("conv_exp.conv", ""),
    "CrossStage3": ("conv_exp.conv", ""),
    "GluMlp": ("fc1", ""),
}

# Layers that mix heads or positions, not channels, by class.
_NO_CHANNELS: dict[str, tuple[str, ...]] = {
    "TalkingHeadAttn": ("proj_l", "proj_w"),
    "GPSA": ("pos_proj",),
    "RelPosAttention": ("rel_pos",),
    "WindowAttention": ("cpb_mlp",),
    "WindowMultiHeadAttention": ("meta_mlp",),
}

# Bare parameters that hold a number for each head and place, not for each channel, by name.
_BY_PLACE = (
    "attention_biases",
    "height_rel",
    "logit_scale",
    "rel_pos_h",
    "rel_pos_w",
    "relative_position_bias_table",
    "temperature",
    "width_rel",
)


def equal_parts(model: nn.Module) -> dict[nn.Module, int]:
    """Tell into how many parts the outputs of a layer are cut that must stay equally wide.

    Args:
        model: A timm model.

    Returns:
        Layers to their number of parts (heads, groups, splits), where that is over 1.

    Example:
        >>> import timm
        >>> set(equal_parts(timm.create_model("test_vit")).values())
        {2}
    """
    parts: dict[nn.Module, int] = {}
    for module in model.modules():
        for layer, number in _parts_of(module):
            if number > 1:
                parts[layer] = math.lcm(parts.get(layer, 1), number)
    return parts


def _parts_of(module: nn.Module) -> Iterator[tuple[nn.Module, int]]:
    heads = getattr(module, "num_heads", getattr(module, "heads", 1))
    for name in _BY_HEAD:
        layer = getattr(module, name, None)
        if isinstance(layer, LAYERS) and isinstance(heads, int):
            yield layer, heads
    if type(module).__name__ in _BY_PART:
        path, count = _BY_PART[type(module).__name__]
        yield module.get_submodule(path), getattr(module, count, 2)
    if isinstance(module, nn.modules.conv._ConvNd) and module.groups != module.out_channels:
        yield module, module.groups
    if isinstance(module, nn.GroupNorm):
        yield module, module.num_groups


def without_channels(model: nn.Module) -> list[nn.Module]:
    """List the layers that the graph is to pass over, as they mix heads or positions.

    Example:
        >>> import timm
        >>> len(without_channels(timm.create_model("cait_xxs24_224", depth=1)))
        2
    """
    found: list[nn.Module] = []
    for module in model.modules():
        for name in _NO_CHANNELS.get(type(module).__name__, ()):
            inner = getattr(module, name, None)
            found += inner.modules() if inner is not None else ()
    return found


def parameters_without_channels(model: nn.Module) -> list[nn.Parameter]:
    """List the bare parameters that lose nothing when channels go: biases by place, temperatures.

    Example:
        >>> import timm
        >>> len(parameters_without_channels(timm.create_model("levit_128s")))
        11
    """
    named = model.named_parameters()
    return [parameter for name, parameter in named if name.rpartition(".")[2] in _BY_PLACE]


def add_missing_biases(model: nn.Module) -> None:
    """Give norms without a bias one of zeros, which torch-pruning takes for granted."""
    for module in model.modules():
        if isinstance(module, nn.GroupNorm) and module.bias is None and module.weight is not None:
            module.bias = nn.Parameter(torch.zeros_like(module.weight))


def call_fused_layers(model: nn.Module) -> None:
    """Let an attention call its ``qkv`` layer where it would only read the weight (BEiT, EVA).

    Those have a bias for queries and one for values; here the layer gets both, so that the graph
    sees a layer.
    """
    for module in model.modules():
        biases = [getattr(module, f"{part}_bias", None) for part in "qkv"]
        parts = [bias for bias in biases if isinstance(bias, Tensor)]
        layer = getattr(module, "qkv", None)
        if isinstance(layer, nn.Linear) and len(parts) == 3:
            layer.bias = nn.Parameter(torch.cat(parts).detach())
            module._parameters["q_bias"] = module._parameters["v_bias"] = None


def outputs_to_keep(model: nn.Module) -> list[nn.Module]:
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
