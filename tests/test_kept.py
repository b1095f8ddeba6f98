"""A composed weight is kept in eval mode, and never a stale one."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import timm
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from timm_linop.chain import ConvChain
from timm_linop.expand import contract, expand
from timm_linop.expanded import chain_of, factors_of


@pytest.fixture
def layer() -> nn.Module:
    return expand(nn.Conv2d(4, 6, 3), seed=0).eval()


def product(layer: nn.Module) -> Tensor:
    return chain_of(layer).compose(*factors_of(layer)).detach()  # type: ignore[union-attr]


@torch.no_grad()
def test_it_is_composed_once(layer: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    compose = ConvChain.compose

    def counted(*args: Tensor) -> Tensor:
        calls.append(1)
        return compose(*args)

    monkeypatch.setattr(ConvChain, "compose", counted)
    x = torch.randn(1, 4, 5, 5)
    outputs = [layer(x) for _ in range(3)]
    assert len(calls) == 1 and torch.equal(outputs[0], outputs[2])
    layer.train()(x), layer(x)
    assert len(calls) == 3  # in training each forward composes


def trained(layer: nn.Module) -> None:
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with torch.enable_grad():
        layer(torch.ones(1, 4, 5, 5)).square().sum().backward()
    optimizer.step()


def averaged(layer: nn.Module) -> None:
    other = copy.deepcopy(layer)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    ema = ModelEmaV3(layer, decay=0.5)
    _ = ema.module.weight  # kept
    ema.update(other)
    layer.load_state_dict(ema.module.state_dict())


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "a step of an optimizer, in eval mode": trained,
    "a moving average": averaged,
    "in place": lambda layer: factors_of(layer)[1].mul_(2),
    "factors loaded": lambda layer: layer.load_state_dict(
        {k: v + 1 for k, v in layer.state_dict().items()}
    ),
    "a slim weight loaded": lambda layer: layer.load_state_dict(
        {"weight": torch.ones(6, 4, 3, 3), "bias": torch.ones(6)}
    ),
    "another tensor": lambda layer: setattr(
        factors_of(layer)[0], "data", torch.randn_like(factors_of(layer)[0])
    ),
    "precision, there and back": lambda layer: layer.to(torch.bfloat16).float(),
    "double": lambda layer: layer.double(),
}


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES)
def test_any_change_of_the_factors_is_seen(layer: nn.Module, change: str) -> None:
    before = layer.weight.clone()
    CHANGES[change](layer)
    assert torch.equal(layer.weight, product(layer))
    assert layer.weight.dtype != before.dtype or not torch.equal(layer.weight, before)


def test_gradients_flow_in_eval_mode(layer: nn.Module) -> None:
    with torch.no_grad():
        _ = layer.weight  # kept
    layer(torch.randn(1, 4, 5, 5)).sum().backward()
    assert all(factor.grad is not None for factor in factors_of(layer))


def test_inference_mode_leaves_nothing_behind(layer: nn.Module) -> None:
    x = torch.randn(1, 4, 5, 5)
    with torch.inference_mode():
        expected = layer(x)
        assert torch.equal(layer(x), expected)
    with torch.no_grad():
        kept = layer(x)
    assert torch.equal(kept, expected)
    x.requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None


@torch.no_grad()
def test_copies_keep_nothing_of_each_other(layer: nn.Module) -> None:
    _ = layer.weight  # kept
    other = copy.deepcopy(layer)
    factors_of(other)[0].mul_(3)
    assert torch.equal(other.weight, product(other)) and torch.equal(layer.weight, product(layer))
    assert not torch.equal(other.weight, layer.weight)


@torch.no_grad()
def test_functions_of_the_factors_compose_their_own(layer: nn.Module) -> None:
    _ = layer.weight  # kept
    x = torch.randn(1, 4, 5, 5)
    doubled = {name: 2 * value for name, value in layer.named_parameters()}
    got = torch.func.functional_call(layer, doubled, (x,))
    assert torch.allclose(
        got, 8 * (layer(x) - layer.bias[:, None, None]) + 2 * layer.bias[:, None, None], atol=1e-5
    )
    stacked = {name: torch.stack([value, 2 * value]) for name, value in layer.named_parameters()}
    both = torch.func.vmap(lambda p: torch.func.functional_call(layer, p, (x,)))(stacked)
    assert torch.allclose(both[1], got, atol=1e-5)


@torch.no_grad()
def test_a_whole_model_evaluates_its_slim_self() -> None:
    model = expand(timm.create_model("test_resnet"), seed=0).eval()
    x = torch.randn(2, 3, 64, 64)
    twice = model(x), model(x)
    assert torch.equal(*twice)
    assert torch.equal(contract(model)(x), twice[0])
