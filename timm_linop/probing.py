"""One image through a slim model: it proves that the shapes fit, and tells what they do not say."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.models import get_model_input_config
from torch import Tensor, nn

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
    size, training = image_size(model), model.training
    model.eval()
    try:
        with torch.no_grad():
            try:
                widths = _run(_on_meta(model), model, rules, size)
            except Exception:  # it computes with its tensors, or the shapes do not fit
                widths = _run(model, model, rules, size)
    except Exception as error:  # each family fails in its own way on shapes that do not fit
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise StructureError(
            f"the slim {type(model).__name__} cannot run on one {'x'.join(map(str, size))} image: "
            f"its shapes contradict each other ({reason}); prune it again."
        ) from error
    finally:
        model.train(training)
    for info in _feature_info(model):
        info["num_chs"] = widths.given.get(info.get("module", ""), info["num_chs"])
    _set_widths(model, widths)


@dataclass
class _Widths:
    """Channels that an image was seen with on its way."""

    fed: dict[str, int] = field(default_factory=dict)
    given: dict[str, int] = field(default_factory=dict)
    features: int | None = None
    hidden: int | None = None


def _run(runner: Any, model: nn.Module, rules: Rules, size: tuple[int, ...]) -> _Widths:
    """Run one image through a model or its copy, setting attributes on both."""
    channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
    widths = _Widths()

    def note(name: str) -> Any:
        def hook(_module: nn.Module, inputs: Any, output: Any) -> None:
            _note_width(widths.fed, name, inputs, channels_last)
            _note_width(widths.given, name, output, channels_last)

        return hook

    modules = dict(runner.named_modules())
    with ExitStack() as hooks:
        for name, own in rules.items():
            setter = _setter(own, model.get_submodule(name))
            hooks.enter_context(modules[name].register_forward_pre_hook(setter))
        told_of = {str(info.get("module")) for info in _feature_info(model)} | {"head"}
        for name in told_of & modules.keys():
            hooks.enter_context(modules[name].register_forward_hook(note(name)))
        features, hidden = _features_and_hidden(runner, size)
    seen: dict[str, int] = {}
    _note_width(seen, "features", features, channels_last)
    widths.features = seen.get("features")
    if isinstance(hidden, Tensor) and hidden.ndim == 2:
        widths.hidden = hidden.shape[1]
    return widths


def _feature_info(model: Any) -> list[dict[str, Any]]:
    infos = getattr(model, "feature_info", [])
    return getattr(infos, "info", infos)


def _setter(rules: Mapping[str, Rule], original: nn.Module) -> Callable[[nn.Module, Any], None]:
    """A hook that sets the attributes of a module, and of the one it copies, before it runs."""

    def set_attributes(module: nn.Module, inputs: Any) -> None:
        for attribute, rule in rules.items():
            value = rule(module, inputs[0])
            set_attribute(module, attribute, value)
            set_attribute(original, attribute, value)

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
        widths[name] = value.shape[_channel_axis(value, channels_last)]


def _channel_axis(x: Tensor, channels_last: bool) -> int:
    """The square axes are the image's; where all three are equal, the model's format tells."""
    if x.ndim != 4:
        return -1
    _, first, second, third = x.shape
    if (first == second) != (second == third):
        return -1 if first == second else 1
    return -1 if channels_last else 1


def _set_widths(model: Any, widths: _Widths) -> None:
    """Correct every count that timm's ``reset_classifier`` and heads remember."""
    if getattr(model, "embed_dim", None) == getattr(model, "num_features", None):
        _set_counts(model, ("embed_dim",), widths.features)  # of a network of one width
    _set_counts(model, ("num_features",), widths.features)
    _set_counts(model, ("head_hidden_size",), widths.hidden)
    head = getattr(model, "head", None)
    if hasattr(head, "reset"):  # one of timm's heads
        _set_counts(head, ("in_features",), widths.fed.get("head"))
        _set_counts(head, ("num_features", "hidden_size"), widths.hidden)


def _set_counts(module: Any, names: tuple[str, ...], width: int | None) -> None:
    for name in names:
        if width is not None and isinstance(getattr(module, name, None), int):
            setattr(module, name, width)


def image_size(model: Any) -> tuple[int, int, int]:
    """The channels, height and width of an image that a timm model takes.

    It is the one in its config, made larger to whole patches where the model was built with others.

    Raises:
        StructureError: If the config's size is none, or absurd.

    Example:
        >>> import timm
        >>> image_size(timm.create_model("test_resnet", in_chans=1))
        (1, 160, 160)
    """
    size = tuple(get_model_input_config(model)["input_size"])
    if len(size) != 3 or not all(isinstance(s, int) and s > 0 for s in size):
        raise StructureError(f"input_size={size} is no (channels, height, width); save it again.")
    if math.prod(size) > _MAX_PROBE:
        raise StructureError(
            f"input_size={size} is over the {_MAX_PROBE:,} numbers that an image may have; save "
            "the model again, with the size it was trained at."
        )
    channels, height, width = size
    of_any_size = (m for m in model.modules() if getattr(m, "strict_img_size", True) is False)
    rows, columns = next((m.patch_size for m in of_any_size), (1, 1))
    return channels, height + -height % rows, width + -width % columns


def _on_meta(model: nn.Module) -> nn.Module:
    """Copy a model without copying its numbers; what is shared in it stays shared."""
    tensors = [*model.parameters(), *model.buffers()]
    memo = {id(t): t.detach().to("meta").requires_grad_(t.requires_grad) for t in tensors}
    memo |= {id(p): nn.Parameter(memo[id(p)], p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, memo)


def _features_and_hidden(model: Any, size: tuple[int, ...]) -> tuple[Any, Any]:
    """The features, and what the classifier reads, of one image."""
    image = next(model.parameters()).new_zeros(1, *size)
    output = model(image)  # the classifier must fit, too
    if not hasattr(model, "forward_head"):
        return output, None
    features = model.forward_features(image)
    if getattr(model, "aux_logits", False):  # timm's Inception gives those of a second head, too
        features = features[0]
    try:
        return features, model.forward_head(features, pre_logits=True)
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        return features, None  # an encoder, whose head is not for its features
