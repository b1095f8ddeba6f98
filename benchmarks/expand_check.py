"""The two checks of the expansion sweep, each of one architecture.

`structure_of` expands and contracts on the meta device and compares names, shapes and classes.
`exactness_of` compares real float32 outputs: dense, expanded, contracted.

How well `models.lively` keeps the second from being blind is measured: ``blind`` counts the layers
whose dense weight has no gradient all the same.
"""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.models import (
    build,
    lively,
    outputs_of,
    relative_error,
    rounded,
    smallest_images,
    training_step,
)
from timm_linop import audit, contract, expand
from timm_linop.architecture import dense_model
from timm_linop.layers import BARE, Audit, LayerReport

PARAMETERS_RATE = 3  # parameters_after is counted at the default rate, on the meta device
CHECK_RATE = 1.5
WHOLE = 10_000_000  # representatives of more parameters have two layers of each kind expanded
LARGEST_LAYER = 20_000_000  # no larger one among them: VGG's first 102 million take half an hour
TOLERANCE = 1e-5
DOUBLE_TOLERANCE = 1e-7  # a fault of the algebra would be as large in float64 as in float32


@dataclass(frozen=True)
class StructureCheck:
    """What expanding and contracting did to an architecture's shape."""

    kinds: str
    expanded: int
    left_alone: int
    because: str
    before: int
    after: int
    same: bool


@dataclass(frozen=True)
class ExactnessCheck:
    """How far the outputs moved: relative errors ``max|a-b| / max|a|`` in float32."""

    size: int
    layers: int
    evaluating: float
    training: float
    blind: int
    lost: int


@dataclass(frozen=True)
class DoubleCheck:
    """Relative errors in float64; `rounding` is the dense model's own, its weights rounded."""

    evaluating: float
    training: float
    rounding: float


def structure_of(name: str) -> StructureCheck:
    """Expand every layer at rate 3, contract, and compare with the start.

    Args:
        name: A timm architecture.
    """
    model = dense_model(name)
    before, classes, parameters = _signature(model), _classes(model), _numbers(model)
    kinds = sorted({kind_of(model, row) for row in audit(model) if row.kind != BARE})
    rows = audit(expand(model, rate=PARAMETERS_RATE, seed=0))
    after = _numbers(model)
    contract(model)
    layers = [row for row in rows if row.kind != BARE]
    expanded = sum(row.chain is not None for row in layers)
    return StructureCheck(
        kinds="; ".join(kinds),
        expanded=expanded,
        left_alone=len(layers) - expanded,
        because=reasons_in(rows),
        before=parameters,
        after=after,
        same=_signature(model) == before and _classes(model) == classes,
    )


def exactness_of(name: str, seed: int = 0) -> ExactnessCheck:
    """Compare outputs in eval and train mode, and see that gradients reach the factors.

    Args:
        name: A timm architecture.
        seed: Of the weights, the images and the draw.
    """
    torch.manual_seed(seed)
    model = lively(build(name))
    images = smallest_images(model)
    chosen = _sample(model)
    dense = outputs_of(model.eval(), images)
    dense_training, reached = training_step(model, images, seed)
    expand(model, CHECK_RATE, include=chosen, seed=seed)
    wide = outputs_of(model.eval(), images)
    wide_training, reached_after = training_step(model, images, seed)
    layers = [row.name for row in audit(model) if row.chain is not None]
    contract(model)
    slim = outputs_of(model.eval(), images)
    alive = [name for name in layers if f"{name}.weight" in reached]
    return ExactnessCheck(
        size=images.shape[-1],
        layers=len(layers),
        evaluating=max(relative_error(dense, wide), relative_error(dense, slim)),
        training=relative_error(dense_training, wide_training),
        blind=len(layers) - len(alive),
        lost=sum(f"{name}.weight" not in reached_after for name in alive),
    )


def in_double(name: str, size: int, seed: int = 0) -> DoubleCheck:
    """Repeat the comparison in float64, for a network that makes float32's rounding visible.

    Random networks may be ill-conditioned, and batch statistics over the few numbers of two small
    images divide by small deviations; what float64 still shows would be the expansion's fault.

    Args:
        name: A timm architecture.
        size: Side of the images.
        seed: As for `exactness_of`.
    """
    torch.manual_seed(seed)
    model: Any = lively(build(name)).double()
    images = torch.randn(2, model.pretrained_cfg["input_size"][0], size, size).double()
    dense = outputs_of(model.eval(), images)
    dense_training, _ = training_step(model, images, seed)
    noisy = outputs_of(rounded(copy.deepcopy(model)).eval(), images)
    expand(model, CHECK_RATE, include=_sample(model), seed=seed)
    return DoubleCheck(
        evaluating=relative_error(dense, outputs_of(model.eval(), images)),
        training=relative_error(dense_training, training_step(model, images, seed)[0]),
        rounding=relative_error(dense, noisy),
    )


def kind_of(model: nn.Module, row: LayerReport) -> str:
    """Describe a layer as the sweep tells kinds apart: class, grouping, kernel or pointwise.

    Args:
        model: The layer's model.
        row: The layer's row in the audit, before expanding.
    """
    groups = getattr(model.get_submodule(row.name), "groups", None)
    if groups is None or len(row.shape) < 3:
        return row.kind
    grouping = "dense" if groups == 1 else "depthwise" if row.shape[1] == 1 else "grouped"
    pointwise = all(length == 1 for length in row.shape[2:])
    return f"{row.kind} {grouping} {'pointwise' if pointwise else 'kernel'}"


def reasons_in(rows: Audit) -> str:
    """Group and count why weights are left alone, the most frequent reason first."""
    counts = Counter(
        f"{row.name.rpartition('.')[2]} is {row.reason}" if row.kind == BARE else row.reason
        for row in rows
        if row.reason
    )
    return "; ".join(f"{n} x {reason}" for reason, n in counts.most_common())


def _sample(model: nn.Module) -> list[str]:
    """Choose the layers to expand: all of a small model, two of each kind and owner of a large one.

    The factors of a large model take minutes to draw, and its layers differ in nothing but size.
    """
    rows = [row for row in audit(model) if not row.reason]
    if _numbers(model) <= WHOLE:
        return [row.name for row in rows]
    by_kind = defaultdict(list)
    for row in (row for row in rows if row.parameters_before <= LARGEST_LAYER):
        owner = type(model.get_submodule(row.name.rpartition(".")[0])).__name__
        by_kind[kind_of(model, row), owner].append(row)
    small = (sorted(group, key=lambda row: row.parameters_before)[:2] for group in by_kind.values())
    return [row.name for group in small for row in group]


def _signature(model: nn.Module) -> list[tuple[str, torch.Size, torch.dtype]]:
    return [(name, tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()]


def _classes(model: nn.Module) -> list[tuple[str, str]]:
    return [(n, f"{type(m).__module__}.{type(m).__name__}") for n, m in model.named_modules()]


def _numbers(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
