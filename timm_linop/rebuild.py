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

    Raises:
        StructureError: If a layer's own tensors contradict each other.
    """
    touched = {name.rpartition(".")[0] for name in shapes} | set(attributes)
    depthwise = {name for name in touched if _is_depthwise(model.get_submodule(name))}
    for name, shape in shapes.items():
        _cut(model, name, shape)
    for name in touched:
        module = model.get_submodule(name)
        for attribute, value in attributes.get(name, {}).items():
            setattr(module, attribute, value)
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


def settle(model: Any, *, new_classifier: bool) -> None:
    """Make a resized model whole: its feature metadata, and a classifier that was not told.

    Args:
        model: A slim timm model.
        new_classifier: The shapes are of a model without classifier (``num_classes=0``), so one
            that does not fit is made anew, as timm does for another number of classes.

    Raises:
        StructureError: If the model cannot run, so its shapes contradict each other.
    """
    try:
        settle_feature_widths(model)
    except StructureError:
        num_classes: int = getattr(model, "num_classes", 0)
        if not new_classifier or num_classes == 0:
            raise
        model.reset_classifier(0)
        settle_feature_widths(model)
        model.reset_classifier(num_classes)


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
    channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
    infos = getattr(model, "feature_info", [])
    infos = getattr(infos, "info", infos)
    fed: dict[str, int] = {}
    given: dict[str, int] = {}

    def note(name: str) -> Any:
        def hook(_module: nn.Module, inputs: Any, output: Any) -> None:
            _note_width(fed, name, inputs, channels_last)
            _note_width(given, name, output, channels_last)

        return hook

    modules = dict(model.named_modules())
    with ExitStack() as hooks:
        for name in {info.get("module") for info in infos} | {"head"}:
            if name in modules:
                hooks.enter_context(modules[name].register_forward_hook(note(name)))
        features, hidden = _probe(model)
    for info in infos:
        info["num_chs"] = given.get(info.get("module", ""), info["num_chs"])
    _note_width(given, "features", features, channels_last)
    if isinstance(hidden, Tensor) and hidden.ndim == 2:
        given["hidden"] = hidden.shape[1]
    _set_widths(model, given.get("features"), given.get("hidden"), fed.get("head"))


def _note_width(widths: dict[str, int], name: str, value: Any, channels_last: bool) -> None:
    """Remember the channels of a tensor, or of the first one of several."""
    if isinstance(value, tuple | list) and value:
        value = value[0]
    if isinstance(value, Tensor) and value.ndim > 1:
        widths[name] = value.shape[-1 if value.ndim != 4 or channels_last else 1]


def _set_widths(model: Any, features: int | None, hidden: int | None, fed: int | None) -> None:
    """Correct every count that timm's ``reset_classifier`` and heads remember."""
    if getattr(model, "embed_dim", None) == getattr(model, "num_features", None):
        _set_counts(model, ("embed_dim",), features)  # of a network of one width
    _set_counts(model, ("num_features",), features)
    _set_counts(model, ("head_hidden_size",), hidden)
    head = getattr(model, "head", None)
    if hasattr(head, "reset"):  # one of timm's heads
        _set_counts(head, ("in_features",), fed)
        _set_counts(head, ("num_features", "hidden_size"), hidden)


def _set_counts(module: Any, names: tuple[str, ...], width: int | None) -> None:
    for name in names:
        if width is not None and isinstance(getattr(module, name, None), int):
            setattr(module, name, width)


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
        self.model.forward_head(features)  # the classifier must fit, too
        return features, self.model.forward_head(features, pre_logits=True)
