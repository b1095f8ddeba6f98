"""Slim a dense model to given shapes, and make every module agree with its tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from timm.models import get_model_input_config
from torch import Tensor, nn
from torch.func import functional_call

from .errors import StructureError

# An image of this many numbers (3 x 2364 x 2364) is more than any timm model takes.
_MAX_PROBE = 2**24


def resize(
    model: nn.Module,
    shapes: Mapping[str, tuple[int | None, ...]],
    attributes: Mapping[str, Mapping[str, int]],
) -> None:
    """Cut tensors to their leading slices and settle the modules' hyper-parameters, in place.

    Args:
        model: A dense model; ``shapes`` and ``attributes`` have been checked against it.
        shapes: Tensor name to slim shape, None for an axis that stays.
        attributes: Module name to whole numbers that shapes do not tell.
    """
    touched = {name.rpartition(".")[0] for name in shapes} | set(attributes)
    depthwise = {name for name in touched if _is_depthwise(model.get_submodule(name))}
    for name, shape in shapes.items():
        _cut(model, name, shape)
    for name in touched:
        module = model.get_submodule(name)
        for attribute, value in attributes.get(name, {}).items():
            setattr(module, attribute, value)
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
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase) and module.affine:
        module.num_features = module.weight.shape[0]
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm) and module.elementwise_affine:
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.GroupNorm) and module.affine:
        module.num_channels = module.weight.shape[0]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.shape[0]
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    if hasattr(module, "head_dim") and hasattr(module, "scale"):
        module.scale = module.head_dim**-0.5


def settle_feature_widths(model: Any) -> None:
    """Set ``num_features``, ``head_hidden_size`` and ``feature_info`` to what the slim layers give.

    timm reads them in ``reset_classifier`` and ``features_only``; a pruned module has stale ones.
    One forward tells the truth, and proves that the shapes fit each other.

    Args:
        model: A slim timm model.

    Raises:
        StructureError: If the model cannot run, so its shapes contradict each other.

    Example:
        >>> import timm
        >>> model = timm.create_model("test_resnet")
        >>> model.num_features = 1  # stale
        >>> settle_feature_widths(model)
        >>> model.num_features
        96
    """
    widths: dict[str, int] = {}
    channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
    infos = getattr(model, "feature_info", [])
    infos = getattr(infos, "info", infos)

    def note(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                last = output.ndim != 4 or channels_last
                widths[name] = output.shape[-1 if last else 1]

        return hook

    modules = dict(model.named_modules())
    with ExitStack() as hooks:
        for info in infos:
            if info.get("module") in modules:
                handle = modules[info["module"]].register_forward_hook(note(info["module"]))
                hooks.enter_context(handle)
        features, hidden = _probe(model)
    for info in infos:
        info["num_chs"] = widths.get(info.get("module", ""), info["num_chs"])
    if isinstance(features, Tensor) and hasattr(model, "num_features"):
        last = features.ndim != 4 or channels_last
        model.num_features = features.shape[-1 if last else 1]
    if isinstance(hidden, Tensor) and hidden.ndim == 2 and hasattr(model, "head_hidden_size"):
        model.head_hidden_size = hidden.shape[1]


def _probe(model: Any) -> tuple[Any, Any]:
    """Run one image through, on the meta device where the architecture allows it."""
    size = tuple(get_model_input_config(model)["input_size"])
    if len(size) != 3 or not all(isinstance(s, int) and s > 0 for s in size):
        raise StructureError(f"input_size={size} is no (channels, height, width); save it again.")
    if math.prod(size) > _MAX_PROBE:
        raise StructureError(
            f"input_size={size} is over the {_MAX_PROBE:,} numbers that an image may have; save "
            "the model again, with the size it was trained at."
        )
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            try:
                return functional_call(
                    _Heads(model), _on_meta(model), torch.empty(1, *size, device="meta")
                )
            except Exception:  # it computes with its tensors, or the shapes do not fit
                device = next(model.parameters()).device
                return _Heads(model)(torch.zeros(1, *size, device=device))
    except Exception as error:  # each family fails in its own way on shapes that do not fit
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise StructureError(
            f"the slim {type(model).__name__} cannot run on one {'x'.join(map(str, size))} image: "
            f"its shapes contradict each other ({reason}); prune it again."
        ) from error
    finally:
        model.train(training)


def _on_meta(model: nn.Module) -> dict[str, Tensor]:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {f"model.{name}": tensor.detach().to("meta") for name, tensor in tensors}


class _Heads(nn.Module):
    """The features, and what the classifier reads, of one forward."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, x: Tensor) -> tuple[Any, Any]:
        if not hasattr(self.model, "forward_head"):
            return self.model(x), None
        features = self.model.forward_features(x)
        return features, self.model.forward_head(features, pre_logits=True)
