"""What timm can tell of an architecture: its name, its arguments, its dense tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import timm
import torch
from torch import Tensor, nn

from .errors import StructureError, UnknownModelError, close_names

PREFIX = "linop_"
ALIASES = {"linop_mobilenetv2": "mobilenetv2_100"}


def known_architecture(name: str) -> str:
    """Return a timm architecture's plain name, or refuse it.

    Args:
        name: A timm name, with or without ``linop_`` and tag, or an alias of ours.

    Raises:
        UnknownModelError: If timm has no such architecture.

    Example:
        >>> known_architecture("linop_resnet18.a1_in1k")
        'resnet18'
    """
    plain = name.split(".")[0]
    base = ALIASES.get(plain, plain.removeprefix(PREFIX))
    if base.startswith(PREFIX) or not timm.is_model(base):
        raise UnknownModelError(
            f"{name[:80]!r} is no architecture of timm {timm.__version__}."
            + close_names(base[:80], timm.list_models(exclude_filters=f"{PREFIX}*"))
            + " timm.list_models() lists them."
        )
    return base


def base_of(model: nn.Module) -> str:
    """Read a timm model's architecture name.

    Raises:
        StructureError: If the model was not made by timm.

    Example:
        >>> base_of(timm.create_model("test_resnet"))
        'test_resnet'
    """
    cfg = getattr(model, "pretrained_cfg", None) or {}
    name = cfg.get("architecture")
    if not name:
        raise StructureError(
            f"{type(model).__name__} does not say which timm architecture it is "
            "(no pretrained_cfg['architecture']); create it with timm.create_model."
        )
    return known_architecture(name)


# Not arguments of the architecture: ours, and those that only matter while building or training.
_OWN_ARGS = {"pruned", "rate", "init", "seed", "probe", "pretrained_model_args"}
_PASSING_ARGS = {"pretrained_strict", "features_only", "out_indices", "feature_cls"}


def model_args_of(model: nn.Module) -> dict[str, Any]:
    """Collect what a timm model was built with, as far as timm recorded it.

    Returns:
        Arguments for ``timm.create_model`` of its base: ``num_classes`` and the recorded ones.

    Example:
        >>> model_args_of(timm.create_model("test_resnet", num_classes=7))
        {'num_classes': 7}
    """
    args = dict(getattr(model, "_model_args", {}))
    args = {k: v for k, v in args.items() if k not in _OWN_ARGS | _PASSING_ARGS}
    if isinstance(getattr(model, "num_classes", None), int):
        args["num_classes"] = model.num_classes
    return args


def whole_model(base: str) -> nn.Module:
    """`dense_model` with a classifier, also for an architecture whose default has none.

    Example:
        >>> name = "vit_small_patch14_dinov2"
        >>> dense_model(name).head, whole_model(name).head
        (Identity(), Linear(in_features=384, out_features=2, bias=True))
    """
    return dense_model(base, num_classes=2)


def dense_model(base: str, **args: Any) -> nn.Module:
    """Build the dense architecture without its memory, where it allows that.

    Args:
        base: A timm name.
        **args: Passed to ``timm.create_model``.

    Returns:
        The model on the meta device; on the CPU if it computes with its tensors while being built.

    Example:
        >>> dense_model("test_resnet").fc.weight.device.type
        'meta'
    """
    try:
        with torch.device("meta"):
            return timm.create_model(base, **args)
    except (RuntimeError, NotImplementedError):
        return timm.create_model(base, **args)


def forget_caches(model: nn.Module) -> nn.Module:
    """Empty the caches that some attentions keep in eval mode: stale after training, uncopyable.

    Returns:
        ``model`` itself.
    """
    for module in model.modules():
        cache: Any = getattr(module, "attention_bias_cache", None)
        if isinstance(cache, dict):
            cache.clear()
    return model


def tensors_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What a state dict holds, without making one."""
    state = model.state_dict(keep_vars=True)
    return ((name, value) for name, value in state.items() if isinstance(value, Tensor))


def args_told_by(weights: Mapping[str, Tensor], base: str) -> dict[str, int]:
    """Read off the weights what the free axes say: how many classes, how many input channels.

    Args:
        weights: A state dict of the architecture, dense or slim.
        base: Its timm name.

    Returns:
        ``num_classes``, and ``in_chans`` where the first layer is a known one.

    Example:
        >>> gray = timm.create_model("test_resnet", num_classes=7, in_chans=1)
        >>> args_told_by(gray.state_dict(), "test_resnet")
        {'num_classes': 7, 'in_chans': 1}
    """
    dense: Any = dense_model(base)
    full = {name: tensor.shape for name, tensor in tensors_of(dense)}
    channels = dense.pretrained_cfg["input_size"][0]
    told = {"num_classes": 0}  # what a model without classifier has
    for name, axis in free_axes(dense).items():
        shape = tuple(weights[name].shape) if name in weights else ()
        if axis == 0 and shape:
            told["num_classes"] = shape[0]
        elif axis == 1 and len(shape) == len(full[name]):
            told["in_chans"] = shape[1] * channels // full[name][1]
    return told


def free_axes(model: nn.Module) -> dict[str, int]:
    """The axes a structure must not fix: classifier outputs and first-layer inputs."""

    def named(key: str) -> tuple[str, ...]:
        value = (getattr(model, "pretrained_cfg", None) or {}).get(key) or ()
        return (value,) if isinstance(value, str) else tuple(value)

    free = {f"{name}.bias": 0 for name in named("classifier")}
    free |= {f"{name}.weight": 0 for name in named("classifier")}
    return free | {f"{name}.weight": 1 for name in named("first_conv")}
