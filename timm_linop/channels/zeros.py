"""Channels that say nothing: filters of zeros and pruning masks, removed for good."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from ..probing import image_size
from .assist import LAYERS
from .cut import Cut, cut_tensors, kept_by
from .groups import find_groups
from .masked import MaskCheck, first_tensor
from .units import passing

_log = logging.getLogger(__name__)
_SECONDS = 120.0


def without_zero_channels(
    model: nn.Module, narrow: Callable[[nn.Module, dict[str, tuple[int, ...]]], None]
) -> nn.Module:
    """Remove the channels that are zero wherever they come from, if the outputs stay the same.

    Args:
        model: A timm model, perhaps with the masks of `torch.nn.utils.prune`; it is left as it is.
        narrow: Cuts a copy of the model to given shapes and makes its modules agree.

    Returns:
        A slim copy in eval mode; without masks the model itself, if it has no such channels. Zero
        channels whose removal would change an output (a BatchNorm behind them shifts them) are
        kept, with a warning.
    """
    plain = _without_masks(model)
    if not any(_has_zero_rows(layer) for layer in plain.modules()):
        return plain
    image = torch.randn(2, *image_size(plain), dtype=torch.float64)
    exact = copy.deepcopy(plain).cpu().double().eval()
    with torch.enable_grad():  # torch-pruning reads autograd's graph
        spoilt = copy.deepcopy(exact).requires_grad_(True)
        found = find_groups(spoilt, image, _Loudness())
    cuts = [group.cut(_silent(found.scores[group.layer])) for group in found.groups]
    cuts = [cut for cut in cuts if cut.removed]
    check = MaskCheck(plain, image, narrow)
    sound = passing(
        cuts, lambda some: check.passes(some) and _same(exact, some, image, narrow), _SECONDS
    )
    slim = _cut(plain, sound, narrow) if sound else plain
    kept = [name for name, layer in slim.named_modules() if _has_zero_rows(layer)]
    if kept:
        _log.warning(
            "filters of zeros are kept in %d layers, as the outputs would change without their "
            "channels (a norm or a sum behind them puts something there): %s%s",
            len(kept),
            ", ".join(kept[:3]),
            "..." if len(kept) > 3 else "",
        )
    return slim


def _without_masks(model: nn.Module) -> nn.Module:
    """A copy whose masks are multiplied in; the model itself where it has none."""
    masks = [
        (name, hook._tensor_name)
        for name, module in model.named_modules()
        for hook in module._forward_pre_hooks.values()
        if isinstance(hook, torch_prune.BasePruningMethod)
    ]
    if not masks:
        return model
    # torch refuses to copy the products, which are no leaves of the graph
    products = [getattr(model.get_submodule(name), tensor) for name, tensor in masks]
    plain = copy.deepcopy(model, {id(product): product.detach() for product in products})
    for name, tensor in masks:
        torch_prune.remove(plain.get_submodule(name), tensor)
    return plain


def _rows(layer: Any) -> Tensor:
    """The largest number of each output's filter."""
    weight = layer.weight.detach()
    weight = weight.transpose(0, 1) if getattr(layer, "transposed", False) else weight
    return weight.flatten(1).abs().amax(1)


def _has_zero_rows(layer: nn.Module) -> bool:
    """Some but not all: a layer that begins at zero is no pruned one."""
    if not isinstance(layer, LAYERS) or layer.weight.is_meta:
        return False
    zero = _rows(layer) == 0
    return bool(zero.any() and not zero.all())


def _silent(scores: Tensor) -> list[int]:
    """The units of score zero, but never all of them."""
    zero = scores == 0
    return [] if zero.all() else zero.nonzero().flatten().tolist()


class _Loudness(tp.importance.Importance):
    """The largest number that any layer of a group puts into a channel; zero is silence."""

    @torch.no_grad()
    def __call__(self, group: tp.dependency.Group) -> Tensor | None:
        loudest = torch.zeros(len(group[0].idxs), dtype=torch.float64)
        for i, (dep, positions) in enumerate(group):
            own = _put_in(dep)
            roots = group[i].root_idxs
            if own is None or not positions or any(root is None for root in roots):
                continue
            loudest.scatter_reduce_(0, torch.tensor(roots), own[positions], "amax")
        return loudest


def _put_in(dep: tp.dependency.Dependency) -> Tensor | None:
    """What a layer adds to each of its outputs; None for one that only passes on."""
    layer: Any = dep.target.module
    if isinstance(layer, LAYERS) and "out" in dep.handler.__name__:
        rows = _rows(layer)
        return rows if layer.bias is None else torch.maximum(rows, layer.bias.detach().abs())
    if isinstance(layer, nn.modules.batchnorm._NormBase) and layer.affine:
        norm: Any = layer
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        return (norm.bias - norm.running_mean * scale).abs()
    return None


def _cut(
    model: nn.Module,
    cuts: Sequence[Cut],
    narrow: Callable[[nn.Module, dict[str, tuple[int, ...]]], None],
) -> nn.Module:
    kept = kept_by(cuts, model)
    slim = copy.deepcopy(model).eval()
    narrow(slim, {name: tuple(map(len, axes)) for name, axes in kept.items()})
    slim.load_state_dict(cut_tensors(model, kept))
    return slim


@torch.no_grad()
def _same(
    model: nn.Module,
    cuts: Sequence[Cut],
    image: Tensor,
    narrow: Callable[[nn.Module, dict[str, tuple[int, ...]]], None],
) -> bool:
    expected = first_tensor(model(image))
    got = first_tensor(_cut(model, cuts, narrow)(image))
    return bool((got - expected).abs().max() <= 1e-9 * expected.abs().max())
