"""Expand, contract and audit a whole model: the same three verbs for every timm model."""

from __future__ import annotations

import fnmatch
import math
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .chain import LinearChain, chain_for, chain_of, contract_layer, expand_layer, factors_of
from .errors import ExpansionError, UnknownLayerError, close_names
from .initialise import INITS

_KINDS = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear


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
        before, after = (
            sum(getattr(row, f"parameters_{when}") for row in self) for when in ("before", "after")
        )
        expanded = sum(row.chain is not None for row in self)
        lines.append(
            f"{expanded} of {len(self)} layers expanded; weights {before:,} -> {after:,} numbers"
        )
        return "\n".join(lines)


def expand(
    model: nn.Module,
    rate: float = 3,
    init: str = "orthogonal",
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    seed: int | None = None,
) -> nn.Module:
    """Replace each layer's weight by an equivalent chain of linear layers, in place.

    The outputs stay what they were (relative error at most 1e-5 in float32, 1e-12 in float64), the
    modules keep their classes and names; only the trainable parameters change: the chain's factors
    instead of the weight. Create the optimizer after this call. Source: Qian et al. 2022, Eq. 1-6.

    Args:
        model: Any model; convolutions and linear layers are expanded, `audit` tells what is not.
        rate: Expansion rate ``r >= 1``; the paper's 3 is the default.
        init: How the outer factors are drawn: ``orthogonal`` (conditioning 1, the default),
            ``normal`` (the paper's; variance 1/fan_in), ``balanced`` (sharing the weight's singular
            values).
        include: Names or patterns (``"blocks.*.conv_pw"``) of the only layers to expand; a module's
            name stands for all layers in it.
        exclude: Names or patterns of layers to leave alone.
        seed: Seed of the draw; None takes one from torch's global generator.

    Returns:
        ``model`` itself.

    Raises:
        ExpansionError: If the model is expanded already, or ``rate`` or ``init`` is out of range.
        UnknownLayerError: If a name in ``include`` or ``exclude`` matches no layer.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1))
        >>> x = torch.randn(1, 3, 8, 8)
        >>> y = model(x)
        >>> print(audit(expand(model, rate=3, exclude=["2"])))
        0  Conv2d  8x3x3x3  -> 9x3, 24x9x3x3, 8x24  216 -> 2,163
        2  Conv2d  2x8x1x1  plain  16 -> 16
        1 of 2 layers expanded; weights 232 -> 2,179 numbers
        >>> torch.allclose(model(x), y, atol=1e-5)
        True
    """
    check_settings(rate, init)
    layers = dict(_layers(model))
    expanded = [name for name, layer in layers.items() if chain_of(layer) is not None]
    if expanded:
        raise ExpansionError(
            f"{type(model).__name__} is expanded already ({len(expanded)} layers, from "
            f"{expanded[0]!r} on); contract(model) first, or keep it as it is."
        )
    chosen = _chosen(layers, include, exclude)
    reasons = _reasons(model)
    if seed is None:
        seed = int(torch.randint(2**31, (), device="cpu"))
    for name in chosen:
        if not reasons[name]:
            layer_seed = seed + zlib.crc32(name.encode())
            expand_layer(layers[name], chain_for(layers[name], rate, init, layer_seed))
    return model


def contract(model: nn.Module) -> nn.Module:
    """Multiply every chain back into its slim weight, in place.

    Args:
        model: An expanded model.

    Returns:
        ``model`` itself, with exactly the slim model's state-dict keys, shapes and classes.

    Raises:
        ExpansionError: If nothing in the model is expanded.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 2))
        >>> list(contract(expand(model)).state_dict())
        ['0.weight', '0.bias']
    """
    layers = [layer for _, layer in _layers(model) if chain_of(layer) is not None]
    if not layers:
        raise ExpansionError(
            f"{type(model).__name__} holds no expanded layer, so there is nothing to contract; "
            "call expand(model) first."
        )
    for layer in layers:
        contract_layer(layer)
    return model


def audit(model: nn.Module) -> Audit:
    """List every layer with a weight: its chain, its parameters, and why it is left alone.

    Args:
        model: Expanded or not.

    Returns:
        One `LayerReport` a layer, in the model's order; ``print`` shows a table.

    Example:
        >>> audit(nn.Sequential(nn.Linear(4, 2), nn.ConvTranspose2d(2, 2, 1)))[1].reason
        'ConvTranspose2d is no Conv1d/2d/3d or Linear layer'
    """
    reasons = _reasons(model)
    return Audit(_report(name, layer, reasons[name]) for name, layer in _layers(model))


def is_expanded(model: nn.Module) -> bool:
    """Tell whether any layer of the model is a chain.

    Example:
        >>> is_expanded(expand(nn.Linear(4, 2)))
        True
    """
    return any(chain_of(module) is not None for module in model.modules())


def check_settings(rate: float, init: str) -> None:
    """Refuse an expansion rate or init that has no meaning, before any work.

    Args:
        rate: Expansion rate.
        init: Name of the draw.

    Raises:
        ExpansionError: If ``rate`` is not a finite number of at least 1, or ``init`` is unknown.

    Example:
        >>> check_settings(0.5, "orthogonal")
        Traceback (most recent call last):
        ...
        timm_linop.errors.ExpansionError: rate=0.5: an expansion rate is a number >= 1, ...
    """
    number = isinstance(rate, int | float) and not isinstance(rate, bool)
    if not number or not math.isfinite(rate) or rate < 1:
        raise ExpansionError(
            f"rate={rate!r}: an expansion rate is a number >= 1, or a chain could not hold every "
            "weight; use 3 (the paper's), or rate=0 in timm.create_model for the slim model itself."
        )
    if init not in INITS:
        raise ExpansionError(
            f"init={init!r} is no way to draw factors; choose one of {', '.join(INITS)}."
            + close_names(str(init), INITS)
        )


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module that holds a weight of two axes or more, chain or not."""
    for name, module in model.named_modules():
        if isinstance(module, LinearChain | parametrize.ParametrizationList):
            continue
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and (weight.ndim > 1 or _is_lazy(weight)):
            yield name, module


def _is_lazy(weight: Tensor) -> bool:
    return isinstance(weight, nn.parameter.UninitializedParameter)


def _reasons(model: nn.Module) -> dict[str, str]:
    """Why each layer must be left alone; an empty string where it need not."""
    holders = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    return {name: _reason(layer, holders) for name, layer in _layers(model)}


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


def _chosen(
    layers: Iterable[str], include: Sequence[str] | None, exclude: Sequence[str] | None
) -> list[str]:
    names = list(layers)
    included = _matched(names, include, "include") if include is not None else set(names)
    excluded = _matched(names, exclude, "exclude") if exclude is not None else set()
    return [name for name in names if name in included and name not in excluded]


def _matched(names: list[str], patterns: Sequence[str], argument: str) -> set[str]:
    matched: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        hits = {n for n in names if fnmatch.fnmatchcase(n, pattern) or n.startswith(f"{pattern}.")}
        if not hits:
            raise UnknownLayerError(
                f"{argument}=[{pattern!r}] matches no layer.{close_names(pattern, names)} "
                "timm_linop.audit(model) lists them."
            )
        matched |= hits
    return matched


def _report(name: str, layer: nn.Module, reason: str) -> LayerReport:
    chain = chain_of(layer)
    weight: Any = layer.weight
    shape = () if _is_lazy(weight) else tuple(weight.shape)
    factors = None if chain is None else tuple(tuple(f.shape) for f in factors_of(layer))
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
