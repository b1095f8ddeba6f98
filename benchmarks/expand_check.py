"""The two checks of the expansion sweep, each of one architecture.

`structure_of` expands and contracts on the meta device and compares names, shapes and classes.
`exactness_of` compares real float32 outputs: dense, expanded, contracted.

A fresh model would make the second check blind: its biases are zero, its layer scales 1e-6, its
residual gains and heads zero, its batch statistics neutral. `lively` therefore draws every bias and
running mean from N(0, 0.1), every other vector (gains, layer scales, temperatures) and running
variance from U(0.5, 1.5), and every matrix that is all zeros from N(0, 1/fan_in). How well that
worked is measured: ``blind`` counts the layers whose dense weight has no gradient all the same.
"""

from __future__ import annotations

import gc
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from timm_linop import audit, contract, expand
from timm_linop.architecture import dense_model
from timm_linop.chain import chain_of, factors_of
from timm_linop.layers import BARE, Audit, LayerReport

PARAMETERS_RATE = 3  # parameters_after is counted at the default rate, on the meta device
CHECK_RATE = 1.5
WHOLE = 10_000_000  # representatives of more parameters have two layers of each kind expanded
SIZES = (64, 96, 128, 160, 192, 224, 256)
TOLERANCE = 1e-5


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
    model = lively(timm.create_model(name))
    images = smallest_images(model)
    chosen = _sample(model)
    dense = _outputs(model.eval(), images)
    dense_training, reached = _step(model, images, seed)
    expand(model, CHECK_RATE, include=chosen, seed=seed)
    wide = _outputs(model.eval(), images)
    wide_training, reached_after = _step(model, images, seed)
    layers = [row.name for row in audit(model) if row.chain is not None]
    contract(model)
    slim = _outputs(model.eval(), images)
    gc.collect()
    alive = [name for name in layers if f"{name}.weight" in reached]
    return ExactnessCheck(
        size=images.shape[-1],
        layers=len(layers),
        evaluating=max(relative_error(dense, wide), relative_error(dense, slim)),
        training=relative_error(dense_training, wide_training),
        blind=len(layers) - len(alive),
        lost=sum(f"{name}.weight" not in reached_after for name in alive),
    )


def training_in_double(name: str, size: int, seed: int = 0) -> float:
    """Compare outputs in train mode in float64.

    Batch statistics over the few numbers of two small images divide by small deviations, which
    makes float32's rounding visible; what float64 still shows would be an error of the expansion.

    Args:
        name: A timm architecture.
        size: Side of the images.
        seed: As for `exactness_of`.
    """
    torch.manual_seed(seed)
    model: Any = lively(timm.create_model(name)).double()
    images = torch.randn(2, model.pretrained_cfg["input_size"][0], size, size).double()
    dense, _ = _step(model, images, seed)
    expand(model, CHECK_RATE, include=_sample(model), seed=seed)
    return relative_error(dense, _step(model, images, seed)[0])


def lively(model: nn.Module) -> nn.Module:
    """Give every weight and statistic a say in the outputs; the module's docstring tells how.

    Args:
        model: A fresh model, changed in place.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            vector = parameter.numel() == max(parameter.shape, default=1)
            if name.endswith("bias") and vector:
                parameter.normal_(0, 0.1)
            elif vector:
                parameter.uniform_(0.5, 1.5)
            elif not parameter.any():
                parameter.normal_(0, parameter[0].numel() ** -0.5)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return model


def smallest_images(model: nn.Module) -> Tensor:
    """Draw two images of the smallest size the model takes.

    Below 64 pixels batch statistics would be over one or two numbers. Models of a fixed size get
    that size.

    Args:
        model: A timm model.
    """
    cfg: Any = model.pretrained_cfg
    channels, _, size = cfg["input_size"]
    smaller = [] if cfg.get("fixed_input_size") else [s for s in SIZES if s < size]
    for side in smaller:
        images = torch.randn(2, channels, side, side)
        try:
            _outputs(model.eval(), images)
        except (RuntimeError, AssertionError, ValueError, IndexError):
            continue  # not a multiple of a window or patch, or smaller than the network reduces
        return images
    return torch.randn(2, channels, size, size)


def relative_error(expected: list[Tensor], found: list[Tensor]) -> float:
    """Return the largest ``max|a-b| / max|a|`` over a model's outputs.

    Raises:
        ValueError: If an output says nothing: all zeros, NaN or infinite.
    """
    errors = []
    for a, b in zip(expected, found, strict=True):
        largest = a.abs().max()
        if not largest.isfinite() or largest == 0:
            raise ValueError(f"an output of the dense model is {largest} at most")
        errors.append(((a - b).abs().max() / largest).item())
    return max(errors)


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
    for row in rows:
        owner = type(model.get_submodule(row.name.rpartition(".")[0])).__name__
        by_kind[kind_of(model, row), owner].append(row)
    small = (sorted(group, key=lambda row: row.parameters_before)[:2] for group in by_kind.values())
    return [row.name for group in small for row in group]


def _step(model: nn.Module, images: Tensor, seed: int) -> tuple[list[Tensor], set[str]]:
    """Run one forward and backward in train mode; the model is left as it was.

    Returns:
        The outputs, and the names of the layers' weights that a gradient reached: finite
        everywhere, and not all zeros. A chain's weight is reached where every factor is.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    reached = set()

    def note(name: str) -> None:
        parameter: Any = model.get_parameter(name)
        if parameter.grad.isfinite().all() and parameter.grad.any():
            reached.add(name)
        parameter.grad = None  # the gradients of a large model would not fit beside it

    hooks = [
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: note(name))
        for name, parameter in model.named_parameters()
    ]
    torch.manual_seed(seed)  # dropout and stochastic depth draw the same numbers both times
    outputs = _floating(model.train()(images))
    torch.stack([output.square().mean() for output in outputs]).sum().backward()
    for hook in hooks:
        hook.remove()
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    return [output.detach() for output in outputs], reached | set(_whole_chains(model, reached))


def _whole_chains(model: nn.Module, reached: set[str]) -> Iterator[str]:
    for name, layer in model.named_modules():
        if chain_of(layer) is not None:
            factors = range(len(factors_of(layer)))
            if all(f"{name}.parametrizations.weight.original{i}" in reached for i in factors):
                yield f"{name}.weight"


def _outputs(model: nn.Module, images: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return _floating(model(images))


def _floating(outputs: object) -> list[Tensor]:
    leaves = tree_leaves(outputs)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _signature(model: nn.Module) -> list[tuple[str, torch.Size, torch.dtype]]:
    return [(name, tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()]


def _classes(model: nn.Module) -> list[tuple[str, str]]:
    return [(n, f"{type(m).__module__}.{type(m).__name__}") for n, m in model.named_modules()]


def _numbers(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
