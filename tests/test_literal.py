"""The literal chain of real layers, and training it beside the composed one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from timm_linop.chain import chain_for
from timm_linop.errors import ExpansionError
from timm_linop.expanded import chain_of, expand_layer, factors_of
from timm_linop.initialise import INITS
from timm_linop.literal import as_layers

from .test_chain import LAYERS, expanded, make, relative

PLAIN = [kind for kind in LAYERS if "Std" not in kind]


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("kind", PLAIN)
def test_the_chain_and_its_layers_agree_in_outputs_and_gradients(kind: str, init: str) -> None:
    slim, x = make(kind)
    chained = expanded(slim, 2, init)
    layers = as_layers(chained)
    assert isinstance(layers, nn.Sequential)
    assert [layer.bias is not None for layer in layers] == [False] * (len(layers) - 1) + [
        slim.bias is not None
    ]
    ours, theirs = chained(x), layers(x)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert relative(theirs, slim(x)) <= 1e-12
    for y in (ours, theirs):
        y.sin().sum().backward()
    for factor, layer in zip(factors_of(chained), layers, strict=True):
        gradient = layer.weight.grad.view(factor.shape)
        torch.testing.assert_close(factor.grad, gradient, rtol=1e-11, atol=1e-12)


def train(model: nn.Module, x: Tensor, target: Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-2)
    for _ in range(50):
        optimizer.zero_grad()
        (model(x) - target).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", ["strided", "reflect", "depthwise", "grouped", "1x1", "linear"])
def test_fifty_steps_of_sgd_keep_the_chain_and_its_layers_together(kind: str) -> None:
    slim, x = make(kind)
    chained = expanded(slim, 2)
    layers = as_layers(chained)
    start = [f.detach().clone() for f in factors_of(chained)]
    target = torch.randn_like(slim(x))
    train(chained, x, target)
    train(layers, x, target)
    for factor, layer, before in zip(factors_of(chained), layers, start, strict=True):
        torch.testing.assert_close(factor, layer.weight.view(factor.shape), rtol=1e-10, atol=1e-12)
        assert relative(factor, before) > 1e-2  # it has moved
    if slim.bias is not None:
        torch.testing.assert_close(chained.bias, layers[-1].bias, rtol=1e-10, atol=1e-12)


def test_the_layers_are_copies() -> None:
    slim, x = make("grouped")
    chained = expanded(slim)
    layers = as_layers(chained)
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.zero_()
    assert chain_of(chained) is not None
    assert relative(chained(x), slim(x)) <= 1e-12


def test_layers_are_written_out_only_where_they_would_be_the_same_function() -> None:
    with pytest.raises(ExpansionError, match="Conv2d is not expanded"):
        as_layers(nn.Conv2d(2, 2, 1))
    for kind in set(LAYERS) - set(PLAIN):
        layer, _ = make(kind)
        expand_layer(layer, chain_for(layer, 2, "orthogonal", 0))
        with pytest.raises(ExpansionError, match="standardises its weight"):
            as_layers(layer)
