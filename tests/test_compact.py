"""A compact chain moves its weight as the wide one does: under SGD, whatever the rate."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from tests.slims import FAMILIES
from timm_linop.expand import audit, contract, expand
from timm_linop.expanded import factors_of
from timm_linop.initialise import INITS

STEPS = 25
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: nn.Conv2d(4, 6, 3),
    "grouped": lambda: nn.Conv2d(4, 6, 3, groups=2, stride=2),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, groups=4),
    "pointwise": lambda: nn.Conv2d(4, 9, 1),
    "conv1d": lambda: nn.Conv1d(4, 3, 5),
    "linear": lambda: nn.Linear(4, 7),
}
Optimizer = Callable[[Any], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Optimizer] = {
    "plain": lambda p: torch.optim.SGD(p, lr=0.02),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: torch.optim.SGD(
        p, lr=0.02, momentum=0.9, weight_decay=0.01, nesterov=True
    ),
}


def images(slim: nn.Module) -> Tensor:
    axes = {nn.Linear: [], nn.Conv1d: [9], nn.Conv2d: [9, 9]}[type(slim)]
    return torch.randn(3, 4, *axes, dtype=torch.float64)


def after(
    slim: nn.Module, optimizer: Optimizer, x: Tensor, *, clip: float | None = None, **options: Any
) -> tuple[Tensor, list[tuple[int, ...]]]:
    """The composed weight after training, and the shapes of its factors."""
    layer = expand(copy.deepcopy(slim), seed=1, **options)
    steps, target = optimizer(layer.parameters()), torch.ones_like(layer(x))
    for _ in range(STEPS):
        steps.zero_grad()
        (layer(x) - target).square().mean().backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(layer.parameters(), clip)
        steps.step()
    return layer.weight.detach(), [tuple(factor.shape) for factor in factors_of(layer)]


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("opt", OPTIMIZERS)
def test_sgd_moves_both_alike(kind: str, init: str, opt: str) -> None:
    slim = LAYERS[kind]().double()
    x = images(slim)
    wide, _ = after(slim, OPTIMIZERS[opt], x, rate=3, init=init)
    compact, shapes = after(slim, OPTIMIZERS[opt], x, rate=3, init=init, compact=True)
    moved = (wide - slim.weight).norm()
    assert moved > 0.05 * slim.weight.norm()
    assert (wide - compact).norm() < 1e-11 * moved
    if kind == "conv":
        assert shapes == [(4, 4), (6, 4, 3, 3), (6, 6)]


def test_clipping_by_the_norm_is_no_exception() -> None:
    slim = LAYERS["conv"]().double()
    x, sgd = images(slim), OPTIMIZERS["momentum"]
    wide, _ = after(slim, sgd, x, rate=2, clip=0.1)
    compact, _ = after(slim, sgd, x, rate=2, clip=0.1, compact=True)
    assert (wide - compact).norm() < 1e-11 * (wide - slim.weight).norm()
    assert (wide - after(slim, sgd, x, rate=2)[0]).norm() > 1e-3  # it clips


def test_under_sgd_the_rate_of_orthogonal_chains_says_nothing() -> None:
    slim = LAYERS["conv"]().double()
    x = images(slim)
    once, _ = after(slim, OPTIMIZERS["nesterov"], x, rate=1)
    thrice, _ = after(slim, OPTIMIZERS["nesterov"], x, rate=3)
    assert (once - thrice).norm() < 1e-11 * (once - slim.weight).norm()


def test_adam_tells_the_two_apart() -> None:
    slim = LAYERS["conv"]().double()
    x = images(slim)
    wide, _ = after(slim, lambda p: torch.optim.AdamW(p, lr=0.01), x, rate=3)
    compact, _ = after(slim, lambda p: torch.optim.AdamW(p, lr=0.01), x, rate=3, compact=True)
    assert (wide - compact).norm() > 0.01 * (wide - slim.weight).norm()


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet"])
def test_a_whole_model_trains_alike(name: str) -> None:
    torch.manual_seed(0)
    slim = timm.create_model(name, num_classes=3).double()
    size = FAMILIES[name]
    x, y = torch.randn(4, 3, size, size, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    outputs = []
    for compact in (False, True):
        model = expand(copy.deepcopy(slim), seed=1, compact=compact).train()
        optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9, nesterov=True)
        for _ in range(5):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        outputs.append(contract(model).eval()(x).detach())
    before = slim.eval()(x).detach()
    assert (outputs[0] - before).norm() > 1e-3 * before.norm()
    assert (outputs[0] - outputs[1]).norm() < 1e-9 * (outputs[0] - before).norm()


def test_the_audit_shows_the_square_factors() -> None:
    (row,) = audit(expand(nn.Linear(4, 2), compact=True))
    assert row.chain == ((4, 4), (2, 4))


@pytest.mark.parametrize("init", INITS)
def test_compact_chains_are_as_wide_chains_on_the_meta_device(init: str) -> None:
    with torch.device("meta"):
        meta = expand(LAYERS["grouped"](), init=init, compact=True)
    real = expand(LAYERS["grouped"](), init=init, compact=True)
    assert [f.shape for f in factors_of(meta)] == [f.shape for f in factors_of(real)]
