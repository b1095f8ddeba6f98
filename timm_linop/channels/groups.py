"""Coupled channel groups, over torch-pruning's dependency graph: what must be removed together."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch_pruning.dependency import Dependency, Group

from ..architecture import tensors_of
from .assist import (
    LAYERS,
    add_missing_biases,
    call_fused_layers,
    equal_parts,
    outputs_to_keep,
    parameters_without_channels,
    without_channels,
)
from .cut import Cut, read_cuts
from .graph import ChannelGraph

# Seconds to follow one group; a group takes well below one, or for ever.
_PATIENCE = 5.0


# Scores of a group's channels, and the number of equally wide parts they lie in, to the positions
# that are to go.
Choice = Callable[[Tensor, int], list[int]]


class Proposal(NamedTuple):
    """What could go.

    Attributes:
        cuts: One a group, none of them made.
        not_followed: Layers whose coupled channels torch-pruning could not follow.
    """

    cuts: list[Cut]
    not_followed: tuple[str, ...]


def propose(
    model: nn.Module, example: Tensor, importance: tp.importance.Importance, choose: Choice
) -> Proposal:
    """Find the coupled groups of a model, and the channels of each that are to go.

    Args:
        model: A dense timm model in eval mode, in float64; it is spoilt.
        example: One batch of images, ``b x c x h x w``.
        importance: torch-pruning's score of a group's channels.
        choose: Takes the scores apart, see `least`.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors_of(model)}
    add_missing_biases(model)
    call_fused_layers(model)
    graph = ChannelGraph(channels_last=getattr(model, "output_fmt", "NCHW") == "NHWC")
    graph.IGNORED_LAYERS_IN_TRACING.extend(without_channels(model))
    by_place = parameters_without_channels(model)
    graph.clock.allow(10 * _PATIENCE)
    graph.build_dependency(model, example, ignored_params=by_place, verbose=False)
    parts = equal_parts(model)
    chosen: list[Group] = []
    lost: list[nn.Module] = []
    for group in _groups(graph, outputs_to_keep(model), lost):
        graph.clock.allow(_PATIENCE)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                part = _part_to_go(graph, group, parts, importance, choose)
            except _LOST:
                lost.append(group[0].dep.target.module)
                continue
        if part is not None and graph.check_pruning_group(part):
            chosen.append(part)
    names = {module: name for name, module in model.named_modules()}
    cuts = read_cuts(graph, model, chosen, shapes)
    return Proposal(cuts, tuple(names.get(module, "a parameter") for module in lost))


# How torch-pruning fails on a graph that it cannot follow.
_LOST = (TimeoutError, IndexError, AssertionError)


def _groups(graph: ChannelGraph, keep: list[nn.Module], lost: list[nn.Module]) -> Iterator[Group]:
    """Every group once, with all of its channels, but for those whose outputs are to stay.

    Layers whose group cannot be followed are added to ``lost``.
    """
    untouched = {*keep, *graph.IGNORED_LAYERS_IN_TRACING}
    seen = set(untouched)
    for layer in list(graph.module2node):
        if not isinstance(layer, LAYERS) or layer in seen:
            continue
        graph.clock.allow(_PATIENCE)
        remove = graph.get_pruner_of_module(layer).prune_out_channels
        try:
            group = graph.get_pruning_group(layer, remove, range(graph.get_out_channels(layer)))
        except _LOST:
            seen.add(layer)
            lost.append(layer)
            continue
        outputs = {dep.target.module for dep, _ in group if _is_output(graph, dep)}
        seen |= outputs
        if not outputs & untouched:
            yield group


def _is_output(graph: ChannelGraph, dep: Dependency) -> bool:
    return graph.is_out_channel_pruning_fn(dep.handler)


def _width(graph: ChannelGraph, dep: Dependency) -> int:
    layer = dep.target.module
    return graph.get_out_channels(layer) if _is_output(graph, dep) else graph.get_in_channels(layer)


def _part_to_go(
    graph: ChannelGraph,
    group: Group,
    parts: dict[nn.Module, int],
    importance: tp.importance.Importance,
    choose: Choice,
) -> Group | None:
    """The part of a group that is to go; None where nothing is."""
    group = _seen_from_attention(graph, group, parts)
    root = group[0].dep
    width = _width(graph, root)
    scores = importance(group)
    members = [dep.target.module for dep, _ in group]
    number = math.lcm(*(parts.get(m, 1) for m in members if isinstance(m, nn.Module)))
    if scores is None or len(scores) != width or width % number:
        return None
    positions = choose(scores, number)
    return (
        graph.get_pruning_group(root.target.module, root.handler, positions) if positions else None
    )


def _seen_from_attention(graph: ChannelGraph, group: Group, parts: dict[nn.Module, int]) -> Group:
    """Start from the layer behind a fused qkv, which has each channel once and not three times."""
    if not any(dep.target.module in parts for dep, _ in group if _is_output(graph, dep)):
        return group
    inputs = [
        dep
        for dep, _ in group
        if isinstance(dep.target.module, LAYERS) and not _is_output(graph, dep)
    ]
    behind = min(inputs, key=lambda dep: _width(graph, dep), default=None)
    if behind is None or _width(graph, behind) >= _width(graph, group[0].dep):
        return group
    everything = range(_width(graph, behind))
    other = graph.get_pruning_group(behind.target.module, behind.handler, everything)
    members = {dep.target.module for dep, _ in group}
    return other if members <= {dep.target.module for dep, _ in other} else group


def least(scores: Tensor, parts: int, ratio: float, round_to: int | None) -> list[int]:
    """Choose the channels of the lowest scores, the same ones in each part.

    Args:
        scores: One number a channel.
        parts: How many equally wide parts they lie in, one after the other.
        ratio: Fraction to choose.
        round_to: What stays is a multiple of this many channels, at least one; None stands for 1.

    Returns:
        Their positions; none where rounding leaves nothing to remove.

    Example:
        >>> least(torch.tensor([4.0, 1.0, 3.0, 2.0]), parts=1, ratio=0.5, round_to=None)
        [1, 3]
        >>> least(torch.tensor([4.0, 1.0, 3.0, 2.0]), parts=2, ratio=0.5, round_to=2)
        [1, 3]
    """
    each = len(scores) // parts
    step = (round_to or 1) // math.gcd(round_to or 1, parts)
    kept = int(each * (1 - ratio) + 1e-9)
    kept = max(kept - kept % step, step)
    if kept >= each:
        return []
    order = scores.view(parts, each).mean(0).argsort(stable=True)[: each - kept]
    positions = order + each * torch.arange(parts)[:, None]
    return sorted(positions.flatten().tolist())


def describe(cuts: list[Any]) -> str:
    """Name a few layers of cuts, for a message."""
    names = [cut.layer for cut in cuts]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
