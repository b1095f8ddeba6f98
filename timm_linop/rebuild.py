"""Slim a dense model to given shapes, and make every module agree with its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .errors import StructureError
from .probing import set_attribute


def resize(
    model: nn.Module,
    shapes: Mapping[str, tuple[int | None, ...]],
    attributes: Mapping[str, Mapping[str, Any]],
) -> None:
    """Cut tensors to their leading slices and settle the modules' hyper-parameters, in place.

    Args:
        model: A dense model; ``shapes`` and ``attributes`` have been checked against it.
        shapes: Tensor name to slim shape, None for an axis that stays.
        attributes: Module name to whole numbers that shapes do not tell.

    Raises:
        StructureError: If a layer's own tensors contradict each other.
    """
    touched = {name.rpartition(".")[0] for name in shapes} | set(attributes)
    depthwise = {name for name in touched if _is_depthwise(model.get_submodule(name))}
    for name, shape in shapes.items():
        _cut(model, name, shape)
    for name in touched:
        module: Any = model.get_submodule(name)
        for attribute, value in attributes.get(name, {}).items():
            set_attribute(module, attribute, value)
            if attribute == "scale" and hasattr(module, "fused_attn"):
                module.fused_attn = False  # which would divide by the root of a head's channels
        _check_layer(name, module)
        _settle(module, name in depthwise and "groups" not in attributes.get(name, {}))


def _cut(model: nn.Module, name: str, shape: tuple[int | None, ...]) -> None:
    module_name, _, key = name.rpartition(".")
    module = model.get_submodule(module_name)
    tensor: Tensor = getattr(module, key)
    part = tensor.detach()[tuple(slice(size) for size in shape)].clone()
    if isinstance(tensor, nn.Parameter):
        module._parameters[key] = nn.Parameter(part, requires_grad=tensor.requires_grad)
    else:
        module._buffers[key] = part


# Layers whose weight and bias both have the outputs as their first axis.
_OUTPUTS_FIRST = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.Linear,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.modules.batchnorm._NormBase,
)


def _check_layer(name: str, module: nn.Module) -> None:
    """Compare what the meta device does not: it adds a bias of any length."""
    if not isinstance(module, _OUTPUTS_FIRST) or module.weight is None:
        return
    weight: Any = module.weight
    for key in ("bias", "running_mean", "running_var"):
        other: Any = getattr(module, key, None)
        if other is not None and other.shape[0] != weight.shape[0]:
            raise StructureError(
                f"{name}: its shapes contradict each other, weight has {weight.shape[0]} outputs "
                f"and {key} {other.shape[0]}; prune it again."
            )


def _is_depthwise(module: nn.Module) -> bool:
    groups = getattr(module, "groups", 1)
    return groups > 1 and groups == getattr(module, "in_channels", None)


def _settle(module: Any, depthwise: bool) -> None:
    """Make a module's hyper-parameters agree with its tensors."""
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        if depthwise:
            # a channel multiplier (out / in) survives pruning
            module.groups = module.weight.shape[0] * module.groups // module.out_channels
        module.out_channels = module.weight.shape[0]
        module.in_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        module.in_channels = module.weight.shape[0]
        module.out_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase) and module.affine:
        module.num_features = module.weight.shape[0]
    elif hasattr(module, "normalized_shape") and module.weight is not None:
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.GroupNorm) and module.affine:
        module.num_channels = module.weight.shape[0]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.shape[0]
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(getattr(module, "q_bias", None), Tensor) and "k_bias" in module._buffers:
        module.k_bias = module.k_bias[: len(module.q_bias)]  # zeros that no state dict holds
