"""One image through a slim model: it proves that the shapes fit, and tells what they do not say."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from timm.models import get_model_input_config
from torch import Tensor, nn
from torch.func import functional_call

from .errors import StructureError
from .rules import Rule

# Module name to attribute to its rule.
Rules = Mapping[str, Mapping[str, Rule]]

# An image of this many numbers (3 x 2364 x 2364) is more than any timm model takes.
_MAX_PROBE = 2**24


def settle(model: Any, rules: Rules, *, new_classifier: bool) -> None:
    """Make a resized model whole: attributes, feature metadata, a classifier that was not told.

    Args:
        model: A slim timm model.
        rules: How the attributes follow that its shapes do not tell.
        new_classifier: The shapes are of a model without classifier (``num_classes=0``), so one
            that does not fit is made anew, as timm does for another number of classes.

    Raises:
        StructureError: If the model cannot run, so its shapes contradict each other.
    """
    try:
        settle_by_running(model, rules)
    except StructureError:
        num_classes: int = getattr(model, "num_classes", 0)
        if not new_classifier or num_classes == 0:
            raise
        model.reset_classifier(0)
        settle_by_running(model, rules)
        model.reset_classifier(num_classes)


def settle_by_running(model: Any, rules: Rules) -> None:
    """Run one image and set what it tells: attributes by their rules, and the feature metadata.

    timm reads ``num_features``, ``head_hidden_size`` and ``feature_info`` in ``reset_classifier``
    and ``features_only``; a pruned module has stale ones.

    Args:
        model: A slim timm model.
        rules: How attributes follow, set as each module is reached.

    Raises:
        StructureError: If the model cannot run, so its shapes contradict each other.

    Example:
        >>> import timm
        >>> model = timm.create_model("test_resnet")
        >>> model.num_features = 1  # stale
        >>> settle_by_running(model, {})
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
        for name in rules:
            hooks.enter_context(modules[name].register_forward_pre_hook(_setter(rules[name])))
        for name in {info.get("module") for info in infos} | {"head"}:
            if name in modules:
                hooks.enter_context(modules[name].register_forward_hook(note(name)))
        features, hidden = _probe(model)
    for name in rules:
        _fit_filter(modules[name])  # the probe may have run on other tensors than the model's own
    for info in infos:
        info["num_chs"] = given.get(info.get("module", ""), info["num_chs"])
    _note_width(given, "features", features, channels_last)
    if isinstance(hidden, Tensor) and hidden.ndim == 2:
        given["hidden"] = hidden.shape[1]
    _set_widths(model, given.get("features"), given.get("hidden"), fed.get("head"))


def _setter(rules: Mapping[str, Rule]) -> Callable[[nn.Module, Any], None]:
    """A hook that sets a module's attributes just before it runs."""

    def set_attributes(module: nn.Module, inputs: Any) -> None:
        for attribute, rule in rules.items():
            set_attribute(module, attribute, rule(module, inputs[0]))

    return set_attributes


def set_attribute(module: Any, attribute: str, value: Any) -> None:
    """Set an attribute; a tuple stays one.

    Example:
        >>> layer = nn.LayerNorm(4)
        >>> set_attribute(layer, "normalized_shape", [2])
        >>> layer.normalized_shape
        (2,)
    """
    current = getattr(module, attribute)
    setattr(module, attribute, tuple(value) if isinstance(current, tuple) else value)
    _fit_filter(module)


def _fit_filter(module: Any) -> None:
    """Make ``BlurPool2d``'s fixed filter, which no state dict holds, as wide as its channels."""
    filters = module._buffers.get("filt")
    if filters is not None and isinstance(getattr(module, "channels", None), int):
        module.filt = filters[: module.channels]


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
    training, weight = model.training, next(model.parameters())
    model.eval()
    try:
        with torch.no_grad():
            try:
                image = torch.empty(1, *size, device="meta", dtype=weight.dtype)
                return functional_call(_Heads(model), _on_meta(model), image)
            except Exception:  # it computes with its tensors, or the shapes do not fit
                return _Heads(model)(weight.new_zeros(1, *size))
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
