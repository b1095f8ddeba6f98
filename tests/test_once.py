"""Accumulating over weights composed once gives the gradients of accumulating as ever."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from tests.slims import FAMILIES
from timm_linop import composed_once, expand
from timm_linop.chain import LinearChain
from timm_linop.errors import ExpansionError
from timm_linop.expanded import chain_of, factors_of


def accumulated(model: nn.Module, images: Tensor, context: Any) -> list[Tensor | None]:
    """Gradients of all parameters after four batches and one after them, outside."""
    model = copy.deepcopy(model)
    with context(model):
        for batch in images.chunk(4):
            model(batch).square().sum().backward()
    model(images[:2]).sum().backward()
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit"])
@pytest.mark.parametrize("compact", [False, True])
def test_gradients_are_those_of_composing_each_time(name: str, compact: bool) -> None:
    model = expand(timm.create_model(name, num_classes=3), seed=0, compact=compact).double()
    size = FAMILIES[name]
    images = torch.randn(8, 3, size, size, dtype=torch.float64)
    expected = accumulated(model, images, lambda _: nullcontext())
    found = accumulated(model, images, composed_once)
    assert len(expected) > 20
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12 * float(one.abs().max()))


def test_each_weight_is_composed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = expand(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(36, 2)))
    calls: list[int] = []
    for chain in filter(None, map(chain_of, model)):
        compose = chain.compose
        monkeypatch.setattr(chain, "compose", lambda *f, c=compose: (calls.append(1), c(*f))[1])
    with composed_once(model):
        for _ in range(5):
            model(torch.randn(2, 3, 5, 5)).sum().backward()
    assert len(calls) == 2


def test_an_error_within_leaves_no_gradient_and_the_model_as_it_was() -> None:
    layer = expand(nn.Linear(4, 2))
    with pytest.raises(KeyError), composed_once(layer):
        layer(torch.ones(1, 4)).sum().backward()
        raise KeyError
    assert all(factor.grad is None for factor in factors_of(layer))
    layer(torch.ones(1, 4)).sum().backward()
    assert all(factor.grad is not None for factor in factors_of(layer))


def test_frozen_factors_and_passes_without_backward_get_none() -> None:
    model = nn.Sequential(expand(nn.Linear(4, 4)), expand(nn.Linear(4, 2)))
    for factor in factors_of(model[0]):
        factor.requires_grad_(False)
    with composed_once(model), torch.no_grad():
        model(torch.ones(1, 4))
    assert all(parameter.grad is None for parameter in model.parameters())
    with composed_once(model):
        model(torch.ones(1, 4)).sum().backward()
    assert all(factor.grad is None for factor in factors_of(model[0]))
    assert all(factor.grad is not None for factor in factors_of(model[1]))


def test_a_model_without_chains_is_as_ever_and_contexts_nest() -> None:
    plain, layer = nn.Linear(4, 2), expand(nn.Linear(4, 2))
    with composed_once(plain):
        plain(torch.ones(1, 4)).sum().backward()
    assert plain.weight.grad is not None
    chain = chain_of(layer)
    assert isinstance(chain, LinearChain)
    with composed_once(layer):
        outer = chain.shared_product
        with composed_once(layer):
            assert chain.shared_product is not outer
        assert chain.shared_product is outer
    assert chain.shared_product is None


def test_a_backward_pass_after_leaving_is_refused() -> None:
    layer = expand(nn.Linear(4, 2))
    with composed_once(layer):
        loss = layer(torch.ones(1, 4)).sum()
    with pytest.raises(ExpansionError, match="call backward within it"):
        loss.backward()


def test_factors_that_change_within_are_told() -> None:
    layer = expand(nn.Linear(4, 2))
    with pytest.raises(ExpansionError, match="step the optimizer outside"), composed_once(layer):
        layer(torch.ones(1, 4)).sum().backward()
        with torch.no_grad():
            factors_of(layer)[0].mul_(2)


def test_entered_without_gradients_it_still_serves_passes_that_want_them() -> None:
    layer = expand(nn.Linear(4, 2))
    with torch.no_grad(), composed_once(layer), torch.enable_grad():
        layer(torch.ones(1, 4)).sum().backward()
    assert all(factor.grad is not None for factor in factors_of(layer))
