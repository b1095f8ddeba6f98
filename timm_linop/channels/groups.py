"""Coupled channel groups, over torch-pruning's dependency graph: what must be removed together."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
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
from .coupled import ChannelGroup
from .cut import Axis, number_positions, read_cut
from .graph import ChannelGraph

# Seconds to follow one group; a group takes well below one, or for ever.
_PATIENCE = 5.0


class Found(NamedTuple):
    """What can go.

    Attributes:
        groups: All coupled groups of channels but those tied to what must stay.
        scores: Of each group's units, by its layer.
        unread: Layers of groups that the score says nothing of, or whose channels cannot be told
            apart.
        not_followed: Layers whose coupled channels torch-pruning could not follow.
    """

    groups: list[ChannelGroup]
    scores: dict[str, Tensor]
    unread: tuple[str, ...]
    not_followed: tuple[str, ...]


class _Whole(NamedTuple):
    """All channels of a group as torch-pruning has them, in equal parts, and a score for each."""

    group: Group
    parts: int
    scores: Tensor


def find_groups(model: nn.Module, example: Tensor, importance: tp.importance.Importance) -> Found:
    """Find the coupled groups of channels of a model.

    Args:
        model: A dense timm model in eval mode, in float64; it is spoilt.
        example: One batch of images, ``b x c x h x w``.
        importance: torch-pruning's score of a group's channels.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors_of(model)}
    graph, parts = _graph_of(model, example), equal_parts(model)
    wholes: list[_Whole] = []
    lost: list[nn.Module] = []
    unread: list[nn.Module] = []
    for group in _groups(graph, outputs_to_keep(model), lost):
        graph.clock.allow(_PATIENCE)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                whole = _with_scores(graph, group, parts, importance)
            except _LOST:
                lost.append(group[0].dep.target.module)
                continue
        if whole is not None:
            wholes.append(whole)
        else:
            unread.append(group[0].dep.target.module)
    number_positions(model)
    groups, scores = [], {}
    for whole in wholes:
        found = _read(graph, model, whole, shapes)
        if found is None:
            unread.append(whole.group[0].dep.target.module)
        else:
            groups.append(found)
            scores[found.layer] = whole.scores.view(whole.parts, -1).mean(0)
    names = {module: name for name, module in model.named_modules()}
    named = [tuple(names.get(m, "a parameter") for m in modules) for modules in (unread, lost)]
    return Found(groups, scores, *named)


def _graph_of(model: nn.Module, example: Tensor) -> ChannelGraph:
    add_missing_biases(model)
    call_fused_layers(model)
    graph = ChannelGraph(channels_last=getattr(model, "output_fmt", "NCHW") == "NHWC")
    graph.IGNORED_LAYERS_IN_TRACING.extend(without_channels(model))
    by_place = parameters_without_channels(model)
    graph.clock.allow(10 * _PATIENCE)
    graph.build_dependency(model, example, ignored_params=by_place, verbose=False)
    return graph


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


def _with_scores(
    graph: ChannelGraph,
    group: Group,
    parts: dict[nn.Module, int],
    importance: tp.importance.Importance,
) -> _Whole | None:
    """A group's scores; None where its channels cannot be told apart."""
    group = _seen_from_attention(graph, group, parts)
    width = _width(graph, group[0].dep)
    scores = importance(group)
    members = [dep.target.module for dep, _ in group]
    number = math.lcm(*(parts.get(m, 1) for m in members if isinstance(m, nn.Module)))
    if scores is None or len(scores) != width or width % number:
        return None
    return _Whole(group, number, scores)


def _read(
    graph: ChannelGraph, model: nn.Module, whole: _Whole, shapes: Mapping[str, tuple[int, ...]]
) -> ChannelGroup | None:
    """Let torch-pruning remove units, and see which positions go with which.

    Each unit has a number from 1 on. Once for every binary digit, all units that have it are
    removed; so the digits of a position's unit are read off, and 0 is left of those of none.
    """
    root, size = whole.group[0].dep, len(whole.scores) // whole.parts
    units = 1 + torch.arange(size)
    digits: dict[Axis, Tensor] = {}
    layer = ""
    for digit in range(size.bit_length()):
        having = (units >> digit & 1).nonzero()[:, 0]
        positions = (having + size * torch.arange(whole.parts)[:, None]).flatten().tolist()
        graph.clock.allow(_PATIENCE)
        try:
            part = graph.get_pruning_group(root.target.module, root.handler, sorted(positions))
        except _LOST:
            return None
        cut = read_cut(graph, model, part, shapes) if graph.check_pruning_group(part) else None
        if cut is None:
            return None
        layer = cut.layer
        for (name, axis), gone in cut.removed.items():
            numbers = digits.setdefault((name, axis), torch.zeros(shapes[name][axis]).long())
            numbers[list(gone)] += 1 << digit
    if not digits or any(int(numbers.max()) > size for numbers in digits.values()):
        return None
    found = {axis: numbers - 1 for axis, numbers in digits.items()}
    outputs = [name for name, axis in found if axis == 0 and name.endswith(".weight")]
    layer = outputs[0].removesuffix(".weight") if outputs else layer
    return ChannelGroup(layer, size, found, whole.parts)


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


def stay(group: ChannelGroup, ratio: float, round_to: int | None) -> int:
    """Count the units of a group that stay.

    Args:
        group: The group.
        ratio: Fraction to remove.
        round_to: What stays is a multiple of this many channels, at least one; None stands for 1.

    Returns:
        Units; all of them where rounding leaves nothing to remove.

    Example:
        >>> stay(ChannelGroup("fc", 20, {}), ratio=0.5, round_to=8)
        8
    """
    step = (round_to or 1) // math.gcd(round_to or 1, group.parts)
    kept = int(group.size * (1 - ratio) + 1e-9)
    return min(max(kept - kept % step, step), group.size)


def least(scores: Tensor, count: int) -> list[int]:
    """Choose the units of the lowest scores; of equal ones the first.

    Example:
        >>> least(torch.tensor([4.0, 1.0, 3.0, 2.0]), 2)
        [1, 3]
    """
    return sorted(scores.argsort(stable=True)[:count].tolist())


def describe(cuts: list[Any]) -> str:
    """Name a few layers of cuts, for a message."""
    names = [cut.layer for cut in cuts]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
