"""What leaves a model when a group of channels goes: positions on the axes of its tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch_pruning as tp
from torch import Tensor, nn

from ..architecture import tensors_of
from ..errors import PruningError
from .graph import ChannelGraph

# A tensor's name, and one of its axes.
Axis = tuple[str, int]
# What stays of a tensor: one vector of indices for each of its axes.
Kept = Mapping[str, tuple[Tensor, ...]]


@dataclass(frozen=True)
class Cut:
    """The channels that go with one coupled group.

    Attributes:
        layer: The layer they are outputs or inputs of first.
        removed: Positions on each axis that they take with them.
    """

    layer: str
    removed: Mapping[Axis, frozenset[int]]


def kept_by(cuts: Iterable[Cut], model: nn.Module) -> dict[str, tuple[Tensor, ...]]:
    """Work out what stays of each tensor that the cuts touch.

    Args:
        cuts: Any number of them; where two take from one axis, both are heeded.
        model: The dense model.

    Returns:
        Kept positions by tensor name, one vector an axis.
    """
    gone: dict[Axis, set[int]] = {}
    for cut in cuts:
        for axis, positions in cut.removed.items():
            gone.setdefault(axis, set()).update(positions)
    names = {name for name, _ in gone}
    return {
        name: tuple(
            torch.tensor([i for i in range(size) if i not in gone.get((name, axis), ())])
            for axis, size in enumerate(tensor.shape)
        )
        for name, tensor in tensors_of(model)
        if name in names
    }


def cut_tensors(model: nn.Module, kept: Kept) -> dict[str, Tensor]:
    """Copy out what stays of a model's tensors.

    Returns:
        A slim state dict.
    """
    state: dict[str, Tensor] = {}
    for name, tensor in tensors_of(model):
        tensor = tensor.detach()
        for axis, positions in enumerate(kept.get(name, ())):
            tensor = tensor.index_select(axis, positions.to(tensor.device))
        state[name] = tensor.clone()
    return state


def number_positions(model: nn.Module) -> None:
    """Put each number's own position in its place, so that what is left tells where it stood.

    Args:
        model: A copy in float64, to be spoilt.
    """
    with torch.no_grad():
        for _, tensor in tensors_of(model):
            tensor.data = torch.arange(tensor.numel(), dtype=torch.float64).view(tensor.shape)


def read_cut(
    graph: ChannelGraph,
    model: nn.Module,
    group: tp.dependency.Group,
    shapes: Mapping[str, tuple[int, ...]],
) -> Cut | None:
    """Let torch-pruning remove channels, see which numbers are left, and put them back.

    Args:
        graph: Built on ``model``.
        model: A copy whose positions are numbered.
        group: Channels to remove.
        shapes: Those of the tensors that count; the copy may have others, for the graph's sake.

    Returns:
        What went; None where torch-pruning fails, or nothing went.
    """
    modules = {module: name for name, module in model.named_modules()}
    layers = [dep.target.module for dep, _ in group if dep.target.module in modules]
    bare = [dep.target.module for dep, _ in group if isinstance(dep.target.module, nn.Parameter)]
    names = [graph._param_to_name[parameter] for parameter in bare]
    names += [_join(modules[layer], key) for layer in layers for key, _ in _tensors(layer)]
    removed: dict[Axis, frozenset[int]] = {}
    with _put_back(graph, model, layers, bare):
        try:
            group.prune(record_history=False)
            for name in dict.fromkeys(names):
                if name in shapes:
                    removed |= _removed(name, _tensor(model, name), shapes[name])
        except Exception:  # it asserts, divides, indexes: nothing of the group can be trusted
            return None
    for layer in layers:
        removed |= _go_along(modules[layer], removed, shapes)
    return Cut(modules.get(group[0].dep.target.module, names[0]), removed) if removed else None


def _join(module: str, key: str) -> str:
    return f"{module}.{key}" if module else key


def _tensors(layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for own in (layer._parameters, layer._buffers):
        yield from ((key, value) for key, value in own.items() if value is not None and value.ndim)


def _tensor(model: nn.Module, name: str) -> Tensor:
    module, _, key = name.rpartition(".")
    return getattr(model.get_submodule(module), key)


def _removed(name: str, left: Tensor, shape: tuple[int, ...]) -> dict[Axis, frozenset[int]]:
    """Read off where the numbers that are left stood."""
    removed: dict[Axis, frozenset[int]] = {}
    positions = torch.zeros((), dtype=torch.long)
    for axis, size in enumerate(shape):
        line = left.detach()[tuple(slice(None) if i == axis else 0 for i in range(left.ndim))]
        stride = math.prod(shape[axis + 1 :])
        kept = line.long() // stride % size
        positions = positions.unsqueeze(-1) + kept * stride
        gone = frozenset(range(size)) - frozenset(kept.tolist())
        if gone:
            removed[name, axis] = gone
    if not torch.equal(positions, left.detach().long()):
        raise PruningError(f"{name} would lose other channels in one row than in the next.")
    return removed


def _go_along(
    layer: str, removed: Mapping[Axis, frozenset[int]], shapes: Mapping[str, tuple[int, ...]]
) -> dict[Axis, frozenset[int]]:
    """What loses the same outputs beside a layer's weight, unknown to torch-pruning.

    The gain of a weight-standardised convolution; the biases of queries and values that stand
    outside of a fused ``qkv`` layer.
    """
    outputs = removed.get((_join(layer, "weight"), 0), frozenset())
    along = {_join(layer, "gain"): outputs}
    if layer.endswith(".qkv"):
        attention = layer.removesuffix("qkv")
        third = shapes[f"{layer}.weight"][0] // 3
        along[f"{attention}q_bias"] = frozenset(i for i in outputs if i < third)
        along[f"{attention}v_bias"] = frozenset(i - 2 * third for i in outputs if i >= 2 * third)
    return {(name, 0): gone for name, gone in along.items() if name in shapes and gone}


@contextmanager
def _put_back(
    graph: ChannelGraph, model: nn.Module, layers: list[nn.Module], bare: list[nn.Parameter]
) -> Iterator[None]:
    """Undo what torch-pruning does to the layers and bare parameters of one group."""
    before = [
        (layer, {**vars(layer)}, {**layer._parameters}, {**layer._buffers}) for layer in layers
    ]
    names = {graph._param_to_name[parameter]: parameter for parameter in bare}
    try:
        yield
    finally:
        for layer, attributes, parameters, buffers in before:
            vars(layer).update(attributes)
            layer._parameters.update(parameters)
            layer._buffers.update(buffers)
        for name, parameter in names.items():
            module, _, key = name.rpartition(".")
            owner = model.get_submodule(module)
            pruned = owner._parameters[key]
            owner._parameters[key] = parameter
            if pruned is not parameter:
                node = graph.module2node.pop(pruned)
                node.module = parameter
                graph.module2node[parameter] = node
                graph._param_to_name[parameter] = graph._param_to_name.pop(pruned)
