"""What a model's weights are: which layers can be chains, which cannot and why."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from .chain import LinearChain
from .expanded import chain_of, factors_of, slim_shape

_KINDS = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
BARE = "Parameter"  # the `LayerReport.kind` of a weight that no layer calls its own

# What a layer's row speaks for; the last three are where torch's weight_norm, spectral_norm and
# pruning masks put the weight.
_OF_A_LAYER = {"weight", "bias", "weight_g", "weight_v", "weight_orig"}


@dataclass(frozen=True)
class LayerReport:
    """One row of an `Audit`: a layer and what became of it.

    Attributes:
        name: The layer's name in the model.
        kind: Its class, as timm or torch calls it.
        shape: Shape of its slim weight.
        chain: Shapes of its factors, first layer first; None while it is not expanded.
        parameters_before: Numbers in the slim weight.
        parameters_after: Numbers in the factors, or in the weight where there are none.
        reason: Why it cannot be expanded; empty where it can.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    chain: tuple[tuple[int, ...], ...] | None
    parameters_before: int
    parameters_after: int
    reason: str


class Audit(tuple[LayerReport, ...]):
    """All rows of a model; prints as a table."""

    def __str__(self) -> str:
        """Lay the rows out as a table with the totals below."""
        width = max((len(row.name) for row in self), default=5)
        lines = [_audit_line(row, width) for row in self]
        layers = [row for row in self if row.kind != BARE]
        before, after = (
            sum(getattr(row, f"parameters_{when}") for row in layers)
            for when in ("before", "after")
        )
        expanded = sum(row.chain is not None for row in layers)
        lines.append(
            f"{expanded} of {len(layers)} layers expanded; weights {before:,} -> {after:,} numbers"
        )
        if bare := [row.parameters_before for row in self if row.kind == BARE]:
            lines.append(f"{len(bare)} bare parameters left alone, {sum(bare):,} numbers")
        return "\n".join(lines)


def rows_of(model: nn.Module) -> Audit:
    """Report every layer with a weight, in the model's order, then every bare parameter.

    Args:
        model: Expanded or not.

    Example:
        >>> [(row.name, row.reason) for row in rows_of(nn.LSTM(2, 3))][0]
        ('weight_ih_l0', "a bare parameter of LSTM, not a layer's weight")
    """
    reasons = reasons_of(model)
    layers = [_report(name, layer, reasons[name]) for name, layer in layers_of(model)]
    return Audit([*layers, *_bare_parameters(model)])


def layers_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module that holds a weight of two axes or more, chain or not.

    Example:
        >>> [name for name, _ in layers_of(nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)))]
        ['0']
    """
    for name, module in model.named_modules():
        if isinstance(module, LinearChain | parametrize.ParametrizationList):
            continue
        if chain_of(module) is not None:
            yield name, module
            continue
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and (weight.ndim > 1 or _is_lazy(weight)):
            yield name, module


def _is_lazy(weight: Tensor) -> bool:
    return isinstance(weight, nn.parameter.UninitializedParameter)


def reasons_of(model: nn.Module) -> dict[str, str]:
    """Why each layer must be left alone; an empty string where it need not.

    Example:
        >>> reasons_of(nn.Sequential(nn.Linear(4, 2), nn.Embedding(3, 2)))
        {'0': '', '1': 'Embedding is no Conv1d/2d/3d or Linear layer'}
    """
    # By module: a layer used in several places (CoaT's) is one layer, and one chain makes it.
    holders = Counter(id(p) for m in model.modules() for p in m._parameters.values())
    return {name: _reason(layer, holders) for name, layer in layers_of(model)}


def _reason(layer: nn.Module, holders: Counter[int]) -> str:
    if chain_of(layer) is not None:
        return ""
    if parametrize.is_parametrized(layer, "weight"):
        return "its weight has a parametrization already"
    if not isinstance(layer, _KINDS):
        return f"{type(layer).__name__} is no Conv1d/2d/3d or Linear layer"
    weight = layer._parameters.get("weight")
    if weight is None:
        return "its weight is no parameter: a hook makes it (weight_norm, a pruning mask)"
    if _is_lazy(weight):
        return "its shape is not known before the first forward"
    if not weight.is_floating_point():
        return f"its weight is {weight.dtype}, not floating point"
    if holders[id(weight)] > 1:
        return "its weight is tied to another layer's"
    if not weight.is_meta and not weight.isfinite().all():
        return "its weight holds NaN or infinity"
    return ""


def _report(name: str, layer: nn.Module, reason: str) -> LayerReport:
    chain = chain_of(layer)
    if chain is not None:
        shape, factors = slim_shape(layer), tuple(tuple(f.shape) for f in factors_of(layer))
    else:
        weight: Any = layer.weight
        shape, factors = () if _is_lazy(weight) else tuple(weight.shape), None
    before = math.prod(shape)
    after = before if factors is None else sum(math.prod(f) for f in factors)
    # register_parametrization makes a subclass called Parametrized<Class>.
    kind = type(layer).__name__.removeprefix("Parametrized")
    return LayerReport(name, kind, shape, factors, before, after, reason)


def _audit_line(row: LayerReport, width: int) -> str:
    def by(shape: tuple[int, ...]) -> str:
        return "x".join(map(str, shape))

    if row.chain is not None:
        state = "-> " + ", ".join(map(by, row.chain))
    else:
        state = f"left alone: {row.reason}" if row.reason else "plain"
    counts = f"{row.parameters_before:,} -> {row.parameters_after:,}"
    return f"{row.name:{width}}  {row.kind}  {by(row.shape)}  {state}  {counts}"


def _bare_parameters(model: nn.Module) -> Iterator[LayerReport]:
    """Matrices that no layer calls its weight: an LSTM's, a fused ``in_proj_weight``, tables."""
    covered = {id(p) for _, layer in layers_of(model) for p in _parameters_of(layer)}
    for name, parameter in model.named_parameters():
        if id(parameter) not in covered and _is_matrix(parameter):
            owner = type(model.get_submodule(name.rpartition(".")[0])).__name__
            reason = f"a bare parameter of {owner}, not a layer's weight"
            n = parameter.numel()
            yield LayerReport(name, BARE, tuple(parameter.shape), None, n, n, reason)


def _parameters_of(layer: nn.Module) -> Iterator[nn.Parameter]:
    for name, parameter in layer.named_parameters(recurse=False):
        if name in _OF_A_LAYER:
            yield parameter
    if parametrize.is_parametrized(layer, "weight"):
        yield from layer.get_submodule("parametrizations.weight").parameters()


def _is_matrix(parameter: nn.Parameter) -> bool:
    """Two axes, or two longer than 1: gains (c x 1 x 1) and tokens (1 x 1 x c) are vectors."""
    if _is_lazy(parameter):
        return False
    return parameter.ndim == 2 or sum(length > 1 for length in parameter.shape) > 1
